"""Hold back what the engines print, unless LOG_LEVEL asks for it."""

import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from ..machine.settings import Settings


def is_loud(settings: Settings) -> bool:
    return settings.log_level in ("debug", "info")


def quieten_packages() -> None:
    """Silence what the imported engines write past `quiet`, or after it."""
    import transformers.utils.logging

    for package in ("bitsandbytes", "torch", "transformers", "unsloth", "vllm"):
        warnings.filterwarnings("ignore", module=rf"{package}(\.|$)")
    logging.getLogger("torch").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()


class _Mutable:
    """A stand-in for stdout or stderr that can be muted.

    Log handlers made while it is muted keep it, so it must speak again afterwards.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.muted: io.StringIO | None = io.StringIO()

    def write(self, text: str) -> int:
        return (self._stream if self.muted is None else self.muted).write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _no_displays() -> AbstractContextManager:
    """Hold back what is displayed in a notebook: progress bars are widgets there."""
    ipython = sys.modules.get("IPython")
    if ipython is None or ipython.get_ipython() is None:
        return nullcontext()
    from IPython.utils.capture import capture_output

    return capture_output(stdout=False, stderr=False, display=True)


@contextmanager
def quiet(settings: Settings) -> Iterator[None]:
    """Hold back what the engines print, at the level of Python and of the process.

    An error that gets out carries the last of it as a note.
    """
    if is_loud(settings):
        yield
        return
    streams = sys.stdout, sys.stderr
    for stream in streams:
        stream.flush()
    with tempfile.TemporaryFile() as file, warnings.catch_warnings(), _no_displays():
        warnings.simplefilter("ignore")
        saved = os.dup(1), os.dup(2)
        mutables = tuple(_Mutable(stream) for stream in streams)
        sys.stdout, sys.stderr = mutables
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield
        except Exception as error:
            file.seek(0)
            held = file.read().decode(errors="replace")
            held += "".join(mutable.muted.getvalue() for mutable in mutables)
            if held.strip():
                error.add_note(f"Printed before that:\n{held.strip()[-2000:]}")
            raise
        finally:
            for number, copy in enumerate(saved, start=1):
                os.dup2(copy, number)
                os.close(copy)
            for mutable in mutables:
                mutable.muted = None
            sys.stdout, sys.stderr = streams
