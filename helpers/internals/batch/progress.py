"""The bar of a batch: prompts, new tokens per second, and how many were cut short.

In go results, out come the same results. Shown as a widget in a notebook that is open,
as text in one that was saved, and in a terminal.
"""

from collections.abc import Iterable, Iterator
from typing import Any


def with_bar(
    results: Iterable[Any], count: int, done: int, shown: bool
) -> Iterator[Any]:
    """Pass results on, under a bar that tells tokens per second and cut ones."""
    if not shown:
        yield from results
        return
    from tqdm.auto import tqdm
    from tqdm.notebook import tqdm_notebook

    in_notebook = issubclass(tqdm, tqdm_notebook)
    own = {"display": False} if in_notebook else {}
    bar = tqdm(total=count, initial=done, desc="batch", unit=" prompts", **own)
    handle, tokens, truncated = None, 0, 0
    if in_notebook:
        from IPython.display import display

        handle = display(bar.container, display_id=True)
    try:
        for result in results:
            tokens, truncated = tokens + result.tokens, truncated + result.truncated
            speed = tokens / max(bar.format_dict["elapsed"], 1e-9)
            bar.set_postfix_str(
                f"{speed:,.0f} tokens/s, {truncated} truncated", refresh=False
            )
            bar.update()
            yield result
    finally:
        bar.close()
        if handle:  # A saved notebook shows text, but no live widget.
            handle.update({"text/plain": repr(bar.container)}, raw=True)
