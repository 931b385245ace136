# The cells of a notebook for test_jupyterlab.py: a response, and some without an end.
# %%
import helpers.loading
from helpers.sampling import preset

# %%
from helpers.widgets import LiveResponse

model, tokenizer = helpers.loading.FastLanguageModel.from_pretrained(
    "tiny-thinker", load_in_4bit=False
)
messages = [{"role": "user", "content": "What is 15 + 27?"}]
prompt = tokenizer.apply_chat_template(
    messages, tokenize=False, add_generation_prompt=True
)
question = tokenizer(text=prompt, return_tensors="pt")
# %%
answer = model.generate(
    **question, max_new_tokens=256, do_sample=False, streamer=LiveResponse(tokenizer)
)
# %%
job = {
    **question,
    **preset("thinking", for_generate=True),
    "min_new_tokens": 4000,
    "max_new_tokens": 4000,
}
# %%
live = LiveResponse(tokenizer)
try:
    model.generate(**job, streamer=live)
except KeyboardInterrupt:
    result = live.result
    print(result.finish_reason, result.thinking_tokens + result.response_tokens < 3900)
# %%
model.generate(**job)
# %%
model.generate(**job, streamer=LiveResponse(tokenizer))
