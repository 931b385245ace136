"""Say in words what a cell lacks that is run by itself in a fresh kernel.

An extension of IPython, which `make lab` switches on: tools/lab_config/kernels.
"""

from typing import Any

HINT = "This kernel does not know it. A cell above makes it: "
HINT += "Run > Run All Above Selected Cell, then this cell again."


def load_ipython_extension(shell: Any) -> None:
    """Have `shell` add `HINT` to every NameError of a cell."""
    shell.set_custom_exc((NameError,), _show_with_hint)


def _show_with_hint(shell: Any, kind: type, error: Any, tb: Any, **rest: Any) -> None:
    if type(error) is NameError:  # An UnboundLocalError is a bug in the cell.
        error.add_note(HINT)
    shell.showtraceback((kind, error, tb), **rest)
