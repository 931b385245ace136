"""Create .venv from cpu.txt or gpu.txt: `python requirements/install.py [--plan]`.

`choose_kind` says which of the two, by the variable DEVICE, the .venv that is there or
the card; `find_python` with which Python. `--plan` prints both and ends.
Run by `make setup` with any Python and nothing installed, so it uses the standard
library alone and syntax that Python 3.6 reads: they must get as far as the message.
"""

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / ".ready"
KIND = VENV / ".kind"  # "cpu" or "gpu"; the Makefile reads it.
PINS = {kind: ROOT / "requirements" / f"{kind}.txt" for kind in ("cpu", "gpu")}
KINDS = {"cpu": "cpu", "cuda": "gpu"}  # by DEVICE
VENV_PYTHON = VENV / "bin" / "python"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# GB of free disk: the environment, and as much again for pip's downloads and cache.
DISK_GB = {"cpu": 5, "gpu": 25}
# The oldest and the newest Python that there is a wheel of each package for.
PYTHONS = {"cpu": ((3, 11), (3, 13)), "gpu": ((3, 12), (3, 12))}
# The oldest driver and compute capability that CUDA 13 runs on
# (docs.nvidia.com/cuda/cuda-toolkit-release-notes).
DRIVER, CAPABILITY = 580, 7.5
# The oldest C library that there is a wheel of each package for (llguidance's is last).
GLIBC = (2, 31)
DURATION = {
    "cpu": "3 to 5 minutes, 1 GB to download",
    "gpu": "10 minutes or more, 5 GB to download",
}
OURS = "fast-inference-notebooks"


def fail(message):
    """End with the message on stderr and exit status 1."""
    sys.exit("make setup: " + message)


def choose_kind():
    """Return "cpu" or "gpu", and why: DEVICE, what .venv has, or else the card."""
    device = os.environ.get("DEVICE", "").lower()
    if device in KINDS:
        return KINDS[device], f"DEVICE={device}"
    if KIND.exists():
        return KIND.read_text(), "as in .venv; DEVICE=cpu or DEVICE=cuda changes it"
    query = "--query-gpu=name,driver_version,compute_cap"
    command = ["nvidia-smi", query, "--format=csv,noheader"]
    try:
        shown = subprocess.check_output(command, stderr=subprocess.STDOUT, timeout=60)
    except FileNotFoundError:
        return "cpu", "no NVIDIA driver here (nvidia-smi is not on the PATH)"
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "output", None) or b"").decode(errors="replace").strip()
        return "cpu", f"nvidia-smi finds no card ({said or error})"
    cards = [line.split(", ") for line in shown.decode().strip().splitlines()]
    if not cards or len(cards[0]) != 3:
        return "cpu", "nvidia-smi finds no card"
    name, driver, capability = cards[0]
    if int(driver.split(".")[0]) < DRIVER:
        return "cpu", (
            f"the driver of {name}, {driver}, is too old for CUDA 13: update it to "
            f"{DRIVER} or later, then `make setup DEVICE=cuda`"
        )
    if float(capability) < CAPABILITY:
        return "cpu", f"{name} is older than CUDA 13 runs on ({capability})"
    return "gpu", f"{name}, driver {driver}; DEVICE=cpu takes the other ones"


def find_python(kind):
    """Return PYTHON, or the first on the PATH with wheels of all pins, or this one."""
    (major, oldest), (_, newest) = PYTHONS[kind]
    known = [f"python{major}.{minor}" for minor in range(oldest, newest + 1)]
    given = os.environ.get("PYTHON")
    for python in [given] if given else known:
        try:  # One of pyenv may be there, and not run.
            subprocess.check_call([python, "-c", ""], stderr=subprocess.DEVNULL)
            return python
        except (OSError, subprocess.CalledProcessError) as error:
            if given:
                fail(f"PYTHON={given} does not run: {error}")
    return sys.executable


def version_of(python):
    """Return the version of a Python as (major, minor)."""
    program = "import sys; print(*sys.version_info[:2])"
    return tuple(map(int, subprocess.check_output([python, "-c", program]).split()))


def is_known(kind, version):
    """Whether the pins of `kind` have wheels for a version, as (major, minor)."""
    oldest, newest = PYTHONS[kind]
    return oldest <= version <= newest


def check_python(kind, version):
    """End with a message unless the pins fit `version`, as (major, minor)."""
    if is_known(kind, version):
        return
    oldest = PYTHONS[kind][0]
    if kind == "gpu":
        needed = "Python 3.12 is needed for the GPU's pins (DEVICE=cpu: 3.11 or later)"
    elif version < oldest:
        needed = "Python 3.11 or later is needed"
    else:
        needed = (
            "Python 3.11, 3.12 or 3.13 is needed, not every package has a later one"
        )
    fail(
        f"{needed}; this one is {version[0]}.{version[1]}. Install it and run "
        f"`make setup PYTHON=/path/to/python{oldest[0]}.{oldest[1]}`."
    )


