"""Ask of a model's copies, with tensors missing, renamed or left over, what is said."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from helpers.internals.engine.weights import check_tensors
from helpers.loading import FastLanguageModel
from helpers.models import TINY_THINKER_DIRECTORY

load = FastLanguageModel.from_pretrained  # Imports Unsloth, before these.
from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

Weights = dict[str, Any]
PROJECTION = "model.layers.1.self_attn.q_proj.weight"


def without_projection(weights: Weights) -> Weights:
    return {key: one for key, one in weights.items() if "1.self_attn.q_proj" not in key}


def without_lora_b(weights: Weights) -> Weights:
    return {
        key: one for key, one in weights.items() if "1.mlp.up_proj.lora_B" not in key
    }


def without_prefix(weights: Weights) -> Weights:
    return {key.removeprefix("base_model.model."): one for key, one in weights.items()}


def with_nan_in_lora(weights: Weights) -> Weights:
    return {key: one.log() for key, one in weights.items()}


def compiled(weights: Weights) -> Weights:
    return {f"_orig_mod.{key}": one for key, one in weights.items()}


def with_another(weights: Weights) -> Weights:
    return weights | {"model.layers.9.another.weight": weights[PROJECTION].clone()}


def with_tied_head(weights: Weights) -> Weights:
    return weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}


def of_another_width(weights: Weights) -> Weights:
    return weights | {PROJECTION: weights[PROJECTION][1:].clone()}


def with_integers(weights: Weights) -> Weights:
    return weights | {PROJECTION: weights[PROJECTION].char()}


def with_infinity(weights: Weights) -> Weights:
    return weights | {PROJECTION: torch.full_like(weights[PROJECTION], -torch.inf)}


def with_nan_in_64_bits(weights: Weights) -> Weights:
    return weights | {PROJECTION: weights[PROJECTION].double().log()}


def without_embeddings(weights: Weights) -> Weights:
    """As save_model of safetensors leaves a tied model."""
    head = {"lm_head.weight": weights.pop("model.embed_tokens.weight")}
    return weights | head


def of_rank_4(weights: Weights) -> Weights:
    return {
        key: (one[:4] if "lora_A" in key else one[:, :4]).clone()
        for key, one in weights.items()
    }


def of_no_rows(weights: Weights) -> Weights:
    """As a training with DeepSpeed's ZeRO-3 may save it."""
    return {key: one[:0].clone() for key, one in weights.items()}


def with_nan(weights: Weights) -> Weights:
    return weights | {PROJECTION: weights[PROJECTION].log()}


def with_halves_of_large_sums(weights: Weights) -> Weights:
    """Each thread adds up a half, to more than 16 bits can hold."""
    table = torch.full_like(weights["model.embed_tokens.weight"].half(), 1000)
    table[len(table) // 2 :] = -1000
    return weights | {"model.embed_tokens.weight": table}


def renamed(*suffixes: str) -> Callable[[Weights], Weights]:
    """The tensors of each linear layer under the names of a quantised one."""

    def change(weights: Weights) -> Weights:
        new = {}
        for key, one in weights.items():
            layer = key.removesuffix("weight")
            for suffix in suffixes if "_proj" in key else ("weight",):
                new[layer + suffix] = one.clone()
        return new

    return change


QUANTISED = {
    "gptq": ("qweight", "qzeros", "scales", "g_idx"),
    "fp8": ("weight", "weight_scale_inv"),
    "compressed-tensors": ("weight_packed", "weight_scale", "weight_shape"),
}


def copy(model: Path, name: str, *changes: Callable[[Weights], Weights]) -> Path:
    folder = Path(sys.argv[1], name)
    shutil.copytree(model, folder)
    (file,) = folder.glob("*.safetensors")
    weights = load_file(file)
    for change in changes:
        weights = change(weights)
    save_file(weights, file, {"format": "pt"})
    return folder


def said(check: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    try:
        check(*arguments, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


found: dict[str, Any] = {}
torch._C.set_num_threads(2)
changes = (dict, without_projection, compiled, with_another, of_another_width)
changes += (with_tied_head, with_integers, with_nan, with_halves_of_large_sums)
changes += (with_infinity, with_nan_in_64_bits, without_embeddings)
for change in changes:
    folder = copy(TINY_THINKER_DIRECTORY, change.__name__, change)
    found[change.__name__] = said(check_tensors, folder)
bad = str(Path(sys.argv[1], "without_projection"))
file = copy(Path(bad), "of_own_class", dict) / "config.json"
file.write_text(file.read_text().replace("Qwen3For", "MineFor"))
found["of_own_class"] = said(check_tensors, file.parent)
shard = copy(TINY_THINKER_DIRECTORY, "a shard", dict)
(shard / "model.safetensors").rename(shard / "model-00001-of-00002.safetensors")
config = copy(TINY_THINKER_DIRECTORY, "a config", dict)
(config / "config.json").write_text("{}")
vocabulary = copy(TINY_THINKER_DIRECTORY, "a vocabulary", dict)
values = json.loads((vocabulary / "config.json").read_text())
few = values | {"vocab_size": 9, "pad_token_id": 10}
(vocabulary / "config.json").write_text(json.dumps(few))
found["not built"] = {
    folder.name.split()[-1]: [
        said(check_tensors, folder, lenient=lenient) for lenient in (True, False)
    ]
    for folder in (shard, config, vocabulary)
}
found["loaded"] = [
    said(load, bad, 512, load_in_4bit=False, fast_inference=fast)
    for fast in (False, True)
]

model, _ = load(str(TINY_THINKER_DIRECTORY), 512, load_in_4bit=True)
four_bits = Path(sys.argv[1], "bitsandbytes")
model.save_pretrained(four_bits)
folders = {"bitsandbytes": four_bits}
for method, suffixes in QUANTISED.items():
    folders[method] = copy(TINY_THINKER_DIRECTORY, method, renamed(*suffixes))
    file = folders[method] / "config.json"
    config = json.loads(file.read_text()) | {"quantization_config": {"bits": 8}}
    file.write_text(json.dumps(config))
found["quantised"] = {
    method: [
        said(check_tensors, folder),
        said(check_tensors, copy(folder, f"{method}-less", without_projection)),
    ]
    for method, folder in folders.items()
}

adapter = Path(sys.argv[1], "adapter")
model, _ = load(str(TINY_THINKER_DIRECTORY), 512, load_in_4bit=False)
FastLanguageModel.get_peft_model(model, r=8).save_pretrained(adapter)
changes = (dict, without_lora_b, without_prefix, with_nan_in_lora)
for change in (*changes, of_rank_4, of_no_rows):
    folder = copy(adapter, f"adapter-{change.__name__}", change)
    found[f"adapter-{change.__name__}"] = said(
        load, str(folder), 512, load_in_4bit=False
    )
model = AutoModelForCausalLM.from_pretrained(TINY_THINKER_DIRECTORY)
lora = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])
with_head = Path(sys.argv[1], "with_head")
get_peft_model(model, lora).save_pretrained(with_head)
found["adapter-with_head"] = said(check_tensors, TINY_THINKER_DIRECTORY, with_head)
print(json.dumps(found))
