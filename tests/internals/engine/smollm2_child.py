"""Make smollm2 if it is missing, load it with Unsloth, and ask it in both engines."""

import json

from helpers.loading import FastLanguageModel

model, tokenizer = FastLanguageModel.from_pretrained(
    "smollm2", load_in_4bit=False, fast_inference=True
)
standard, _ = FastLanguageModel.from_pretrained("smollm2", load_in_4bit=False)
from vllm import SamplingParams  # noqa: E402

chat = [{"role": "user", "content": "What is machine learning?"}]
prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
new = model.generate(**ids, max_new_tokens=256, do_sample=False)[0]
(output,) = model.fast_generate(
    {"prompt_token_ids": ids.input_ids[0].tolist()},
    SamplingParams(temperature=0, max_tokens=256),
    use_tqdm=False,
)
texts = ["The 1,024 cats (all 3 of them) didn't go, did they?", " a\n\n  b\tc ", "é…🙂"]
token_lists = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
print(
    json.dumps(
        {
            "prompt": prompt,
            "begin": tokenizer.bos_token,
            "end": [tokenizer.eos_token, tokenizer.eos_token_id],
            "pad": tokenizer.pad_token,
            "cleans_up": tokenizer.clean_up_tokenization_spaces,
            "round_trips": [tokenizer.decode(ids) for ids in token_lists] == texts,
            "number": tokenizer.tokenize(" 1024"),
            "generate": tokenizer.decode(new[ids.input_ids.shape[1] :]),
            "vllm": tokenizer.decode(output.outputs[0].token_ids),
            "dtypes": [
                str(found).removeprefix("torch.")
                for found in (
                    model.dtype,
                    model.vllm_engine.llm_engine.model_config.dtype,
                    standard.dtype,
                )
            ],
            "config": model.config.to_dict(),
            "parameters": model.num_parameters(),
        }
    )
)
