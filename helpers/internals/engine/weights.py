"""Check a model's files, and its tensors, before the load.

In goes a folder; an error comes out that names the file or the tensors, and says what
to do. It knows nothing of the Hub.
"""

import contextlib
import json
import math
import re
import warnings
from pathlib import Path
from typing import Any

from ...models import cached_name
from .exceptions import ModelLoadError, ModelNotFoundError

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
# Every model's repository has one of these.
_TOKENIZERS = ["tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json"]
_TOKENIZERS += ["vocab.txt", "spiece.model"]
_QUANTISED_NAME = re.compile(r"4bit|fp8|awq|gptq|int[48]|w[48]a", re.IGNORECASE)
_READ = (".index.json", "config.json", "tokenizer.json")
# Parts that a text model of a larger checkpoint may leave: towers, draft layers.
_OTHER_PARTS = re.compile(r"vision|visual|audio|multi_modal|mtp|inv_freq")


def weight_files(folder: Path) -> set[Path]:
    """Return the files that hold a folder's weights, whether they exist or not."""
    for suffix in (".safetensors", ".bin"):
        for index in sorted(folder.glob(f"*{suffix}.index.json")):
            names = read_json(index).get("weight_map", {}).values()
            return {folder / name for name in names}
        if found := {*folder.glob(f"*{suffix}")}:
            return found
    return set()


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object; raise `ModelLoadError` that names the file if it is none."""
    try:
        found = json.loads(file.read_bytes().decode())
    except ValueError as error:
        raise ModelLoadError(
            f"{file} can't be read as JSON ({error}). Copy or download it again; a "
            "file that an editor saved must be UTF-8 without a byte order mark."
        ) from error
    if not isinstance(found, dict):
        raise ModelLoadError(f"{file} holds no JSON object: copy or download it again.")
    return found


def check_files(folder: Path) -> None:
    """Raise `ModelLoadError` for the first file of a model that is not whole."""
    if not (weights := weight_files(folder)):
        raise ModelNotFoundError(f"{folder} holds no weights (*.safetensors, *.bin).")
    needed = (*_TOKENIZERS, "adapter_config.json")
    if not any((folder / name).exists() for name in needed):
        raise ModelNotFoundError(
            f"{folder} holds no tokenizer: put the model's there, "
            f"tokenizer.save_pretrained({str(folder)!r})."
        )
    _refuse_two_sets(folder)
    for file in sorted({*weights, *folder.iterdir()}):
        if problem := _problem_of(file):
            raise ModelLoadError(f"{file} {problem}")


def warn_of_stretching(folder: Path, name: str, max_seq_length: int) -> None:
    """Warn where Unsloth would scale a model's positions on a GPU without a word."""
    most = read_json(folder / "config.json").get("max_position_embeddings")
    if max_seq_length > (most or math.inf):
        warnings.warn(
            f"{name} knows {most:,} tokens. For max_seq_length="
            f"{max_seq_length:,} Unsloth stretches its positions, and short answers "
            f"get worse, too: give at most {most}.",
            stacklevel=2,
        )


def _refuse_two_sets(folder: Path) -> None:
    """Raise where transformers would load one file, and vLLM others or all of them."""
    single = folder / "model.safetensors"
    others = {one.name for one in folder.glob("*.safetensors")} - {single.name}
    others = {name for name in others if not name.startswith(("consolidated", "adapt"))}
    if single.exists() and others:
        raise ModelLoadError(
            f"{folder} holds two sets of weights, {single.name} and "
            f"{_shorten(others)}: move one of them away, with its index."
        )


