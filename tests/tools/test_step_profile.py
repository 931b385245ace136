"""Where a step's time goes: measured on this machine, and split by kernels' names."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tools import step_profile
from tools.step_profile import GAPS, OTHER, PARTS, part_of, prefill_share, split


def test_the_parts_of_a_real_step_add_up(tmp_path: Path) -> None:
    out = tmp_path / "steps.json"
    command = [sys.executable, "-m", "tools.step_profile", "--batch-sizes", "1,3"]
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    recorded = json.loads(out.read_text())
    assert recorded["device"].startswith("CPU") and set(recorded["steps"]) == {"1", "3"}
    for step in recorded["steps"].values():
        assert sum(step["parts_ms"].values()) == pytest.approx(
            step["step_ms"], rel=0.01
        )
        assert min(step["parts_ms"][part] for part in ("matrices", "attention")) > 0
        assert 0 <= step["prefill_share"] < 0.5 and step["named"] > 0.95

    # Split again, after a kernel was renamed to what no pattern knows.
    kernels = recorded["steps"]["1"]["kernels_ms"]
    kernels["mystery"] = kernels.pop(max(kernels, key=kernels.get)) + 1000
    recorded["steps"]["1"]["step_ms"] += 1000
    out.write_text(json.dumps(recorded))
    assert step_profile.main(["--again", str(out)]) == 1
    again = json.loads(out.read_text())["steps"]["1"]
    assert again["parts_ms"][OTHER] > 1000 and again["named"] < 0.5


@pytest.mark.parametrize(
    ("kernel", "part"),
    [
        ("nvjet_sm90_tst_64x8_64x16_4x1_v_bz_splitK_TNT", "matrices"),
        ("void cutlass::device_kernel<flash::FlashAttnFwdSm90<Mainloop>>", "attention"),
        ("void vllm::reshape_and_cache_flash_kernel<bf16>", "norms"),
        ("triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_0", "norms"),
        ("void at::native::reduce_kernel<512, 1, at::native::ArgMaxOps>", "sampling"),
        ("Memcpy DtoH (Device -> Pinned)", "copies"),
        ("_C::onednn_mm", "matrices"),
        ("something_new", OTHER),
    ],
)
def test_kernels_are_told_apart_by_name(kernel: str, part: str) -> None:
    assert part_of(kernel).startswith(part)


def test_what_no_kernel_takes_is_a_gap() -> None:
    parts = split({"gemm": 2.0, "flash": 1.0}, step_ms=4.0)
    assert parts["matrices"] == 2.0 and parts["attention"] == 1.0
    assert parts[GAPS] == 1.0 and set(parts) == {*PARTS, GAPS}


def test_prefill_is_what_comes_before_the_first_step_of_decoding() -> None:
    times = [(0.5, False), (1.0, True), (1.5, True), (2.0, True)]
    assert prefill_share(times, 0.25) == 0.375
    assert prefill_share(times, 1.25) == 0.0  # Other programs held the steps up.
