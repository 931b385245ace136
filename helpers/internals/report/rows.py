"""The form of a report on this machine: rows, as text, as HTML and as JSON."""

import json
from dataclasses import asdict, dataclass
from html import escape
from typing import Literal

from ...charts import html_table


@dataclass(frozen=True)
class Check:
    """One row: what was looked at, how it is, and what fixes it if it is not ok."""

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
        """Whether nothing failed; warnings do not count."""
        return all(row.status != "failed" for row in self.rows)

    def to_json(self) -> str:
        """The report for a machine: `{"ok": ..., "rows": [...]}`."""
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
        rows = [
            (
                escape(row.name),
                row.status if row.status == "ok" else f"<b>{row.status}</b>",
                _found(row),
            )
            for row in self.rows
        ]
        return f"{html_table(heads, rows)}<p>{escape(self._summary())}</p>"


def _found(row: Check) -> str:
    """What fixes it stands below: a narrow window has no room for one more column."""
    texts = [escape(text) for text in (row.detail, row.fix) if text]
    return "<br>&rarr; ".join(texts).replace("/", "/<wbr>")  # Where a path may break.
