"""Clean memory up and watch it; print which engines that imported."""

import sys

from helpers.internals.engine.release import cleanup_memory
from helpers.memory import MemoryMonitor

cleanup_memory()
with MemoryMonitor():
    pass
print([name for name in ("torch", "transformers", "vllm") if name in sys.modules])
