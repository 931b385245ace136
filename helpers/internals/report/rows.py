"""The form of a report: rows, shown as text, as HTML and as JSON.

In go the rows, out comes one table. It knows nothing of what is checked.
"""

import json
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ...charts import Panel, show_table


class Check(NamedTuple):
    """One row: the thing checked, what was found, and the command that fixes it."""

    name: str
    detail: str
    status: Literal["ok", "warning", "failed"] = "ok"
    fix: str = ""

    def unless(
        self, fits: object, problem: str, fix: str, status: str = "failed"
    ) -> "Check":
        """Return the row with a problem, unless it `fits` or has one already."""
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
        rows = [row._asdict() for row in self.rows]
        return json.dumps({"ok": self.ok, "rows": rows}, indent=2)

    def __repr__(self) -> str:
        return self._table().text

    def _repr_html_(self) -> str:
        return self._table()._repr_html_()

    def _table(self) -> Panel:
        rows, statuses = [], [row.status for row in self.rows]
        for name, detail, status, fix in self.rows:
            found = f"{detail}\n-> {fix}" if fix else detail
            rows.append({"status": status, "check": name, "found": found})
        bad = [one for one in ("failed", "warning") if one in statuses]
        counts = ", ".join(f"{statuses.count(one)} {one}" for one in bad)
        return show_table(rows, caption=f"{len(rows)} checks: {counts or 'all ok'}.")
