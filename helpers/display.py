"""Draw what the other modules return: thinking, live text, tables and charts.

Everything here is also readable where no JavaScript runs: a page of a gallery, a
notebook on a code host, a terminal.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from .markers import unwrap_tokenizer
from .tables import Panel
from .thinking import ThinkingResult, ThinkingStream

# Lowest, highest and step of each sampling parameter's control; vLLM refuses top_p = 0.
_RANGES = {
    "temperature": (0.0, 2.0, 0.05),
    "top_k": (0, 100, 1),
    "top_p": (0.05, 1.0, 0.05),
    "min_p": (0.0, 0.5, 0.01),
}
_CARD = "flex:1 1 16em;border:1px solid #8888;border-radius:6px;padding:0.6em 0.9em"
_THINKS_ON = "(still thinking)"  # In the answer's place until there is one.
_TEXT = "white-space:pre-wrap;overflow-wrap:anywhere"


def show_thinking(
    results: ThinkingResult | Iterable[ThinkingResult],
    *,
    prompt: str | None = None,
    titles: Sequence[str] | None = None,
    unfold: bool = False,
) -> Panel:
    """Parsed completions beside each other, each with its thinking folded away.

    `results` is one `ThinkingResult` or several of them; `titles` names each.
    `unfold=True` opens the thinking. Raises `ValueError` if the titles are not as many
    as the results.
    """
    # A ThinkingResult is a tuple itself.
    several = [results] if isinstance(results, ThinkingResult) else list(results)
    names = [""] * len(several) if titles is None else list(titles)
    if len(names) != len(several):
        raise ValueError(f"{len(names)} titles for {len(several)} results")
    cards = [
        _html_card(result, name, unfold)
        for result, name in zip(several, names, strict=True)
    ]
    texts = [
        _text_card(result, name) for result, name in zip(several, names, strict=True)
    ]
    question = f"<p><b>{escape(prompt)}</b></p>" if prompt else ""
    html = f'{question}<div style="display:flex;flex-wrap:wrap;gap:0.8em">'
    text = [prompt] if prompt else []
    return Panel(html + "".join(cards) + "</div>", "\n\n".join(text + texts))


def _answer(result: ThinkingResult) -> str:
    if result.response is None:
        return f"(no answer) {result.hint}"
    return result.response


def _html_card(result: ThinkingResult, title: str, unfold: bool) -> str:
    heading = f"<b>{escape(title)}</b>" if title else ""
    opened = " open" if unfold or result.response is None else ""
    state = "" if result.complete else ", unfinished"
    thinking = (
        f'<details{opened}><summary style="cursor:pointer;opacity:0.75">Thinking '
        f"({result.thinking_tokens} tokens{state})</summary>"
        f'<div style="{_TEXT};opacity:0.75;font-size:0.9em">'
        f"{escape(result.thinking)}</div></details>"
    )
    answer = f'<div style="{_TEXT};margin-top:0.5em">{escape(_answer(result))}</div>'
    return f'<div style="{_CARD}">{heading}{thinking}{answer}</div>'


def _text_card(result: ThinkingResult, title: str) -> str:
    lines = [f"[{title}]"] if title else []
    lines += [f"Thinking ({result.thinking_tokens} tokens):", result.thinking]
    return "\n".join([*lines, "Answer:", _answer(result)])


class LiveResponse:
    """Watch a model write: pass it to `model.generate(..., streamer=LiveResponse(t))`.

    It has the two methods that transformers asks of a streamer, `put` and `end`. What
    it has drawn last stays in the notebook, so the saved page shows the whole answer.
    Only for one prompt at a time, as transformers' own streamers.
    """

    # Drawing costs more than a token of a small model; the eye needs no more.
    DRAW_EVERY = 8

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.result: ThinkingResult | None = None  # Once `end` was called.
        self._stream: ThinkingStream | None = None
        self._texts = ["", ""]  # The thinking, the answer.
        self._tokens = [0, 0]
        self._ended = False  # By the model, and not for want of tokens.
        self._handle: Any = None

    def put(self, token_ids: Any) -> None:
        """Take the prompt at the first call, new tokens at all later ones.

        Raises `ValueError` for a batch of more than one prompt.
        """
        ids = token_ids.tolist() if hasattr(token_ids, "tolist") else list(token_ids)
        if ids and isinstance(ids[0], list):
            if len(ids) > 1:
                raise ValueError("LiveResponse shows one prompt at a time")
            ids = ids[0]
        if self._stream is None:
            self._stream = ThinkingStream(self.tokenizer, prompt_token_ids=ids)
            return
        delta = self._stream.feed(ids)
        if delta.moved:  # What looked like the answer was thinking.
            self._texts, self._tokens = (
                ["".join(self._texts), ""],
                [sum(self._tokens), 0],
            )
        self._texts[0] += delta.thinking
        self._texts[1] += delta.response
        self._tokens[0 if self._stream.is_thinking else 1] += len(ids)
        self._ended = ids[-1:] == [unwrap_tokenizer(self.tokenizer).eos_token_id]
        if sum(self._tokens) % self.DRAW_EVERY == 0:
            response = _THINKS_ON if self._stream.is_thinking else self._texts[1]
            self._draw(ThinkingResult(self._texts[0], response, *self._tokens))

    def end(self) -> None:
        """Draw the finished response, and keep it as `result`."""
        if self._stream is not None:
            self.result = self._stream.finish("stop" if self._ended else None)
            self._draw(self.result)

    def _draw(self, result: ThinkingResult) -> None:
        from IPython.display import display

        panel = show_thinking(result, unfold=True)
        if self._handle is None:
            self._handle = display(panel, display_id=True)
        elif self._handle:
            self._handle.update(panel)


def parameter_controls(start: Mapping[str, float]) -> dict[str, tuple[Any, Any]]:
    """For each sampling parameter a number box and a slider that move together.

    Tab goes from one to the next, the arrow keys change a value. The box carries the
    name, since a slider of ipywidgets has no label that a screen reader finds. `start`
    has the values to begin with; raises `ValueError` for one that has no control.
    """
    import ipywidgets

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
) -> tuple[Any, Any]:
    """A button, and the place for the HTML that `action` returns at each press.

    While it runs the button is disabled. What it raises is shown in that place too: a
    widget's error ends in a log that nobody reads.
    """
    import ipywidgets

    button = ipywidgets.Button(description=description, tooltip=tooltip)
    output = ipywidgets.HTML()

    def press(_: object) -> None:
        button.disabled = True
        output.value = f'<p role="status">{escape(description)} ...</p>'
        try:
            html = action()
        except Exception as error:
            html = escape(f"{type(error).__name__}: {error}")
        finally:
            button.disabled = False
        output.value = f'<div role="status">{html}</div>'

    button.on_click(press)
    return button, output


class SamplingExplorer:
    """Sampling parameters side by side, with sliders where JavaScript runs.

    `generate(parameters)` gets a dict such as {"temperature": 0.6, "top_p": 0.95} and
    returns a `ThinkingResult`. The presets that it is opened with are generated at
    once and stay in the saved notebook; each press of the button adds one more.
    """

    def __init__(
        self,
        generate: Callable[[dict[str, float]], ThinkingResult],
        presets: Mapping[str, Mapping[str, float]],
        *,
        prompt: str | None = None,
    ) -> None:
        self.generate = generate
        self.prompt = prompt
        self.results: dict[str, ThinkingResult] = {}
        for name, values in presets.items():
            self.run(dict(values), title=name)
        self._handle: Any = None

    def run(self, values: dict[str, float], title: str | None = None) -> ThinkingResult:
        """Generate with `values`, keep the result under `title` (numbered if taken)."""
        name = title or ", ".join(f"{key} {value:g}" for key, value in values.items())
        names = itertools.chain([name], (f"{name} ({n})" for n in itertools.count(2)))
        name = next(name for name in names if name not in self.results)
        self.results[name] = self.generate(values)
        return self.results[name]

    def panel(self) -> Panel:
        """All results so far beside each other."""
        return show_thinking(
            self.results.values(), prompt=self.prompt, titles=list(self.results)
        )

    def controls(self) -> Any:
        """The controls, and the button that adds an answer with their values."""
        import ipywidgets

        start = {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
        controls = parameter_controls(start)

        def generate() -> str:
            self.run({name: box.value for name, (box, _) in controls.items()})
            if self._handle:
                self._handle.update(self.panel())
            return ""

        button, status = action_button(
            "Generate", "Add an answer with these parameters", generate
        )
        rows = [ipywidgets.HBox(pair) for pair in controls.values()]
        return ipywidgets.VBox([*rows, button, status])

    def _ipython_display_(self) -> None:
        from IPython.display import display

        bundle = self.controls()._repr_mimebundle_()
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        hint = "Sliders appear here while the notebook runs in JupyterLab."
        display({**data, "text/plain": hint}, raw=True)
        self._handle = display(self.panel(), display_id=True)
