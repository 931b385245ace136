"""Controls in a notebook, and what they leave on the page when the kernel ends."""

from collections.abc import Callable, Mapping
from html import escape
from typing import Any

import ipywidgets
from IPython.display import display

from .charts import Panel
from .kernel import at_shutdown

# Lowest, highest and step of each sampling parameter's control; vLLM refuses top_p = 0.
_RANGES = {
    "temperature": (0.0, 2.0, 0.05),
    "top_k": (0, 100, 1),
    "top_p": (0.05, 1.0, 0.05),
    "min_p": (0.0, 0.5, 0.01),
}
_ENDED = "The kernel has ended: run the notebook again to use the controls."


def show_widget(widget: ipywidgets.Widget, fallback: Panel) -> Any:
    """Display `widget`, with `fallback` where no widgets run; returns the handle.

    Update it as soon as there is nothing more to control: where JupyterLab finds a
    widget without its kernel, it shows an error and not the fallback.
    """
    texts = {"text/html": fallback._repr_html_(), "text/plain": fallback.text}
    return display({**widget._repr_mimebundle_(), **texts}, raw=True, display_id=True)


def close_widget(widget: ipywidgets.Widget) -> None:
    """Close it and all that it is made of: a kernel keeps each widget until then."""
    for value in widget.trait_values().values():
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, ipywidgets.Widget):
                close_widget(part)
    widget.close()


def show_controls(widget: ipywidgets.Widget, panel: Callable[[], Panel]) -> None:
    """Display `widget`, with `panel()` where no widgets run and as the kernel ends."""
    handle = show_widget(widget, panel())

    def leave_panel() -> None:
        last = panel()
        handle.update(Panel(f"{last.html}<p><em>{_ENDED}</em></p>", last.text))

    if handle:  # None outside a notebook.
        at_shutdown(leave_panel)


def parameter_controls(start: Mapping[str, float]) -> dict[str, tuple[Any, Any]]:
    """For each sampling parameter a number box and a slider that move together.

    Tab goes from one to the next, the arrow keys change a value. The box carries the
    name, since a slider of ipywidgets has no label that a screen reader finds. `start`
    has the values to begin with; raises `ValueError` for one that has no control.
    """
    if unknown := sorted(set(start) - set(_RANGES)):
        raise ValueError(
            f"no control for {', '.join(unknown)}; there are {', '.join(_RANGES)}"
        )
    controls = {}
    for name, value in start.items():
        low, high, step = _RANGES[name]
        whole = isinstance(step, int)
        box_class = ipywidgets.BoundedIntText if whole else ipywidgets.BoundedFloatText
        slider_class = ipywidgets.IntSlider if whole else ipywidgets.FloatSlider
        limits = {"value": value, "min": low, "max": high, "step": step}
        box = box_class(
            **limits,
            description=name,
            style={"description_width": "6.5em"},
            layout={"width": "13em"},
        )
        slider = slider_class(
            **limits, readout=False, tooltip=name, layout={"width": "20em"}
        )
        # A slider adds up steps from its lowest value: 0.95 is 0.9500000000000001.
        ipywidgets.link((slider, "value"), (box, "value"), transform=(_tidy, _tidy))
        controls[name] = box, slider
    return controls


def _tidy(value: float) -> float:
    return round(value, 4)


def action_button(
    description: str, tooltip: str, action: Callable[[], str]
) -> tuple[ipywidgets.Button, ipywidgets.HTML]:
    """A button, and the place for the HTML that `action` returns at each press.

    While it runs the button is disabled. What it raises is shown in that place too: a
    widget's error ends in a log that nobody reads.
    """
    button = ipywidgets.Button(description=description, tooltip=tooltip)
    output = ipywidgets.HTML()

    def press(_: object) -> None:
        button.disabled = True
        output.value = f'<p role="status">{escape(description)} ...</p>'
        try:
            html = action()
        except NameError as error:  # A later cell deleted it: the model, mostly.
            html = escape(
                f"{error.name or error} is gone, as a model is after release_model: "
                "run the notebook's cells from the top to use this again."
            )
        except Exception as error:
            html = escape(f"{type(error).__name__}: {error}")
        finally:
            button.disabled = False
        output.value = f'<div role="status">{html}</div>'

    button.on_click(press)
    return button, output
