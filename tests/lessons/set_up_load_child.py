"""Load the chosen model, then a named one; print what each load was given."""

import json

from helpers import set_up

setup = set_up()
model, tokenizer = setup.load(max_num_seqs=4)
config = model.vllm_engine.llm_engine.vllm_config
fast = {
    "context": config.model_config.max_model_len,
    "at_once": config.scheduler_config.max_num_seqs,
}
model, tokenizer = setup.load("tiny-thinker", fast_inference=False, max_seq_length=96)
standard = {"context": model.max_seq_length, "vllm": hasattr(model, "vllm_engine")}
print(json.dumps({"fast": fast, "standard": standard}))
