"""Show what a model thought and answered, readable where no JavaScript runs as well."""

from collections.abc import Iterable, Sequence
from html import escape

from .charts import Panel
from .thinking import ThinkingResult

_CARD = "flex:1 1 16em;border:1px solid #8888;border-radius:6px;padding:0.6em 0.9em"
TEXT_STYLE = "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.4"


def show_thinking(
    results: ThinkingResult | Iterable[ThinkingResult],
    *,
    prompt: str | None = None,
    titles: Sequence[str] | None = None,
) -> Panel:
    """Parsed completions beside each other, each with its thinking folded away.

    `results` is one `ThinkingResult` or several of them; `titles` names each. Raises
    `ValueError` if they are not as many as the results.
    """
    # A ThinkingResult is a tuple itself.
    several = [results] if isinstance(results, ThinkingResult) else list(results)
    names = [""] * len(several) if titles is None else list(titles)
    if len(names) != len(several):
        raise ValueError(f"{len(names)} titles for {len(several)} results")
    cards = "".join(map(_html_card, several, names))
    question = f"<p><b>{escape(prompt)}</b></p>" if prompt else ""
    html = f'{question}<div style="display:flex;flex-wrap:wrap;gap:0.8em">{cards}</div>'
    texts = [prompt] if prompt else []
    return Panel(html, "\n\n".join([*texts, *map(_text_card, several, names)]))


def _answer(result: ThinkingResult) -> str:
    if result.response is None:
        return f"(no answer) {result.hint}"
    stopped = result.finish_reason == "abort"  # vLLM's word for it
    return f"{result.response} (stopped)" if stopped else result.response


def _html_card(result: ThinkingResult, title: str) -> str:
    heading = f"<b>{escape(title)}</b>" if title else ""
    opened, state = ("", "") if result.complete else (" open", ", unfinished")
    thinking = (
        f'<details{opened}><summary style="cursor:pointer;opacity:0.75">Thinking '
        f"({result.thinking_tokens} tokens{state})</summary>"
        f'<div style="{TEXT_STYLE};opacity:0.75;font-size:0.9em">'
        f"{escape(result.thinking)}</div></details>"
    )
    answer = (
        f'<div style="{TEXT_STYLE};margin-top:0.5em">{escape(_answer(result))}</div>'
    )
    return f'<div style="{_CARD}">{heading}{thinking}{answer}</div>'


def _text_card(result: ThinkingResult, title: str) -> str:
    lines = [f"[{title}]"] if title else []
    lines += [f"Thinking ({result.thinking_tokens} tokens):", result.thinking]
    return "\n".join([*lines, "Answer:", _answer(result)])
