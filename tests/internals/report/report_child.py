"""Print the report as JSON, with so many seconds for an import: `report.py SECONDS`."""

import sys

from helpers.internals.report import environment, package_rows

package_rows.TIMEOUT_S = float(sys.argv[1])
print(environment.check_environment().to_json())
