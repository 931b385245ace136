"""`python -m helpers`: print what `check_environment` finds, exit 1 on a failure."""

import argparse
import sys

from helpers.internals.report.environment import check_environment


def main() -> int:
    """Print the report; return 0 if nothing failed, else 1."""
    parser = argparse.ArgumentParser(
        "python -m helpers", description="Check that the notebooks can run here."
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args()
    report = check_environment()
    print(report.to_json() if options.json else report)
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
