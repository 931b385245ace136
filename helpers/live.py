"""Watch a model write: thinking and answer as they come, and a button that stops it."""

import threading
import time
from html import escape
from typing import Any

from .display import TEXT_STYLE, show_thinking
from .interrupts import stoppable
from .markers import unwrap_tokenizer
from .tables import Panel
from .thinking import ThinkingResult, ThinkingStream
from .widgets import close_widget, show_widget


class LiveResponse:
    """One response while it is written, drawn into the cell that runs.

    For `generate` of transformers it is a streamer: `model.generate(...,
    streamer=live)`; for vLLM see `stream_response`. The thinking is folded, with its
    last line below; `budget` is how many new tokens there may be (`max_tokens`), for
    the bar. Its stop button raises KeyboardInterrupt at the next token, as the one of
    the toolbar does. What was drawn last stays in the notebook, as a page that needs no
    kernel.

    For one prompt at a time, as transformers' own streamers.
    """

    DRAW_SECONDS = 0.1  # The eye needs no more, and drawing takes time from the model.

    def __init__(self, tokenizer: Any, *, budget: int | None = None) -> None:
        self.tokenizer = tokenizer
        self.budget = budget
        self.result: ThinkingResult | None = None  # Once `end` was called.
        self._stop = threading.Event()  # Set from the thread that hears the button.
        self._stream: ThinkingStream | None = None
        self._texts = ["", ""]  # The thinking, the answer.
        self._tokens = [0, 0]
        self._ended = False  # By the model, and not for want of tokens.
        self._view: _View | None = None
        self._drawn = 0.0

    @property
    def stopped(self) -> bool:
        """Whether the stop button was pressed."""
        return self._stop.is_set()

    def put(self, token_ids: Any) -> None:
        """Take the prompt at the first call, new tokens at all later ones.

        Raises `ValueError` for a batch of more than one prompt, and KeyboardInterrupt
        once the stop button was pressed.
        """
        if self.stopped:
            self.end()
            raise KeyboardInterrupt
        ids = token_ids.tolist() if hasattr(token_ids, "tolist") else list(token_ids)
        if ids and isinstance(ids[0], list):
            if len(ids) > 1:
                raise ValueError("LiveResponse shows one prompt at a time")
            ids = ids[0]
        if self._stream is None:
            self._stream = ThinkingStream(self.tokenizer, prompt_token_ids=ids)
            self._view = _View.open(self._stop, self.budget)
            return
        delta = self._stream.feed(ids)
        if delta.moved:  # What looked like the answer was thinking.
            self._texts = ["".join(self._texts), ""]
            self._tokens = [sum(self._tokens), 0]
        self._texts[0] += delta.thinking
        self._texts[1] += delta.response
        self._tokens[0 if self._stream.is_thinking else 1] += len(ids)
        self._ended = ids[-1:] == [unwrap_tokenizer(self.tokenizer).eos_token_id]
        if self._view and time.monotonic() - self._drawn > self.DRAW_SECONDS:
            self._view.draw(*self._texts, *self._tokens)
            self._drawn = time.monotonic()

    def end(self, finish_reason: str | None = None) -> None:
        """Keep the finished response as `result`, and leave it on the page.

        `finish_reason` is vLLM's: "stop", "length", or "abort" where it was stopped.
        """
        if self._stream is None or self.result is not None:
            return
        reason = finish_reason or ("stop" if self._ended else None)
        reason = "abort" if self.stopped else reason
        self.result = self._stream.finish(finish_reason=reason)
        panel = show_thinking(self.result)
        if self._view:
            self._view.close(panel)
        else:
            print(panel)


def stream_response(
    model: Any, tokenizer: Any, prompt: list[int] | str, sampling: Any
) -> ThinkingResult:
    """Generate one response and show it as it is written; the stop button ends it.

    `prompt` is formatted by the chat template, as text or as token ids. `sampling` is
    `preset(name)` for a model with vLLM's engine, and `preset(name, for_generate=True)`
    for one without. A response that was stopped is returned as far as it got; an
    interrupt of the kernel raises KeyboardInterrupt, and leaves on the page what there
    is.
    """
    if isinstance(prompt, str):
        prompt = tokenizer(text=prompt, add_special_tokens=False)["input_ids"]
    engine = getattr(model, "vllm_engine", None)
    limit = sampling.max_tokens if engine else sampling.get("max_new_tokens")
    live = LiveResponse(tokenizer, budget=limit)
    try:
        if engine:
            live.end(_stream_from_engine(engine, prompt, sampling, live))
        else:
            _stream_from_model(model, prompt, sampling, live)
    except KeyboardInterrupt:
        if not live.stopped:
            raise
    finally:
        live.end("abort")
    return live.result


