"""What a reader sees of a long step, from a kernel that really runs."""

from jupyter_client.manager import start_new_kernel

from helpers.internals.engine.stages import announced

CODE = """
import time
from IPython.utils.capture import capture_output
from helpers.internals.engine import stages
stages.FIRST_SECONDS = 0.05
with stages.announced("Loading x") as stage, capture_output():
    stage("the engine")
    time.sleep(1.5)
stages.announced("Loading x")(time.sleep)(0.2)
stages.FIRST_SECONDS = 60
with stages.announced("Quick"):
    pass
"""


def test_a_long_step_shows_its_stage_and_leaves_one_line() -> None:
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
    assert shown[0][1].startswith("Loading x, the engine ... ")
    assert shown[-1][1].startswith("Loading x: ") and "engine" not in shown[-1][1]
    assert len({transient["display_id"] for _, _, transient in shown}) == 1
    assert [text for _, text, _ in shown].count("Loading x: 0 s") == 1  # The second.


def test_outside_a_notebook_it_is_silent(capsys) -> None:
    with announced("Loading x") as stage:
        stage("the engine")
    assert capsys.readouterr() == ("", "")
