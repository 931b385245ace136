"""Print the report as JSON: `report.py SECONDS MODULE...`, these imported before."""

import importlib
import sys

from helpers.internals.report.environment import check_environment

for name in sys.argv[2:]:
    importlib.import_module(name)
print(check_environment(timeout_s=float(sys.argv[1])).to_json())
