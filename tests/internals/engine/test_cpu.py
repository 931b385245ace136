from pathlib import Path

import pytest
from child import run_child

from helpers.internals.engine.cpu import extension_is_unusable

CPU_BUILD = ["_C.abi3.so", "_C_AVX2.abi3.so", "_C_AVX512.abi3.so"]


@pytest.mark.parametrize(
    ("files", "flags", "unusable"),
    [
        (CPU_BUILD, "avx2", True),
        (CPU_BUILD, "avx2 avx512f", True),
        (CPU_BUILD, "avx2 avx512f avx512_bf16", False),
        (["_C.abi3.so"], "avx2", False),  # CUDA: the GPU's kernels are in it.
        ([], "avx2", False),
    ],
)
def test_which_extension_a_cpu_can_not_run(
    files: list[str], flags: str, unusable: bool
) -> None:
    cpuinfo = f"processor : 0\nflags\t\t: fpu {flags} sse\nbugs : none\n"
    assert extension_is_unusable(files, cpuinfo) is unusable


def test_an_import_of_unsloth_that_fails_says_why(tmp_path: Path) -> None:
    """Not "cannot import name", as an AttributeError in it became."""
    found = run_child("broken_unsloth", str(tmp_path))
    assert found["kind"] == "EngineUnavailableError"
    assert "no attribute 'an_attribute_it_lacks'" in found["said"]


def test_a_locale_of_ascii_is_named_as_the_cause(tmp_path: Path) -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    found = run_child("broken_unsloth", str(tmp_path), **plain)
    assert "LANG=C.UTF-8" in found["said"]
