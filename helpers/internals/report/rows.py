"""The form of a report: rows, shown as text, as HTML and as JSON.

In go the rows, out comes one table. It knows nothing of what is checked.
"""

import json
from dataclasses import asdict, dataclass
from typing import Literal

from ...charts import Panel, show_table

Status = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Check:
    """One row: the thing checked, what was found, and the command that fixes it."""

    name: str
    detail: str
    status: Status = "ok"
    fix: str = ""

    def unless(
        self, fits: object, problem: str, fix: str, status: Status = "failed"
    ) -> "Check":
        """Add a problem to the detail, unless it `fits` or has a problem already."""
        if fits or self.status != "ok":
            return self
        return Check(self.name, self.detail + problem, status, fix)


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
        return json.dumps({"ok": self.ok} | asdict(self), indent=2)

    def __repr__(self) -> str:
        return self._table().text

    def _repr_html_(self) -> str:
        return self._table()._repr_html_()

    def _table(self) -> Panel:
        statuses = [row.status for row in self.rows]
        bad = [
            f"{statuses.count(s)} {s}" for s in ("failed", "warning") if s in statuses
        ]
        return show_table(
            [
                {
                    "status": row.status,
                    "check": row.name,
                    "found": row.detail + (f"\n-> {row.fix}" if row.fix else ""),
                }
                for row in self.rows
            ],
            caption=f"{len(self.rows)} checks: {', '.join(bad) or 'all ok'}.",
        )
