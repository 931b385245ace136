"""Watch a model write: thinking and answer as they come, and a button that stops it."""

import threading
import time
from html import escape
from typing import Any

import ipywidgets
from IPython import get_ipython

from .charts import TEXT_STYLE, Panel, show_thinking
from .internals.thinking.families import unwrap_tokenizer
from .thinking import ThinkingResult, ThinkingStream
from .widgets import close_widget, show_widget


class LiveResponse:
    """One response while it is written, drawn into the cell that runs.

    For one prompt at a time, as transformers' own streamers: pass it to `generate` as
    `streamer=live`, or `put` the prompt's tokens and then those of each step of vLLM's
    engine, and call `end`. The thinking is folded, with its last line below. The stop
    button raises KeyboardInterrupt at the next token, as the one of the toolbar does.
    With the cell at the latest the response ends, and what there is of it stays in the
    notebook, as a page that needs no kernel.
    """

    DRAW_SECONDS = 0.1  # The eye needs no more, and drawing takes time from the model.

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.result: ThinkingResult | None = None  # Once `end` was called.
        self._stop = threading.Event()  # Set from the thread that hears the button.
        self._stream: ThinkingStream | None = None
        self._ended = False  # By the model, and not for want of tokens.
        self._view: _View | None = None
        self._drawn = 0.0

    def put(self, token_ids: Any) -> None:
        """Take the prompt at the first call, new tokens at all later ones.

        Raises `ValueError` for a batch of more than one prompt, and KeyboardInterrupt
        once the stop button was pressed.
        """
        if self._stop.is_set():
            self.end()
            raise KeyboardInterrupt
        ids = token_ids.tolist() if hasattr(token_ids, "tolist") else list(token_ids)
        if ids and isinstance(ids[0], list):
            if len(ids) > 1:
                raise ValueError("LiveResponse shows one prompt at a time")
            ids = ids[0]
        if self._stream is None:
            self._stream = ThinkingStream(self.tokenizer, prompt_token_ids=ids)
            self._view = _View.open(self._stop)
            if self._view:
                get_ipython().events.register("post_run_cell", self._end_with_cell)
            return
        self._stream.feed(ids)
        self._ended = ids[-1:] == [unwrap_tokenizer(self.tokenizer).eos_token_id]
        if self._view and time.monotonic() - self._drawn > self.DRAW_SECONDS:
            self._view.draw(self._stream.result())
            self._drawn = time.monotonic()

    def end(self) -> None:
        """Keep the finished response as `result`, and leave it on the page.

        Its `finish_reason` is named as vLLM's: "abort" where someone stopped it, "stop"
        where the model ended it, else None.
        """
        if self._stream is None or self.result is not None:
            return
        reason = "stop" if self._ended else None
        reason = "abort" if self._stop.is_set() else reason
        self.result = self._stream.result(reason)
        panel = show_thinking(self.result)
        if self._view:
            self._view.close(panel)
        else:
            print(panel)

    def _end_with_cell(self, _: object) -> None:
        """Whatever ended the cell: nothing comes after an interrupt."""
        get_ipython().events.unregister("post_run_cell", self._end_with_cell)
        self._stop.set()
        self.end()


class _View:
    """The widgets that are on the page while a response is written."""

    @classmethod
    def open(cls, stop: threading.Event) -> "_View | None":
        """Show it, or None where no notebook runs this."""
        return cls(stop) if hasattr(get_ipython(), "kernel") else None

    def __init__(self, stop: threading.Event) -> None:
        self.status = ipywidgets.HTML()
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
        top = ipywidgets.HBox([button, self.status])
        children = [top, self.folded, self.last_line, self.answer]
        waiting = Panel("<p>Writing ...</p>", "Writing ...")
        self._box = ipywidgets.VBox(children)
        self._handle = show_widget(self._box, waiting)
        # ipykernel 7.4 hears a widget in the thread that made it, which is busy now.
        vars(button.comm).pop("_reply_subshell_id", None)

    def draw(self, result: ThinkingResult) -> None:
        """Show the two texts and the number of their tokens."""
        # A character whose last bytes are still to come ends in these.
        thinking, answer = ((text or "").rstrip("\ufffd") for text in result)
        tokens = result.thinking_tokens + result.response_tokens
        self.status.value = f'<span role="status">{tokens:,} tokens</span>'
        self.folded.set_title(0, f"Thinking ({result.thinking_tokens:,} tokens)")
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
