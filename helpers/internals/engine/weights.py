"""Check a model's files, and its tensors, before the load.

In goes a folder; an error comes out that names file or tensors, and says what to do.
"""

import json
import re
import warnings
from math import isfinite
from pathlib import Path
from typing import Any

from ...models import cached_name
from .exceptions import ModelLoadError, ModelNotFoundError

# Every model's repository has one of these files, and an adapter's the first.
_TOKENIZER = re.compile(r"(adapter_config|tokenizer|tekken|vocab|spiece)\.\w+")
# Parts that a text model of a larger checkpoint may leave: towers, draft layers.
_OTHER_PARTS = re.compile(r"vision|visual|audio|multi_modal|mtp|inv_freq")
_SMALL = 8e9  # Bytes of weights that are read for NaN: 0.2 s/GB, and the disk's time.


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object, {} if there is no file; raise `ModelLoadError` for others."""
    try:
        return {**json.loads(file.read_bytes().decode())} if file.is_file() else {}
    except (ValueError, TypeError) as error:
        way = "Download it again (Git LFS: git lfs pull), or save it without its BOM."
        why = f"{file} can't be read as JSON ({error}). {way}"
        raise ModelLoadError(why) from error


def require_files(folder: Path) -> list[Path]:
    """List the weights and JSON files of a model; raise if a part of it is missing."""
    for suffix in (".safetensors", ".bin"):
        weights = {*folder.glob(f"*{suffix}")}
        for index in folder.glob(f"*{suffix}.index.json"):
            named = read_json(index).get("weight_map")
            if not isinstance(named, dict):
                raise ModelLoadError(f'{index} has no "weight_map": save it again.')
            weights |= {folder / str(name) for name in named.values()}
        if weights:
            break
    tokenizer = any(_TOKENIZER.fullmatch(file.name) for file in folder.iterdir())
    if not weights or not tokenizer:
        why = "holds no weights (*.safetensors, *.bin), or no tokenizer, which"
        way = f"tokenizer.save_pretrained({str(folder)!r}) puts there."
        raise ModelNotFoundError(f"{folder} {why} {way}")
    files = weights | {*folder.glob("*.json"), *folder.glob("*.model")}
    if folder / "adapter_config.json" not in files:
        files.add(folder / "config.json")
    if lost := {file.name for file in files if not file.exists()}:
        why = f"{_shorten(lost)} is missing, or is a link to a file that is not there."
        way = "Copy or download it, or delete the index (*.index.json) of another save."
        raise ModelLoadError(f"{folder}: {why} {way}")
    return sorted(files)


def check_files(folder: Path) -> None:
    """Raise `ModelLoadError` for the first file of a model that is not whole."""
    from safetensors import SafetensorError, safe_open

    files, single = require_files(folder), "model.safetensors"
    tensors = [file for file in files if file.suffix == ".safetensors"]
    names = {file.name for file in tensors} - {single}
    names = {name for name in names if not name.startswith(("consolidated", "adapt"))}
    # Of two sets transformers would load the single file, and vLLM others or all.
    if names and folder / single in files:
        two = f"two sets of weights, {single} and {_shorten(names)}"
        raise ModelLoadError(f"{folder} holds {two}: move one away, with its index.")
    for file in files:
        if file.name.endswith((".index.json", "config.json", "tokenizer.json")):
            read_json(file)
    for file in tensors:
        try:
            safe_open(file, "numpy").__enter__()
        except SafetensorError as error:
            way = "Copy or download it again (a pointer of Git LFS: git lfs pull)."
            if name := cached_name(str(file)):
                way = f"`hf download {name} {file.name} --force-download` mends it."
            raise ModelLoadError(f"{file} is cut short. {way}") from error


def warn_of_stretching(folder: Path, name: str, max_seq_length: int) -> None:
    """Warn where Unsloth would scale a model's positions on a GPU without a word."""
    config = read_json(folder / "config.json")
    most = config.get("max_position_embeddings") or max_seq_length
    if max_seq_length > most:
        text = f"{name} knows {most:,} tokens: give at most max_seq_length={most}. For "
        text += "more Unsloth stretches positions, and short answers get worse, too."
        warnings.warn(text, stacklevel=2)


def adapter_config(path: str) -> dict[str, Any]:
    """Return what a folder says of the adapter in it; {} for any other path."""
    config = read_json(file := Path(path, "adapter_config.json"))
    base = config.get("base_model_name_or_path")
    if file.is_file() and not (base and isinstance(base, str)):
        raise ModelLoadError(f'{file} names no model: add "base_model_name_or_path".')
    return config


