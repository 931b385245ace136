"""Serve a model to other programs: vLLM's OpenAI server, beside this kernel.

A model's name goes in; out come the address and the key of a server that is ready. It
listens on this machine only and ends with the kernel, however the kernel ends.
"""

import os
import secrets
import socket
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from .internals.engine.cpu import CPU_VARIABLES
from .internals.engine.hub import find_snapshot
from .internals.engine.keeper import KeptProcess
from .internals.engine.plan import resolve_model_path, resolve_settings
from .internals.engine.quiet import announced
from .internals.engine.vllm_command import vllm_command
from .internals.engine.weights import is_quantised
from .internals.machine.settings import Settings, load_settings
from .models import whole_name

HOST = "127.0.0.1"  # This machine alone.


class Server(KeptProcess, AbstractContextManager):
    """A `vllm serve`; `stop()` or the end of a `with` block ends it.

    `url` and `key` are for `OpenAI(base_url=..., api_key=...)`, `model` is the name to
    ask for, `log` the file of what the server prints.
    """

    def __init__(self, model: str | os.PathLike, port: int, **options: Any) -> None:
        asked = load_settings().model_copy(update={"model_name": os.fspath(model)})
        settings = resolve_settings(asked)
        settings.apply()
        with socket.create_server((HOST, port)) as free:
            port = free.getsockname()[1]
        self.model = Path(model).name if Path(model).is_dir() else str(model)
        self.key, self.url = secrets.token_urlsafe(), f"http://{HOST}:{port}/v1"
        own = {"host": HOST, "port": port, "served_model_name": self.model, **options}
        command = serve_command(model, settings, **own)
        on_cpu = CPU_VARIABLES if settings.device == "cpu" else {}
        own = {"VLLM_API_KEY": self.key}  # A flag shows in ps.
        own |= {"VLLM_LOGGING_LEVEL": "INFO", "VLLM_NO_USAGE_STATS": "1"}
        super().__init__(command, **on_cpu | os.environ | own)

    def __repr__(self) -> str:
        return f"a server for {self.model} at {self.url}"

    def __exit__(self, *_: object) -> None:
        self.stop()


def serve(model: str | os.PathLike, *, port: int = 0, **options: Any) -> Server:
    """Start `vllm serve` for any name that loads, and return it when it is ready.

    Port 0 is a free one. `options` are vLLM's flags (`reasoning_parser="qwen3"`), and
    win over those that stand for what `FastLanguageModel` does. Raises `OSError` if the
    port is in use, `ModelLoadError` with the end of the log if the server ends.
    """
    import httpx

    server = Server(model, port, **options)
    health = server.url.replace("/v1", "/health")
    try:
        with announced(f"Starting a server for {server.model}"):
            while True:
                server.check()
                with suppress(httpx.TransportError):
                    if httpx.get(health, trust_env=False).is_success:
                        return server
                time.sleep(0.2)
    except BaseException:
        server.stop()
        raise


def serve_command(
    model: str | os.PathLike, settings: Settings, **options: Any
) -> list[str]:
    """Return a server's command; `options` win over what `settings`, resolved, say."""
    path, on_cpu = resolve_model_path(model), settings.device == "cpu"
    path = whole_name(path) if on_cpu else path
    folder = Path(find_snapshot(path) or path)
    flags: dict[str, Any] = {"max_model_len": settings.max_seq_length}
    if on_cpu:  # Nothing is quantised there, or compiled.
        flags |= {"dtype": "float32", "enforce_eager": True}
    else:
        flags["gpu_memory_utilization"] = settings.gpu_memory_utilization
        if settings.load_in_4bit and not is_quantised(folder):
            flags["quantization"] = "bitsandbytes"
    return vllm_command("serve", str(folder), **flags | options)