def _stream_from_engine(
    engine: Any, prompt: list[int], sampling: Any, live: LiveResponse
) -> str | None:
    """Its finish_reason."""
    from vllm.sampling_params import RequestOutputKind

    core = engine.llm_engine
    sampling = sampling.clone()
    sampling.output_kind = RequestOutputKind.DELTA  # Each step gives its new tokens.
    name = f"live-{time.monotonic_ns()}"
    reason = None
    live.put(prompt)
    with stoppable(core):  # Nobody else may take a step in between.
        core.add_request(name, {"prompt_token_ids": prompt}, sampling)
        try:
            while core.has_unfinished_requests():
                for output in core.step():
                    live.put(output.outputs[0].token_ids)
                    reason = output.outputs[0].finish_reason
        finally:
            core.abort_request([name])
    return reason


def _stream_from_model(
    model: Any, prompt: list[int], sampling: dict[str, Any], live: LiveResponse
) -> None:
    import torch

    input_ids = torch.tensor([prompt], device=model.device)
    model.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        streamer=live,
        **sampling,
    )


class _View:
    """The widgets that are on the page while a response is written."""

    @classmethod
    def open(cls, stop: threading.Event, budget: int | None) -> "_View | None":
        """Show it, or None where no notebook runs this."""
        from IPython import get_ipython

        return cls(stop, budget) if hasattr(get_ipython(), "kernel") else None

    def __init__(self, stop: threading.Event, budget: int | None) -> None:
        import ipywidgets

        self.budget = budget
        self.status = ipywidgets.HTML()
        self.bar = ipywidgets.IntProgress(max=budget or 1)
        self.bar.layout.display = None if budget else "none"
        self.thinking = ipywidgets.HTML()
        self.folded = ipywidgets.Accordion([self.thinking], titles=["Thinking"])
        self.last_line = ipywidgets.HTML()
        self.answer = ipywidgets.HTML()
        button = ipywidgets.Button(
            description="Stop", icon="stop", tooltip="Stop writing, and keep the rest"
        )

        # JupyterLab delivers this while the cell runs, by a subshell of the kernel.
        def press(_: object) -> None:
            button.disabled = True
            stop.set()

        button.on_click(press)
        top = ipywidgets.HBox([button, self.bar, self.status])
        children = [top, self.folded, self.last_line, self.answer]
        waiting = Panel("<p>Writing ...</p>", "Writing ...")
        self._box = ipywidgets.VBox(children)
        self._handle = show_widget(self._box, waiting)
        # ipykernel 7.4 hears a widget in the thread that made it, which is busy now.
        vars(button.comm).pop("_reply_subshell_id", None)

    def draw(self, thinking: str, answer: str, thought: int, answered: int) -> None:
        """Show what there is: two texts, and how many tokens each has."""
        so_far = f"{thought + answered:,}"
        of = f" of at most {self.budget:,}" if self.budget else ""
        self.status.value = f'<span role="status">{so_far}{of} tokens</span>'
        self.bar.value = min(thought + answered, self.bar.max)
        self.folded.set_title(0, f"Thinking ({thought:,} tokens)")
        self.thinking.value = _html(thinking, faint=True)
        lines = thinking.strip().splitlines() if not answer else []
        self.last_line.value = _html(lines[-1] if lines else "", faint=True)
        self.answer.value = _html(answer)

    def close(self, panel: Panel) -> None:
        """Put the finished response in the place of the widgets."""
        self._handle.update(panel)
        close_widget(self._box)


def _html(text: str, faint: bool = False) -> str:
    style = f"{TEXT_STYLE};opacity:0.75" if faint else TEXT_STYLE
    return f'<div class="mathjax_ignore" style="{style}">{escape(text)}</div>'
