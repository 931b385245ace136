"""Load and release a compiled engine twice; prints what the releases left."""

import json
import os
import sys

os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_LOGGING_LEVEL="ERROR",
    VLLM_NO_USAGE_STATS="1",
)

import torch
from transformers import Qwen3Config
from vllm import LLM, SamplingParams
from vllm.platforms import current_platform

from helpers.internals.engine.release import release_model

DIRECTORY = sys.argv[1]
HOOKS = torch._dynamo.convert_frame._bytecode_hooks

Qwen3Config(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=1,
    num_key_value_heads=1,
    head_dim=64,
    max_position_embeddings=256,
    architectures=["Qwen3ForCausalLM"],
).save_pretrained(DIRECTORY)


class Model:
    """What Unsloth adds to the model that it returns."""

    def __init__(self) -> None:
        self.vllm_engine = LLM(
            DIRECTORY,
            skip_tokenizer_init=True,
            load_format="dummy",
            seed=0,
            dtype="float32",
            max_model_len=128,
            max_num_seqs=2,
            # A compiled model leaves hooks with Dynamo; eager code generation is quick.
            compilation_config={"mode": 3, "backend": "eager"},
        )
        self.fast_generate = self.vllm_engine.generate


def greedy(model: Model) -> list[list[int]]:
    prompts = [{"prompt_token_ids": [1, 2, 3]}] * 2
    params = SamplingParams(temperature=0, max_tokens=8, detokenize=False)
    outputs = model.fast_generate(prompts, params, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


cycles = []
for cycle in range(2):
    model = Model()
    hooks = len(HOOKS)
    tokens = greedy(model)
    # As a first engine on a GPU leaves it.
    type(current_platform)._global_graph_pool = "the pool of this engine"
    engine, generate_bound = model.vllm_engine, model.fast_generate
    kept = {"engine": engine} if cycle else {}
    report = release_model(model)
    cycles.append(
        {
            "hooks": [hooks, len(HOOKS)],
            "tokens": tokens,
            "variables": sorted({"model", "engine", "generate_bound"} & set(globals())),
            "parameters": [report.parameters, report.alive_parameters],
            "holders": report.holders,
            "graph_pool": type(current_platform)._global_graph_pool,
        }
    )
print(json.dumps({"cycles": cycles}))
