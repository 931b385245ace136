"""What a reader sees of a long and chatty step, from a kernel that really runs."""

import subprocess
import sys

import nbformat
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient

from helpers.internals.engine.quiet import announced

CODE = """
import time
from IPython.utils.capture import capture_output
from helpers.internals.engine import quiet
quiet.FIRST_SECONDS = 0.05
with quiet.announced("Loading x"), capture_output():
    time.sleep(1.5)
quiet.announced("Loading x")(time.sleep)(0.2)
quiet.FIRST_SECONDS = 60
with quiet.announced("Quick"):
    pass
"""


def test_a_long_step_leaves_one_line() -> None:
    manager, client = start_new_kernel(kernel_name="python3")
    messages = []
    try:
        client.execute_interactive(CODE, timeout=60, output_hook=messages.append)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    shown = [
        (m["msg_type"], m["content"]["data"]["text/plain"], m["content"]["transient"])
        for m in messages
        if "display_data" in m["msg_type"]
    ]
    kinds = [kind for kind, _, _ in shown]
    assert kinds[0] == "display_data" and set(kinds[1:]) == {"update_display_data"}
    assert shown[0][1].startswith("Loading x ... ")
    assert shown[-1][1].startswith("Loading x: ")
    assert len({transient["display_id"] for _, _, transient in shown}) == 1
    assert [text for _, text, _ in shown].count("Loading x: 0 s") == 1  # The second.


def test_outside_a_notebook_it_is_silent(capsys) -> None:
    with announced("Loading x"):
        pass
    assert capsys.readouterr() == ("", "")


def test_a_quiet_load_shows_no_progress_bar_in_a_notebook() -> None:
    code = """
from IPython.display import display
from helpers.internals.engine.quiet import quiet
from helpers.internals.machine.settings import Settings
with quiet(Settings()):
    display("a bar")
display("shown")
"""
    cell = nbformat.v4.new_code_cell(code)
    NotebookClient(nbformat.v4.new_notebook(cells=[cell])).execute()
    assert [output.data["text/plain"] for output in cell.outputs] == ["'shown'"]


START_UP = """
from helpers.internals.engine.quiet import announced, quiet
from helpers.internals.machine.settings import Settings
with announced("Importing x"), quiet(Settings()):
    ready = True
"""


def test_the_start_up_code_of_a_kernel_has_no_cell_to_show_it_in() -> None:
    manager, client = start_new_kernel(
        kernel_name="python3",
        extra_arguments=[f"--IPKernelApp.code_to_run={START_UP}"],
    )
    try:
        reply = client.execute("assert ready", reply=True, timeout=60)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert reply["content"]["status"] == "ok"


def test_a_process_without_stdout_and_stderr_can_be_quiet(tmp_path) -> None:
    program = START_UP + "import sys\nsys.stderr.write('logged')\n"
    program += "open(sys.argv[1], 'w').write('done')\n"
    file = tmp_path / "said.txt"
    command = '"$0" -c "$1" "$2" >&- 2>&-'
    arguments = ["bash", "-c", command, sys.executable, program, str(file)]
    subprocess.run(arguments, check=True)
    assert file.read_text() == "done"
