"""Show what a model thought and answered, readable where no JavaScript runs as well."""

from collections.abc import Iterable, Sequence
from html import escape

from .tables import Panel
from .thinking import ThinkingResult

_CARD = "flex:1 1 16em;border:1px solid #8888;border-radius:6px;padding:0.6em 0.9em"
TEXT_STYLE = "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.4"


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
    return f"{result.response} (stopped)" if _stopped(result) else result.response


def _stopped(result: ThinkingResult) -> bool:
    return result.finish_reason == "abort"  # vLLM's word for it


def _html_card(result: ThinkingResult, title: str, unfold: bool) -> str:
    heading = f"<b>{escape(title)}</b>" if title else ""
    opened = " open" if unfold or result.response is None else ""
    state = "" if result.complete else ", unfinished"
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
