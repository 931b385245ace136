import os
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pynvml
import pytest
from child import find_child

from helpers.internals.machine.devices import (
    MIB,
    current_gpu,
    free_memory_mib,
    list_gpus,
    main_memory,
    measure_gpu_memory,
    memory_kind,
    read_driver,
)

FIRST, SECOND, THIRD = (
    "GPU-aaaa1111-0000-0000-0000-000000000000",
    "GPU-aaaa2222-0000-0000-0000-000000000000",
    "GPU-bbbb3333-0000-0000-0000-000000000000",
)
GIB = 1024 * MIB
CHILD = find_child("control_group")


@pytest.mark.parametrize(
    ("variable", "used"),
    [
        (None, [1000, 2000, 3000]),
        ("0,1,2", [1000, 2000, 3000]),
        ("2", [3000]),
        (" 2 , 0 ", [3000, 1000]),
        ("", []),
        ("-1", []),
        ("none", []),
        ("1,9,0", [2000]),  # The list ends at the first that names no GPU.
        ("1,-1,0", [2000]),
        ("1,1", []),
        (f"1,{SECOND}", []),
        (SECOND, [2000]),
        (f"{THIRD},{FIRST}", [3000, 1000]),
        ("GPU-none", []),
        ("MIG-none", []),
    ],
)
def test_visible_devices(nvml, monkeypatch, variable, used):
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert [gpu.used_mib for gpu in list_gpus()] == used
    assert measure_gpu_memory() == (used[0] if used else 0)
    assert memory_kind() == ("GPU memory" if used else "resident memory")
    assert len(list_gpus(visible=False)) == 3


def test_gpu_fields(nvml):
    first, _, third = list_gpus()
    assert (first.index, first.name, first.uuid) == (0, "Double 0", FIRST)
    assert (first.total_mib, first.free_mib) == (24_000, 23_000)
    assert third.compute_capability == (7, 5)
    assert free_memory_mib() == 23_000


def test_a_card_in_mig_mode_is_left_out_aloud(nvml):
    nvml.cards[0].in_mig_mode = True
    with pytest.warns(UserWarning, match="GPU 0 is left out: it is in MIG mode"):
        assert [gpu.index for gpu in list_gpus()] == [1, 2]


@pytest.mark.parametrize(
    "function", ["nvmlDeviceGetHandleByIndex", "nvmlDeviceGetMemoryInfo"]
)
def test_a_lost_card_leaves_the_others(nvml, monkeypatch, function):
    nvml.cards[1].errors[function] = pynvml.NVML_ERROR_GPU_IS_LOST
    assert [gpu.index for gpu in list_gpus()] == [0, 2]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,1,0")
    assert [gpu.index for gpu in list_gpus()] == [2]


def test_the_gpu_that_torch_uses_is_the_current_one(nvml, monkeypatch):
    cuda = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        current_device=lambda: 0,
        get_device_properties=lambda device: SimpleNamespace(uuid=SECOND[4:]),
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert current_gpu().uuid == SECOND


def test_driver(nvml):
    assert read_driver() == ("580.10", (13, 0), "")
    nvml.cards.clear()
    assert read_driver()[2] == ""
    assert list_gpus() == () and measure_gpu_memory() == 0


def test_no_driver(no_driver):
    assert read_driver() == ("", (0, 0), "NVML Shared Library Not Found")
    assert list_gpus() == ()
    assert measure_gpu_memory() == 0
    assert memory_kind() == "resident memory"


# --- Main memory ----------------------------------------------------------------------


@pytest.fixture
def control_group(tmp_path):
    """Write the files of one: 200 MiB in use, 50 of them given up on demand."""

    def write(folder, limit):
        group = tmp_path / "sys/fs/cgroup" / folder
        group.mkdir(parents=True, exist_ok=True)
        (group / "memory.max").write_text(f"{limit}\n")
        (group / "memory.current").write_text(f"{200 * MIB}\n")
        (group / "memory.stat").write_text(f"cache 7\ninactive_file {50 * MIB}\n")

    (tmp_path / "proc/self").mkdir(parents=True)
    return write


@pytest.mark.parametrize(
    ("lines", "groups"),
    [
        ("0::/", [("", GIB)]),
        ("0::/a/b", [("a", GIB), ("a/b", "max")]),
        ("0::/a/b", [("a", 2 * GIB), ("a/b", GIB)]),
        ("0::/of/the/host", [("", GIB)]),  # A container sees it as the top.
        ("1:cpu:/x\n0::/a", [("a", GIB)]),
    ],
)
def test_the_limit_of_a_control_group_counts(tmp_path, control_group, lines, groups):
    (tmp_path / "proc/self/cgroup").write_text(lines + "\n")
    for group in groups:
        control_group(*group)
    assert main_memory(tmp_path) == (1024, 1024 - 150)


@pytest.mark.parametrize("limit", ["max", 2**63 - 4096])
def test_no_limit_leaves_what_the_machine_has(tmp_path, control_group, limit):
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    control_group("", limit)
    assert main_memory(tmp_path)[0] == psutil.virtual_memory().total // MIB
    (tmp_path / "proc/self/cgroup").unlink()  # As where there is no Linux.
    assert main_memory(tmp_path)[0] == psutil.virtual_memory().total // MIB


def test_a_process_in_a_real_control_group():
    group, limit = f"/sys/fs/cgroup/helpers-test-{os.getpid()}", "memory.max"
    try:
        os.mkdir(group)
    except OSError:
        pytest.skip("this user can't make control groups")
    try:
        if not os.path.exists(f"{group}/{limit}"):
            pytest.skip("control groups here have no limit of memory")
        with open(f"{group}/{limit}", "w") as file:
            file.write(str(GIB))
        child = subprocess.run(
            [sys.executable, CHILD, group],
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        os.rmdir(group)
    total, available = map(int, child.stdout.split())
    assert total == 1024 and 512 < available <= 1024
