"""`python -m helpers`: print what `check_environment` finds, exit 1 on a failure."""

import argparse
import sys


def main() -> int:
    """The command line; 0 where nothing failed, 1 otherwise."""
    parser = argparse.ArgumentParser(
        "python -m helpers", description="Check that the notebooks can run here."
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # A notebook's streams have none.
            stream.reconfigure(errors="backslashreplace")  # A terminal may be ASCII.
    try:
        from helpers.internals.report.environment import check_environment

        report = check_environment()
    except ModuleNotFoundError as error:
        print(f"{error.name} is missing. `make setup` installs it.", file=sys.stderr)
        return 1
    print(report.to_json() if options.json else report)
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