def is_quantised(folder: Path) -> bool:
    """Return True if a model has quantised weights, by its config or else its name."""
    if config := read_json(folder / "config.json"):
        return "quantization_config" in config
    return bool(re.search(r"(?i)4bit|fp8|awq|gptq|int[48]|w[48]a", folder.name))


def check_tensors(
    folder: Path, adapter: Path | None = None, lenient: bool = True
) -> None:
    """Raise `ModelLoadError` for tensors that are missing, unused or no numbers.

    transformers fills what is missing with random numbers, and no engine stops. Here
    it compares the names alone, on the device "meta"; it knows what is rightly absent,
    such as tied embeddings. What it can't build is left to the engine if `lenient`.
    """
    import transformers
    from transformers import AutoConfig

    found: dict[Path, Any] = {}
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        quantised = config.__dict__.pop("quantization_config", None)
        # Unsloth takes any other class, or one of its own, for a language model.
        name = (config.architectures or [""])[0]
        name *= name.endswith(("ForCausalLM", "ForConditionalGeneration"))
        kind = getattr(transformers, name, transformers.AutoModelForCausalLM)
        options = {"ignore_mismatched_sizes": True, "output_loading_info": True}
        options |= {"config": config, "device_map": "meta"}
        model, found[folder] = kind.from_pretrained(folder, **options)
        if quantised:
            _drop_renamed(found[folder])
        if adapter:
            import peft

            lora = peft.LoraConfig.from_pretrained(adapter)
            model = peft.PeftModel(model, lora, low_cpu_mem_usage=True)
            loaded = model.load_adapter(adapter, "default", torch_device="cpu")
            found[adapter] = loaded._asdict()
    except Exception as error:
        if not lenient or (found and "size mismatch" in str(error)):
            way = f"{error!s:.400}. Save it again, whole and with its own config."
            raise ModelLoadError(f"{adapter if found else folder}: {way}") from error
    for where, keys in found.items():
        wrong_shape = {key for key, *_ in keys.get("mismatched_keys", ())}
        missing = {*keys["missing_keys"]} | wrong_shape
        unused = {k for k in keys["unexpected_keys"] if not _OTHER_PARTS.search(k)}
        if missing or unused:
            lost = f"Missing: {_shorten(missing)}; not used: {_shorten(unused)}."
            way = "from inside a compiled or adapted model (_orig_mod., base_model.)."
            why = f"the weights in {where} do not fit the model. {lost}"
            raise ModelLoadError(f"{why} Save them again: {way}")
    for where in filter(None, (folder, adapter)):
        _check_values(where)


def _drop_renamed(keys: dict[str, Any]) -> None:
    """Leave what is missing with its whole layer: quantised ones have other names."""
    unused = [key.split(".") for key in keys["unexpected_keys"]]
    layers = {".".join(parts[:n]) for parts in unused for n in range(1, len(parts))}
    missing = {k for k in keys["missing_keys"] if k.rpartition(".")[0] not in layers}
    keys.update(missing_keys=missing, unexpected_keys=(), mismatched_keys=())


def _check_values(folder: Path) -> None:
    """Raise for integers where nothing is quantised, and for NaN in a small model."""
    from safetensors import safe_open

    files = sorted(folder.glob("*.safetensors"))
    is_small = sum(file.stat().st_size for file in files) < _SMALL
    is_plain = "quantization_config" not in read_json(folder / "config.json")
    names: list[str] = []
    for file in files:
        with safe_open(file, "pt") as tensors:
            names += tensors.keys()
            for name in tensors.keys():  # noqa: SIM118
                kind = tensors.get_slice(name).get_dtype()
                if is_small and kind in ("F64", "F32", "F16", "BF16"):
                    # A sum of large numbers in 16 bits can be NaN; the maximum is not.
                    found = tensors.get_tensor(name)
                    wrong = found.numel() and not all(map(isfinite, found.aminmax()))
                else:
                    wrong = is_plain and kind[0] in "IU" and name.endswith(".weight")
                if wrong:
                    why = f"holds NaN, infinity or, not quantised, integers ({kind})"
                    raise ModelLoadError(f"{name} in {file} {why}: save it again.")
    has_embedding = re.search(r"embed|wte|base_model", " ".join(names))
    if not has_embedding and any(name.endswith("lm_head.weight") for name in names):
        raise ModelLoadError(f"{folder} has only a head: save it by save_pretrained.")


def _shorten(names: set[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (", ".join(sorted(names)[:5]) or "none") + more
