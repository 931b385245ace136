"""Write a model with a real architecture and random weights.

    python -m tools.random_model models/qwen3-4b-random --shape qwen3-4b
    python -m tools.random_model models/head --head-of models/qwen3-4b-random

Speed and memory do not depend on what the weights say, so such a model measures them
without a download. Its text is noise, and its model card says so: `is_noise` is how a
check on meaning knows.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from helpers.models import (
    MODELS,
    TINY_THINKER,
    TINY_THINKER_DIRECTORY,
)
from helpers.notebook import NOISE_TAG, is_noise

if TYPE_CHECKING:
    from torch import Tensor

SHARD_BYTES = 2 * 10**9
HEAD_WORDS = 32_000  # A head chooses among the first tokens of the vocabulary.
# Wide rows for the markers of the end, so that noise ends too: with these, thinking
# mostly closes within a hundred tokens, and the text some hundred later.
END_SCALES = MappingProxyType({"</think>": 2.5, "<|im_end|>": 1.8})

_QWEN3 = {
    "model_type": "qwen3",
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151_936,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
SHAPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        # huggingface.co/Qwen/Qwen3-4B-Thinking-2507, config.json.
        "qwen3-4b": _QWEN3
        | {
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "max_position_embeddings": 262_144,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5_000_000.0},
        },
        # huggingface.co/Qwen/Qwen3-0.6B, config.json: a draft for the larger ones.
        "qwen3-0.6b": _QWEN3
        | {
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "max_position_embeddings": 40_960,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        },
        # huggingface.co/Qwen/Qwen3-8B, config.json: twice the weights to read.
        "qwen3-8b": _QWEN3
        | {
            "hidden_size": 4096,
            "intermediate_size": 12_288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "max_position_embeddings": 40_960,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
            "tie_word_embeddings": False,
        },
        # huggingface.co/meta-llama/Llama-3.2-3B-Instruct, config.json.
        "llama-3.2-3b": {
            "model_type": "llama",
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 28,
            "num_attention_heads": 24,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 128_256,
            "max_position_embeddings": 131_072,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500_000.0,
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
        },
    }
)
# Where Qwen3 has them; other shapes have them at the end of their vocabulary.
_QWEN3_IDS = MappingProxyType(
    {
        "<|endoftext|>": 151_643,
        "<|im_start|>": 151_644,
        "<|im_end|>": 151_645,
        "<think>": 151_667,
        "</think>": 151_668,
    }
)

CARD = """\
---
tags: [{tag}]
---
# Random weights in the shape {shape}

