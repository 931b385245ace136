import subprocess
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[2]


def test_nbmake_gives_kernels_a_standard_output_with_a_descriptor(tmp_path):
    notebook = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "", "language": ""}}
    )
    code = "import sys\nassert sys.stdout.fileno() > 0 and sys.stderr.fileno() > 0"
    notebook.cells = [nbformat.v4.new_code_cell(code)]
    path = tmp_path / "descriptor.ipynb"
    nbformat.write(notebook, path)

    def run(*options: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "pytest", "--nbmake", *options, str(path)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    done = run("-p", "conftest")
    assert done.returncode == 0, done.stdout
    assert "fileno" in run().stdout  # Without it: the reason why it is there.
