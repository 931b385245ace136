"""Print the report as JSON: `report.py SECONDS`."""

import sys

from helpers.internals.report.environment import check_environment

print(check_environment(timeout_s=float(sys.argv[1])).to_json())
