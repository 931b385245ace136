"""`python -m helpers` where the system is odd: `odd_system.py directory` or `name`."""

import os
import pwd
import runpy
import sys


def no_such_user(number: int) -> None:
    """As `pwd.getpwuid` for a user that a container was given by number."""
    raise KeyError(f"getpwuid(): uid not found: {number}")


oddity = sys.argv.pop()
if oddity == "directory":  # It has been deleted.
    os.mkdir("gone")
    os.chdir("gone")
    os.rmdir("../gone")
if oddity == "name":  # The user has no home either.
    pwd.getpwuid = no_such_user
    os.environ.pop("HOME", None)
runpy.run_module("helpers", run_name="__main__")
