"""Open JupyterLab on the collection: `python -m tools.lab [OPTIONS OF JUPYTERLAB]`.

It shows the start page, the files on the left and a table of contents on the right,
and asks nothing. What a reader rearranges is kept in the environment, not in the tree.
Its kernels say in words what a cell lacks that is run by itself
(helpers/internals/report/lone_cell.py).
"""

import os
import sys
from pathlib import Path

from jupyterlab_server.workspaces_handler import WorkspacesManager

CONFIG = Path(__file__).resolve().parent / "lab_config"
START = "lab/tree/notebooks/00_start_here.md"


def prepare(environment: dict[str, str]) -> None:
    """Set what JupyterLab reads: our settings, and a layout unless there is one."""
    for variable in ("JUPYTER_CONFIG_PATH", "JUPYTER_PATH"):
        others = environment.get(variable)
        paths = [str(CONFIG), *([others] if others else [])]
        environment[variable] = os.pathsep.join(paths)
    folder = environment.setdefault(
        "JUPYTERLAB_WORKSPACES_DIR",
        str(Path(sys.prefix) / "share" / "jupyter" / "lab" / "workspaces"),
    )
    workspaces = WorkspacesManager(folder)
    if not workspaces.load("default").get("data"):
        workspaces.save("default", (CONFIG / "workspace.json").read_text())


def main() -> None:
    """Become JupyterLab, in the folder that this was started in."""
    prepare(os.environ)
    command = [sys.executable, "-m", "jupyterlab", f"--LabApp.default_url=/{START}"]
    if os.geteuid() == 0:  # as in a container, where JupyterLab refuses else
        command.append("--allow-root")
    os.execv(sys.executable, [*command, *sys.argv[1:]])


if __name__ == "__main__":
    main()
