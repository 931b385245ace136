"""`python -m helpers` for a user that has a number, but neither a name nor a home."""

import os
import pwd
import runpy


def no_such_user(number: int) -> None:
    """As `pwd.getpwuid` for a user that a container was given by number."""
    raise KeyError(f"getpwuid(): uid not found: {number}")


pwd.getpwuid = no_such_user
os.environ.pop("HOME", None)
runpy.run_module("helpers", run_name="__main__")
