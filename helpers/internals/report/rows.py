"""The form of a report: rows, shown as text, as HTML and as JSON; commands that fix.

In go the rows, out comes one table. It knows nothing of what is checked.
"""

import json
import sys
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Literal

from ...charts import html_table
from ..machine.versions import ROOT


@dataclass(frozen=True)
class Check:
    """One row: the thing checked, its state, and the command or step that fixes it."""

    name: str
    status: Literal["ok", "warning", "failed"]
    detail: str
    fix: str = ""


@dataclass(frozen=True)
class EnvironmentReport:
    """All rows; a table in a notebook, text in a terminal."""

    rows: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """True if nothing failed; warnings do not count."""
        return all(row.status != "failed" for row in self.rows)

    def to_json(self) -> str:
        """Write the report for a program: `{"ok": ..., "rows": [...]}`."""
        rows = [asdict(row) for row in self.rows]
        return json.dumps({"ok": self.ok, "rows": rows}, indent=2)

    def __str__(self) -> str:
        width = max((len(row.name) for row in self.rows), default=0)
        lines = []
        for row in self.rows:
            lines.append(f"{row.status:8} {row.name:{width}}  {row.detail}")
            if row.fix:
                lines.append(f"{'':8} {'':{width}}  -> {row.fix}")
        return "\n".join([*lines, "", self._summary()])

    __repr__ = __str__

    def _summary(self) -> str:
        statuses = [row.status for row in self.rows]
        counts = [f"{statuses.count(s)} {s}" for s in ("failed", "warning")]
        bad = ", ".join(count for count in counts if not count.startswith("0"))
        return f"{len(self.rows)} checks: {bad or 'all ok'}."

    def _repr_html_(self) -> str:
        heads = ["check", "status", "found, and what fixes it"]
        rows = []
        for row in self.rows:
            status = row.status if row.status == "ok" else f"<b>{row.status}</b>"
            # The fix goes below: a narrow window has no room for a fourth column.
            found = "<br>&rarr; ".join(escape(t) for t in (row.detail, row.fix) if t)
            rows.append((escape(row.name), status, found.replace("/", "/<wbr>")))
        return f"{html_table(heads, *rows)}<p>{escape(self._summary())}</p>"


def pip_command(arguments: str) -> str:
    """Write the command that installs something into this environment."""
    return f"{'.venv/bin/' * _in_project()}python -m pip install {arguments}"


def rebuild_command(device: str) -> str:
    """Write the command that installs all packages again, as they are pinned."""
    if device == "cpu":
        return "make clean setup"
    if _in_project():
        return "make setup DEVICE=cuda"
    return "python -m pip install --force-reinstall -r requirements/gpu.txt"


def _in_project() -> bool:
    return Path(sys.prefix).resolve() == ROOT / ".venv"