The text of this model is noise. The weights are random numbers (seed {seed}), the
tokenizer is that of tiny-thinker, filled up to {vocabulary:,} tokens. Speed and memory
are those of the real architecture. Made by `python -m tools.random_model`.
"""


def make_random_model(
    directory: Path,
    shape: str = "qwen3-4b",
    *,
    seed: int = 0,
    dtype: str = "bfloat16",
    **changes: Any,
) -> Path:
    """Write config, weights, tokenizer and card to `directory`, and return it.

    `shape` is a name of `SHAPES`, `changes` replace single values of its config,
    `dtype` is the weights' type in torch. A directory with another model in it is
    refused with `FileExistsError`; an unknown shape is a `KeyError`.
    """
    config = {**SHAPES[shape], **changes}
    directory = Path(directory)
    if (directory / "config.json").exists() and not is_noise(directory):
        raise FileExistsError(
            f"{directory} holds a model that is not of random weights"
        )
    directory.mkdir(parents=True, exist_ok=True)
    ids = _write_tokenizer(directory, config["vocab_size"])
    card = CARD.format(
        tag=NOISE_TAG, shape=shape, seed=seed, vocabulary=config["vocab_size"]
    )
    (directory / "README.md").write_text(card, "utf-8")
    _write_weights(directory, config, ids, dtype, seed)
    return directory


def _write_tokenizer(directory: Path, size: int) -> dict[str, int]:
    """Write tiny-thinker's tokenizer, filled up to `size`; return its markers' ids."""
    source = TINY_THINKER_DIRECTORY
    tokenizer = json.loads((source / "tokenizer.json").read_text("utf-8"))
    markers = [added["content"] for added in tokenizer["added_tokens"]]
    vocabulary = {
        token: number
        for token, number in tokenizer["model"]["vocab"].items()
        if token not in markers
    }
    if size == SHAPES["qwen3-4b"]["vocab_size"]:
        ids = {marker: _QWEN3_IDS[marker] for marker in markers}
    else:
        ids = {marker: size - len(markers) + n for n, marker in enumerate(markers)}
    taken = {*ids.values(), *vocabulary.values()}
    # U+0120 is the space of byte-level tokens.
    fillers = {f"\u0120f{n}": n for n in range(size) if n not in taken}
    tokenizer["model"]["vocab"] = {**vocabulary, **ids, **fillers}
    for added in tokenizer["added_tokens"]:
        added["id"] = ids[added["content"]]
    text = json.dumps(tokenizer, ensure_ascii=False)
    (directory / "tokenizer.json").write_text(text, "utf-8")
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        (directory / name).write_bytes((source / name).read_bytes())
    return ids


def _write_weights(
    directory: Path,
    values: Mapping[str, Any],
    ids: dict[str, int],
    dtype: str,
    seed: int,
) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    end = {
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "bos_token_id": None,
    }
    kind = {key: value for key, value in values.items() if key != "model_type"}
    config = AutoConfig.for_model(values["model_type"], dtype=dtype, **end, **kind)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    config.architectures = [type(empty).__name__]
    config.save_pretrained(directory)
    sampling = MODELS[TINY_THINKER].sampling
    GenerationConfig(do_sample=True, **end, **sampling).save_pretrained(directory)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(seed)

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for name, parameter in empty.named_parameters():  # Tied ones come once.
            tensor = torch.empty(
                parameter.shape, dtype=getattr(torch, dtype), device=device
            )
            if parameter.dim() == 1:
                tensor.fill_(0 if name.endswith("bias") else 1)  # Norms.
            else:
                tensor.normal_(0, config.initializer_range, generator=generator)
            if name.endswith(("lm_head.weight", "embed_tokens.weight")):
                for marker, scale in END_SCALES.items():
                    tensor[ids[marker]] *= scale
            yield name, tensor.cpu()

    _save_in_shards(directory, tensors())


def _save_in_shards(directory: Path, tensors: "Iterator[tuple[str, Tensor]]") -> None:
    """Write a model that need not fit in memory, and the index of its files."""
    from safetensors.torch import save_file

    for old in directory.glob("model*.safetensors*"):
        old.unlink()
    places: dict[str, str] = {}
    total = 0
    for number, shard in enumerate(_shards(tensors), start=1):
        file = f"model-{number:05d}.safetensors"
        save_file(shard, directory / file, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, file)
        total += sum(tensor.nbytes for tensor in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def _shards(tensors: "Iterator[tuple[str, Tensor]]") -> Iterator[dict[str, "Tensor"]]:
    shard: dict[str, Tensor] = {}
    held = 0
    for name, tensor in tensors:
        shard[name] = tensor
        held += tensor.nbytes
        if held >= SHARD_BYTES:
            yield shard
            shard, held = {}, 0
    if shard:
        yield shard


def make_head(directory: Path, model: Path, seed: int = 0) -> None:
    """Write an EAGLE-3 head of random weights for the model in a folder.

    It is one layer of the model's sizes, over the hidden states of three of its layers.
    """
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    values = json.loads((model / "config.json").read_text("utf-8"))
    hidden, inner, width = (
        values[name] for name in ("hidden_size", "intermediate_size", "head_dim")
    )
    queries = width * values["num_attention_heads"]
    keys = width * values["num_key_value_heads"]
    words = min(HEAD_WORDS, values["vocab_size"])
    layer = {
        "self_attn.q_proj": (queries, 2 * hidden),
        "mlp.down_proj": (hidden, inner),
    }
    layer |= dict.fromkeys(("self_attn.k_proj", "self_attn.v_proj"), (keys, 2 * hidden))
    layer |= dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), (inner, hidden))
    layer["self_attn.o_proj"] = (hidden, queries)
    norms = "hidden_norm", "input_layernorm", "post_attention_layernorm"
    shapes = {f"midlayer.{name}": size for name, size in layer.items()}
    shapes |= {f"midlayer.{name}": (hidden,) for name in norms}
    shapes |= {
        "fc": (hidden, 3 * hidden),
        "lm_head": (words, hidden),
        "norm": (hidden,),
    }
    tensors = {
        f"{name}.weight": (
            torch.randn(size, generator=generator) * 0.02
            if len(size) > 1
            else torch.ones(size)
        ).bfloat16()
        for name, size in shapes.items()
    }
    if words < values["vocab_size"]:
        tensors["d2t"] = torch.zeros(words, dtype=torch.long)
    own = {"architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama"}
    own |= {"num_hidden_layers": 1, "draft_vocab_size": words, "dtype": "bfloat16"}
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    text = json.dumps(
        {**values, **own, "tie_word_embeddings": False, "layer_types": None}
    )
    (directory / "config.json").write_text(text, "utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 1 if the directory holds another model."""
    parser = argparse.ArgumentParser("python -m tools.random_model")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-4b")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--head-of", type=Path, help="write a head for this model")
    options = parser.parse_args(arguments)
    if options.head_of:
        make_head(options.directory, options.head_of, options.seed)
        return 0
    try:
        make_random_model(options.directory, options.shape, seed=options.seed)
    except FileExistsError as error:
        print(error, file=sys.stderr)
        return 1
    size = sum(file.stat().st_size for file in options.directory.iterdir())
    print(f"{options.directory}: {size / 1e9:.2f} GB in the shape {options.shape}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
