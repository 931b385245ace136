"""`python -m helpers`: print what `check_environment` finds, exit 1 on a failure."""

import argparse
import sys

from helpers import check_environment

if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m helpers", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options, report = parser.parse_args(), check_environment()
    print(report.to_json() if options.json else report)
    sys.exit(not report.ok)
