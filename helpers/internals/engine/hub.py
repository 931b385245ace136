"""Find a model's folder in the hub's cache, or ask the hub for the model.

In goes the name of a repository; out comes its folder, None, or the hub's own error.
It knows nothing of what the name stands for: `plan` does.
"""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...models import whole_name
from .exceptions import ModelLoadError
from .weights import is_whole

_ANSWER_TIMEOUT_S = 4.0  # to connect, and again to answer


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
        if isinstance(file, str) and is_whole(Path(file).parent):
            return Path(file).parent
    return None


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

    if os.environ.get("UNSLOTH_USE_MODELSCOPE", "0") not in ("", "0"):
        raise ModelLoadError(
            "UNSLOTH_USE_MODELSCOPE is set, and this loader asks the Hub alone: "
            f"`modelscope download {repository} --local_dir FOLDER`, then "
            "MODEL_NAME=FOLDER."
        )
    url = hf_hub_url(repository, "config.json", revision=revision)
    with contextlib.suppress(EntryNotFoundError):  # As of a repository of an adapter.
        get_hf_file_metadata(url, token=token, timeout=_ANSWER_TIMEOUT_S)
