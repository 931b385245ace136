"""Find a model's folder in the Hub's cache, or ask the Hub if it has the model.

In goes the name of a repository; out comes its folder, None, or the Hub's own error.
"""

import contextlib
import os
from pathlib import Path
from typing import Any

from ...models import whole_name
from .exceptions import ModelLoadError
from .weights import check_files, require_files


def find_folder(path: str, adapter: Path | None = None, **which: Any) -> Path | None:
    """Find a folder on this machine that has all weights of a model, or None.

    Unsloth may load another repository in the place of the one that is named: a
    quantised one for a model in 16 bits, or the reverse. Those count too. Raises
    `ModelLoadError` for a damaged file in this folder or in the adapter's.
    """
    whole = whole_name(path)
    names = (path, whole, f"{whole}-unsloth-bnb-4bit", f"{whole}-bnb-4bit")
    folders = (find_snapshot(name, **which) for name in names)
    folder = next(filter(None, folders), None)
    for part in filter(None, (adapter, folder)):
        check_files(part)
    return folder


def find_snapshot(repository: str, **which: Any) -> Path | None:
    """Find the folder of one repository, or directory; None if a file is missing."""
    from huggingface_hub import snapshot_download

    if Path(repository).is_dir():
        return Path(repository)
    # Not in the cache, not a name of a repository, or a download that broke off.
    with contextlib.suppress(FileNotFoundError, ValueError, ModelLoadError):
        folder = Path(snapshot_download(repository, local_files_only=True, **which))
        require_files(folder)
        return folder
    return None


def ask_hub(repository: str, revision: Any = None, token: Any = None) -> None:
    """Send one request to the Hub; raise its error if the model is not available.

    The libraries that load models try each file several times before they raise it.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    if os.environ.get("UNSLOTH_USE_MODELSCOPE", "0") not in ("", "0"):
        way = f"`modelscope download {repository} --local_dir FOLDER`"
        why = "UNSLOTH_USE_MODELSCOPE is set, but models come from the Hub"
        raise ModelLoadError(f"{why}: {way}, then MODEL_NAME=FOLDER.")
    url = hf_hub_url(repository, "config.json", revision=revision)
    with contextlib.suppress(EntryNotFoundError):  # An adapter has none.
        get_hf_file_metadata(url, token=token, timeout=4.0)  # seconds
