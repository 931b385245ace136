"""Controls, and what they leave when the kernel ends: see also test_jupyterlab.py."""

from pathlib import Path

import ipywidgets
import nbformat
import pytest
from child import find_child
from ipywidgets.widgets.widget import _instances
from jupyter_client.manager import start_new_kernel

from helpers.widgets import action_button, close_widget, parameter_controls

ROOT = Path(__file__).resolve().parents[2]
VIEW = "application/vnd.jupyter.widget-view+json"


def test_a_control_is_a_named_number_and_a_slider_that_move_together() -> None:
    controls = parameter_controls({"top_k": 20, "min_p": 0.1})
    assert list(controls) == ["top_k", "min_p"]
    for name, (box, slider) in controls.items():
        assert box.description == name and box.value == slider.value
        assert box.tabbable is not False and slider.tabbable is not False
    box, slider = controls["top_k"]
    slider.value = 5
    assert box.value == 5
    box.value = 500  # Beyond the highest.
    assert slider.value == box.value == slider.max
    box, slider = parameter_controls({"top_p": 0.95})["top_p"]
    slider.value = 0.9500000000000001  # As the page sends it.
    assert box.value == 0.95
    with pytest.raises(ValueError, match="no control for max_tokens"):
        parameter_controls({"max_tokens": 5})


def test_a_button_shows_what_its_action_gave_or_why_it_failed() -> None:
    seen = []

    def action() -> str:
        seen.append((button.disabled, output.value))
        if len(seen) == 2:
            raise ValueError("no <engine>")
        return "<b>done</b>"

    button, output = action_button("Sample", "Draw", action)
    button.click()
    assert seen == [(True, '<p role="status">Sample ...</p>')]
    assert "<b>done</b>" in output.value and not button.disabled
    button.click()
    assert "ValueError: no &lt;engine&gt;" in output.value and not button.disabled


def test_a_button_says_what_to_do_when_the_model_is_gone() -> None:
    button, output = action_button("Sample", "Draw", lambda: released_model.generate())  # noqa: F821
    button.click()
    assert "released_model is gone" in output.value
    assert "from the top" in output.value


def test_a_closed_widget_leaves_none_of_its_parts_in_the_kernel() -> None:
    before = dict(_instances)
    folded = ipywidgets.Accordion([ipywidgets.HTML("x")])
    box = ipywidgets.VBox([ipywidgets.Button(), ipywidgets.HBox([folded])])
    assert len(_instances) > len(before) + 5  # Layouts and styles are widgets as well.
    close_widget(box)
    assert _instances == before


def test_a_widget_goes_out_with_a_page_and_a_text_and_ends_as_these() -> None:
    """In a kernel that no Jupyter server owns, such as VS Code starts."""
    source = find_child("browser_widgets").read_text(encoding="utf-8")
    manager, client = start_new_kernel(kernel_name="python3")
    messages = []
    try:
        for cell in source.split("# %%\n")[1:]:
            client.execute_interactive(
                cell, timeout=60, allow_stdin=False, output_hook=messages.append
            )
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    shown, ended = {}, {}
    for message in messages:
        if "display_data" in message["msg_type"]:
            name = message["content"]["transient"]["display_id"]
            update = message["msg_type"] == "update_display_data"
            (ended if update else shown)[name] = set(message["content"]["data"])
    assert list(shown.values()) == 2 * [{VIEW, "text/html", "text/plain"}]
    assert ended == dict.fromkeys(shown, {"text/html", "text/plain"})


def test_what_is_committed_needs_no_widget() -> None:
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            for output in cell.get("outputs", []):
                assert VIEW not in output.get("data", {}), (path.name, cell.id)
                assert "text/plain" in output.get("data", {"text/plain": 0}), cell.id
