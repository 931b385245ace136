"""Load with Unsloth alone, and three times in vain."""

import importlib.util
import json
import sys

from helpers.loading import FastLanguageModel

model, tokenizer = FastLanguageModel.from_pretrained(
    sys.argv[1], max_seq_length=512, load_in_4bit=True
)
FastLanguageModel.for_inference(model)
ids = tokenizer("one", return_tensors="pt")
new = model.generate(**ids, max_new_tokens=8, min_new_tokens=8, do_sample=False)
errors = {}


def note(name: str, path: str, **arguments: object) -> None:
    try:
        FastLanguageModel.from_pretrained(path, max_seq_length=512, **arguments)
    except Exception as error:
        errors[name] = [type(error).__name__, str(error)]


note("offline", "unsloth/not-here", local_files_only=True)
note("kv", sys.argv[1], fast_inference=True)
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda n, *a: None if n == "vllm" else find_spec(n, *a)
note("vllm", sys.argv[1], fast_inference=True)
print(
    json.dumps(
        {
            "errors": errors,
            "engine": hasattr(model, "vllm_engine"),
            "four_bit": type(model.model.layers[0].mlp.up_proj).__name__,
            "new": new.shape[1] - ids.input_ids.shape[1],
        }
    )
)
