"""From a model's name to its files: what is on this machine, what the hub says."""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...models import (
    MODELS,
    SMOLLM2,
    TINY_THINKER,
    UnknownModelError,
    cached_name,
    get_model,
    whole_name,
)
from .errors import ModelLoadError, ModelNotFoundError
from .smollm2 import make_smollm2

# A hub name as people paste it: a whole address, perhaps of a file.
_ADDRESS = re.compile(
    r"(?:(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/|hf://)"
    r"(?!(?:datasets|spaces)/)(?P<name>[\w.-]+/[\w.-]+)"
    r"(?:/(?:tree|blob|resolve)/(?P<revision>[^/?#]+))?.*"
)
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
# Every model's repository has one of these.
_TOKENIZERS = ["tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json"]
_TOKENIZERS += ["vocab.txt", "spiece.model"]
_ANSWER_TIMEOUT_S = 4.0  # to connect, and again to answer


def resolve_model_path(model_name: str | os.PathLike, make: bool = True) -> str:
    """What to load for a name: a directory, a supported model's path, a hub path.

    An address on the hub counts as the name in it. The files of smollm2 are made if
    they are missing, unless `make` is False. Raises `UnknownModelError` for a
    name that is none of these and `ModelNotFoundError` for a directory (it begins with
    ".", "/" or "~") that is not there.
    """
    name = os.fspath(model_name).strip()
    if Path(name).expanduser().is_dir():
        return str(Path(name).expanduser())
    if name.startswith((".", "/", "~")):
        raise ModelNotFoundError(f"there is no directory {name}.")
    if address := _ADDRESS.fullmatch(name):
        name = address["name"]
        if address["revision"] not in (None, "main"):
            raise ModelNotFoundError(
                f"{model_name} is a revision: pass {name!r} as the model's name, and "
                f"revision={address['revision']!r} beside it."
            )
    name = name.rstrip("/")
    try:
        path = get_model(name).path
    except UnknownModelError:
        if _HUB_NAME.fullmatch(name):
            return name  # Not in our table, but perhaps on the hub.
        raise
    if path == MODELS[SMOLLM2].path and make:
        make_smollm2()
    if path == MODELS[TINY_THINKER].path and not Path(path).is_dir():
        raise ModelNotFoundError(
            f"the files of {TINY_THINKER} are missing from this installation. "
            "`git checkout -- helpers/tiny_thinker/model` brings them back, "
            "`python -m tools.tiny_thinker.train` makes them anew."
        )
    return path


def adapter_config(path: str) -> dict | None:
    """What a folder says of the adapter in it; None for any other path."""
    try:
        return json.loads(Path(path, "adapter_config.json").read_text("utf-8"))
    except FileNotFoundError:
        return None


def adapter_base(path: str) -> str | None:
    """The path of the model that an adapter's folder is for; None for others."""
    config = adapter_config(path)
    return config and resolve_model_path(config["base_model_name_or_path"])


# --- What is here ---------------------------------------------------------------------


def find_folder(path: str, **which: str | None) -> Path | None:
    """The folder of a path whose weights are all on this machine, or None.

    Those of the repository that Unsloth may take in its place count too: for a model in
    16 bits one that is quantised, and the other way round.
    """
    whole = whole_name(path)
    names = (path, whole, f"{whole}-unsloth-bnb-4bit", f"{whole}-bnb-4bit")
    found = (find_snapshot(name, **which) for name in names)
    return next((folder for folder in found if folder), None)


def find_snapshot(
    repository: str, revision: str | None = None, cache_dir: str | None = None
) -> Path | None:
    """The folder of one repository in the hub's cache, None where a file is missing.

    A directory is its own.
    """
    from huggingface_hub import try_to_load_from_cache

    if Path(repository).is_dir() or Path(repository).is_absolute():
        return Path(repository) if Path(repository).is_dir() else None
    for name in ("config.json", "adapter_config.json"):
        file = try_to_load_from_cache(
            repository, name, cache_dir=cache_dir, revision=revision
        )
        if isinstance(file, str) and _is_whole(Path(file).parent):
            return Path(file).parent
    return None


def _is_whole(folder: Path) -> bool:
    """Whether a download went through: weights come late in it, the tokenizer last."""
    weights = _weights(folder)
    last = _TOKENIZERS if (folder / "config.json").exists() else ["adapter_config.json"]
    return (
        bool(weights)
        and all(file.exists() for file in weights)
        and any((folder / name).exists() for name in last)
    )


def _weights(folder: Path) -> set[Path]:
    """The files that hold a folder's weights, whether they are there or not."""
    for index in folder.glob("*.index.json"):
        with contextlib.suppress(ValueError, KeyError):
            names = json.loads(index.read_text("utf-8"))["weight_map"].values()
            return {folder / name for name in names}
    return {*folder.glob("*.safetensors"), *folder.glob("*.bin")}


def hub_cache() -> Path:
    """Where the hub's files are kept; as huggingface_hub/constants.py finds it."""
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"
    )
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(os.path.expandvars(cache or os.path.join(home, "hub"))).expanduser()


def link_models(cache: Path) -> None:
    """Link what is in `cache` into the hub's cache, where unsloth has moved that.

    It does so as it is imported, where the cache can't be written.
    """
    if cache == hub_cache():
        return
    for folder in cache.glob("models--*/snapshots/*"):
        model = folder.parent.parent.absolute()
        if _is_whole(folder):
            with contextlib.suppress(OSError):  # It is linked already, mostly.
                (hub_cache() / model.name).symlink_to(model)


def check_files(folder: Path) -> None:
    """Raise `ModelLoadError` for the first file of a model that is not whole."""
    from safetensors import SafetensorError, safe_open

    if not _weights(folder):
        raise ModelNotFoundError(f"{folder} holds no weights (*.safetensors, *.bin).")
    for file in sorted(folder.iterdir()):
        if file.suffix not in (".safetensors", ".bin", ".json", ".model"):
            continue
        with open(file, "rb") as stream:
            if stream.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise ModelLoadError(
                    f"{file} is a pointer of Git LFS, not the file itself. `git lfs "
                    f"install && git lfs pull` in {folder} fetches it."
                )
        if file.suffix != ".safetensors":
            continue
        try:
            with safe_open(file, "numpy"):
                pass
        except SafetensorError as error:
            how = "Copy or download it again."
            if name := cached_name(str(file)):
                how = (
                    f"`hf download {name} {file.name} --force-download` does it again."
                )
            raise ModelLoadError(f"{file} is cut short. {how}") from error


# --- What the hub says ----------------------------------------------------------------


@contextmanager
def hub_switched_off() -> Iterator[None]:
    """Let nothing ask the hub meanwhile: not even who is there, or for a newer file."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def ask_hub(
    repository: str, revision: str | None = None, token: str | bool | None = None
) -> None:
    """Ask the hub once for a model, and raise what it answers if that is no yes.

    The libraries that load models ask for one file after the other, several times each
    and with longer and longer pauses, before they say anything.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    url = hf_hub_url(repository, "config.json", revision=revision)
    with contextlib.suppress(EntryNotFoundError):  # As of a repository of an adapter.
        get_hf_file_metadata(url, token=token, timeout=_ANSWER_TIMEOUT_S)