def _problem_of(file: Path) -> str:
    """Name the damage to one file of a model, and the way out; "" for a whole one."""
    from safetensors import SafetensorError, safe_open

    if file.suffix not in (".safetensors", ".bin", ".json", ".model"):
        return ""
    if file.is_symlink() and not file.exists():
        return "is a link to a file that is not there."
    if not file.exists():
        return (
            "is missing, though the index beside it (*.index.json) names it. Copy or "
            "download it; if the index is left from another save, delete the index."
        )
    with file.open("rb") as stream:
        if stream.read(len(_LFS_POINTER)) == _LFS_POINTER:
            return (
                "is a pointer of Git LFS, not the file itself. `git lfs install && git "
                f"lfs pull` in {file.parent} fetches it."
            )
    if file.name.endswith(_READ):
        read_json(file)
    if file.suffix == ".safetensors":
        try:
            safe_open(file, "numpy").__enter__()
        except SafetensorError:
            name, way = cached_name(str(file)), "Copy or download it again."
            if name:
                way = f"`hf download {name} {file.name} --force-download` mends it."
            return f"is cut short. {way}"
    return ""


def adapter_config(path: str) -> dict | None:
    """Return what a folder says of the adapter in it; None for any other path."""
    file = Path(path, "adapter_config.json")
    if not file.is_file():
        return None
    config = read_json(file)
    if not config.get("base_model_name_or_path"):
        raise ModelLoadError(
            f"{file} names no model: write the one that the adapter was trained on "
            'as "base_model_name_or_path".'
        )
    return config


def is_quantised(folder: Path) -> bool:
    """Return True if a model has quantised weights, by its config or its name."""
    file = folder / "config.json"
    if file.is_file():
        return "quantization_config" in read_json(file)
    return bool(_QUANTISED_NAME.search(folder.name))


def is_whole(folder: Path) -> bool:
    """Return True if a download went through: the tokenizer comes last in it."""
    try:
        weights = weight_files(folder)
    except ModelLoadError:
        return False
    last = _TOKENIZERS if (folder / "config.json").exists() else ["adapter_config.json"]
    return (
        bool(weights)
        and all(file.exists() for file in weights)
        and any((folder / name).exists() for name in last)
    )


def check_tensors(folder: Path, adapter: Path | None = None) -> None:
    """Raise `ModelLoadError` for tensors that are missing, or that nothing uses.

    transformers fills what is missing with random numbers, and no engine stops. Here
    it compares the names alone, on the device "meta"; it knows what is rightly absent,
    such as tied embeddings. What it can't build is left to the engine.
    """
    import peft
    import transformers

    found: dict[Path, Any] = {}
    with contextlib.suppress(Exception):
        config = transformers.AutoConfig.from_pretrained(
            folder, trust_remote_code=False
        )
        quantised = config.__dict__.pop("quantization_config", None)
        name = (config.architectures or ["AutoModelForCausalLM"])[0]
        kind = getattr(transformers, name)
        model, found[folder] = kind.from_pretrained(
            folder,
            config=config,
            device_map="meta",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        if quantised:
            _drop_renamed(found[folder])
        if adapter:
            lora = peft.LoraConfig.from_pretrained(adapter)
            model = peft.PeftModel(model, lora, low_cpu_mem_usage=True)
            loaded = model.load_adapter(adapter, "default", torch_device="cpu")
            found[adapter] = loaded._asdict()
    for where, keys in found.items():
        missing = {*keys["missing_keys"]}
        missing |= {key for key, *_ in keys.get("mismatched_keys", ())}
        unused = {
            key for key in keys["unexpected_keys"] if not _OTHER_PARTS.search(key)
        }
        if missing or unused:
            raise ModelLoadError(
                f"the weights in {where} do not fit the model. Missing: "
                f"{_shorten(missing)}; not used: {_shorten(unused)}. Save or download "
                "them again; names that begin with _orig_mod. or base_model. are of a "
                "compiled or adapted model, whose inner model is to be saved."
            )


def _drop_renamed(keys: dict[str, Any]) -> None:
    """Leave what is missing with its whole layer: quantised ones have other names."""
    unused = [key.split(".") for key in keys["unexpected_keys"]]
    layers = {".".join(parts[:n]) for parts in unused for n in range(1, len(parts))}
    missing = {k for k in keys["missing_keys"] if k.rpartition(".")[0] not in layers}
    keys.update(missing_keys=missing, unexpected_keys=(), mismatched_keys=())


def _shorten(names: set[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (", ".join(sorted(names)[:5]) or "none") + more
