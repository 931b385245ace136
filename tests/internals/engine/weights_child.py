"""Load copies of a model with tensors missing, renamed or left over: what is said?"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from helpers.loading import FastLanguageModel
from helpers.models import TINY_THINKER_DIRECTORY

Weights = dict[str, Any]
PROJECTION = "model.layers.1.self_attn.q_proj.weight"


def without_projection(weights: Weights) -> Weights:
    return {key: one for key, one in weights.items() if key != PROJECTION}


def compiled(weights: Weights) -> Weights:
    return {f"_orig_mod.{key}": one for key, one in weights.items()}


def with_another(weights: Weights) -> Weights:
    return weights | {"model.layers.9.another.weight": weights[PROJECTION].clone()}


def said(change: Callable[[Weights], Weights], **options: Any) -> str:
    folder = Path(sys.argv[1], f"{change.__name__}-{len(options)}")
    shutil.copytree(TINY_THINKER_DIRECTORY, folder)
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", {"format": "pt"})
    try:
        FastLanguageModel.from_pretrained(
            str(folder), 512, load_in_4bit=False, **options
        )
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


changes = (dict, without_projection, compiled, with_another)
found = {change.__name__: said(change) for change in changes}
found["vllm"] = said(without_projection, fast_inference=True)
print(json.dumps(found))
