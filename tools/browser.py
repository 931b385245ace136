"""Find Chromium, and have it when tests need it: `python -m tools.browser` installs it.

Playwright's own browsers can't be downloaded everywhere, so the system's is driven.
"""

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PACKAGES = ("chromium", "fonts-dejavu")
HOW_TO_GET_CHROMIUM = (
    "no Chromium was found, and the tests in a browser need one. On Debian or Ubuntu: "
    f"`sudo apt install {' '.join(PACKAGES)}`; Google Chrome serves as well."
)


def find_chromium() -> str | None:
    """Return the path of a Chromium or Chrome; None if there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def launch(driver: "Playwright") -> "Browser":
    """Start the Chromium that was found, without a window."""
    # Chromium's sandbox refuses root, which is who runs in a container.
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    return driver.chromium.launch(executable_path=find_chromium(), args=options)


def main() -> None:
    """Install Chromium where it is missing and this user may; else say how to."""
    if find_chromium():
        return
    if os.geteuid() == 0 and shutil.which("apt-get"):
        print("Installing Chromium for the tests in a browser ...", flush=True)
        quiet = {"stdout": subprocess.DEVNULL, "env": os.environ | {"LC_ALL": "C"}}
        quiet["env"]["DEBIAN_FRONTEND"] = "noninteractive"
        apt = ["apt-get", "-qq", "-o", "Acquire::Retries=1"]
        subprocess.run([*apt, "update"], check=False, **quiet)
        install = [*apt, "install", "--yes", "--no-install-recommends", *PACKAGES]
        subprocess.run(install, check=False, **quiet)
    if not find_chromium():
        print(f"make test: {HOW_TO_GET_CHROMIUM}", file=sys.stderr)


if __name__ == "__main__":
    main()
