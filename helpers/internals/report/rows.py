"""The form of a report: rows go in, out comes a table as text, as HTML and as JSON."""

import json
from typing import Literal, NamedTuple, Self

from ...charts import Panel, show_table


class Check(NamedTuple):
    """One row: the thing checked, what was found, and the command that fixes it."""

    name: str
    detail: str
    status: Literal["ok", "warning", "failed"] = "ok"
    fix: str = ""

    def unless(self, fits: object, flaw: str, fix: str, status: str = "failed") -> Self:
        """Return the row with a flaw, unless it `fits` or has one already."""
        failed = Check(self.name, self.detail + flaw, status, fix)
        return self if fits or self.status != "ok" else failed


class EnvironmentReport(Panel):
    """All `rows`, and `ok` if none failed; a table in a notebook, else text."""

    def __init__(self, rows: list[Check]) -> None:
        statuses, table = [row.status for row in rows], []
        for name, detail, status, fix in rows:
            found = f"{detail}\n-> {fix}" if fix else detail
            table.append({"status": status, "check": name, "found": found})
        bad = [one for one in ("failed", "warning") if one in statuses]
        counts = ", ".join(f"{statuses.count(one)} {one}" for one in bad)
        panel = show_table(table, caption=f"{len(rows)} checks: {counts or 'all ok'}.")
        super().__init__(panel.html, panel.text)
        self.rows, self.ok = rows, "failed" not in statuses

    def to_json(self) -> str:
        """Write the report for a program: `{"ok": ..., "rows": [...]}`."""
        rows = [row._asdict() for row in self.rows]
        return json.dumps({"ok": self.ok, "rows": rows}, indent=2)