def check_platform(system=None, machine=None, glibc=None):
    """End with a message unless this is what the pins are for: see GLIBC."""
    system, machine = system or platform.system(), machine or platform.machine()
    if (system, machine.lower()) not in [("Linux", "x86_64"), ("Linux", "amd64")]:
        fail(
            f"the pins are for Linux on x86-64, this is {system} on {machine}. On "
            "Windows use WSL 2, on a Mac a Linux x86-64 container."
        )
    glibc = glibc or platform.libc_ver()[1]
    if [int(part) for part in re.findall(r"\d+", glibc)][:2] < list(GLIBC):
        fail(
            f"glibc {GLIBC[0]}.{GLIBC[1]} or later is needed, this is {glibc or 'none'}"
            ". Ubuntu 20.04, Debian 11 and later ones have it."
        )


def check_venv_module(python):
    """End with a message if this Python can't create environments with pip."""
    # Debian's python3 has venv, but leaves ensurepip out.
    if subprocess.call(
        [python, "-c", "import ensurepip, venv"], stderr=subprocess.DEVNULL
    ):
        version = ".".join(map(str, version_of(python)))
        fail(
            f"{python} has no venv module. On Debian or Ubuntu: `sudo apt install "
            f"python{version}-venv`."
        )


def check_disk(kind, free_bytes=None):
    """End with a message if fewer GB are free than pins of `kind` (cpu, gpu) need."""
    if free_bytes is None:
        free_bytes = shutil.disk_usage(str(ROOT)).free
    if free_bytes < DISK_GB[kind] * 1e9:
        fail(
            f"{DISK_GB[kind]} GB of free disk are needed, {free_bytes / 1e9:.1f} GB "
            "are free in this folder."
        )


def stamp(pins):
    """What .venv/.ready holds once an environment with these pins is complete."""
    digest = hashlib.sha256(str(ROOT).encode())  # helpers is installed by its path.
    for path in (pins, ROOT / "pyproject.toml"):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def canonical(name):
    """A distribution's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def is_usable(kind):
    """Whether .venv can be brought up to date, or has to be made anew.

    Its Python must be there, in the folder that it was made in. It must hold pins of
    the same kind: the two builds of vLLM, and of torch, install the same files, so that
    neither can be put in the other's place.
    """
    if not (VENV_PYTHON.exists() and KIND.exists() and KIND.read_text() == kind):
        return False
    config = (VENV / "pyvenv.cfg").read_text()
    version = re.search(r"^version = (\d+)\.(\d+)", config, re.MULTILINE)
    fits = version and is_known(kind, tuple(map(int, version.groups())))
    return bool(fits) and str(VENV) in config


def pip(*arguments):
    """Run pip of .venv quietly; end with a message if it fails."""
    command = [str(VENV_PYTHON), "-m", "pip", "--disable-pip-version-check", "-qq"]
    if subprocess.call(command + list(arguments)):
        fail(
            "pip failed, see above. Nothing outside .venv was changed; when the cause "
            "is mended (most often the network), run it again: it goes on from here."
        )


def remove_unpinned(pins):
    """Uninstall what an earlier version of the pins brought and this one does not."""
    listed = subprocess.check_output(
        [str(VENV_PYTHON), "-m", "pip", "list", "--format=json"],
        stderr=subprocess.DEVNULL,
    )
    kept = {canonical(line.split("==")[0]) for line in pins.read_text().splitlines()}
    kept |= {"pip", OURS}
    extra = [p["name"] for p in json.loads(listed) if canonical(p["name"]) not in kept]
    if extra:
        pip("uninstall", "--yes", *extra)


def make_smollm2():
    """Fetch the model of helpers/internals/engine/smollm2.py; go on where that fails.

    The first load of it tries again.
    """
    module = "helpers.internals.engine.smollm2"
    program = f"from {module} import make_smollm2; make_smollm2()"
    done = subprocess.run([str(VENV_PYTHON), "-c", program], stderr=subprocess.PIPE)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        print(f"smollm2 will be fetched when it is first loaded. {lines[-1]}")


def install(kind, python):
    """Create or update .venv so that it holds exactly the pins, helpers and smollm2."""
    pins = PINS[kind]
    check_python(kind, version_of(python))
    check_platform()
    check_venv_module(python)
    check_disk(kind)
    print(f"Setting up .venv, once: {DURATION[kind]}.", flush=True)
    if STAMP.exists():
        STAMP.unlink()
    if not is_usable(kind):
        subprocess.check_call([python, "-m", "venv", "--clear", str(VENV)])
        KIND.write_text(kind)
    torch = re.search(r"^torch==\S+\+cpu$", pins.read_text(), re.MULTILINE)
    if torch:
        # On its own: with this index on the next command, each package would ask it.
        pip("install", "--no-deps", "--extra-index-url", TORCH_CPU_INDEX, torch.group())
    # Compiled when first imported: most of these modules never are.
    only_wheels = ("--only-binary", ":all:")  # A source would need compilers.
    pip("install", "--no-deps", "--no-compile", *only_wheels, "-r", str(pins))
    remove_unpinned(pins)
    pip("install", "--no-deps", "--no-build-isolation", "-e", str(ROOT))
    make_smollm2()
    STAMP.write_text(stamp(pins))


def main():
    os.chdir(str(ROOT))
    kind, why = choose_kind()
    if STAMP.exists() and STAMP.read_text() == stamp(PINS[kind]) and len(sys.argv) < 2:
        return
    python = find_python(kind)
    print(f"requirements/{PINS[kind].name}, {python}: {why}.", flush=True)
    if "--plan" not in sys.argv:
        install(kind, python)


if __name__ == "__main__":
    main()
