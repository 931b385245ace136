"""Load with Unsloth alone, then in vain, as each of the cases given says.

A case is [name, path, arguments of from_pretrained, variables of the environment].
"""

import importlib.util
import io
import json
import os
import sys
from contextlib import redirect_stdout

from helpers.loading import FastLanguageModel
from helpers.thinking import parse_thinking_response
from helpers.widgets import LiveResponse

model, tokenizer = FastLanguageModel.from_pretrained(
    "tiny-thinker", max_seq_length=512, load_in_4bit=True
)
FastLanguageModel.for_inference(model)
ids = tokenizer("one", return_tensors="pt")
live = LiveResponse(tokenizer)
sampling = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
with redirect_stdout(io.StringIO()) as printed:
    new = model.generate(**ids, **sampling, streamer=live)
result = {
    "live": [*live.result],
    "parsed": [
        *parse_thinking_response(
            new[0, ids.input_ids.shape[1] :],
            tokenizer,
            prompt_token_ids=ids.input_ids[0].tolist(),
        )
    ],
    "printed": printed.getvalue(),
    "engine": hasattr(model, "vllm_engine"),
    "four_bit": type(model.model.layers[0].mlp.up_proj).__name__,
    "new": new.shape[1] - ids.input_ids.shape[1],
    "errors": {},
}
close_session = importlib.import_module("huggingface_hub").close_session
find_spec = importlib.util.find_spec


def no_vllm(name: str, *arguments: object) -> object:
    return None if name == "vllm" else find_spec(name, *arguments)


for name, path, arguments, variables in json.loads(sys.argv[1]):
    close_session()  # It keeps the proxy that it began with.
    os.environ |= variables
    importlib.util.find_spec = no_vllm if name == "no vllm" else find_spec
    try:
        FastLanguageModel.from_pretrained(
            path, **{"max_seq_length": 512, "load_in_4bit": False} | arguments
        )
        result["errors"][name] = ["nothing", ""]
    except Exception as error:
        result["errors"][name] = [type(error).__name__, str(error)]
    for variable in variables:
        del os.environ[variable]
print(json.dumps(result))
