# The cells of a notebook for tests/test_jupyterlab.py: responses that never end.
# %%
import helpers.loading

# %%
from helpers.live import stream_response
from helpers.sampling import preset

model, tokenizer = helpers.loading.FastLanguageModel.from_pretrained(
    "tiny-thinker", fast_inference=True
)
messages = [{"role": "user", "content": "What is 15 + 27?"}]
prompt = tokenizer.apply_chat_template(
    messages, tokenize=False, add_generation_prompt=True
)
endless = preset("thinking", max_tokens=4000, ignore_eos=True)
# %%
result = stream_response(model, tokenizer, prompt, endless)
print(result.finish_reason, result.thinking_tokens + result.response_tokens < 3900)
# %%
plain, _ = helpers.loading.FastLanguageModel.from_pretrained(
    "tiny-thinker", load_in_4bit=False
)
endless_plain = preset("thinking", for_generate=True) | {
    "min_new_tokens": 4000,
    "max_new_tokens": 4000,
}
result = stream_response(plain, tokenizer, prompt, endless_plain)
print(result.finish_reason, result.thinking_tokens + result.response_tokens < 3900)
# %%
plain.generate(**tokenizer(text=prompt, return_tensors="pt"), **endless_plain)
# %%
stream_response(model, tokenizer, prompt, endless)
