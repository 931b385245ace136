"""A process that is kept leaves nothing behind, whatever ends it."""

import json
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest
from child import find_child

from helpers.internals.engine.exceptions import ModelLoadError
from helpers.internals.engine.keeper import KeptProcess

LONGEST_S = 60


@pytest.fixture
def owner() -> Iterator[subprocess.Popen]:
    """A process that keeps a family which ignores SIGTERM."""
    command = [sys.executable, str(find_child("family")), "keeper"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def started(owner: subprocess.Popen) -> list[psutil.Process]:
    """The keeper, the command and its child, when all three run."""
    return [psutil.Process(pid) for pid in json.loads(owner.stdout.readline())]


def all_gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, LONGEST_S)[1]


def test_nothing_is_left_when_the_owner_is_killed(owner):
    family = started(owner)
    owner.kill()
    owner.wait()  # or it would stay the parent, as a zombie
    assert all_gone(family)


def test_nothing_is_left_when_the_keeper_is_told_to_end(owner):
    keeper, *family = started(owner)
    keeper.terminate()
    assert all_gone([keeper, *family])


def test_an_orphan_is_ended_when_the_command_is_killed(owner):
    keeper, command, orphan = started(owner)
    command.kill()
    assert all_gone([keeper, command, orphan])


def test_the_command_is_told_to_end_when_the_keeper_is_killed():
    for _ in range(15):  # Once in six the command had begun, and was not tied yet.
        kept = KeptProcess([sys.executable, "-c", "import signal; signal.pause()"])
        keeper = psutil.Process(kept.pid)
        while not keeper.children():
            kept.check()
        family = [keeper, *keeper.children()]
        keeper.kill()
        assert all_gone(family)


def test_a_process_that_was_stopped_did_not_die():
    with_log = "print('ready', flush=True); import signal; signal.pause()"
    kept = KeptProcess([sys.executable, "-c", with_log], NOTHING="1")
    while "ready" not in kept.log.read_text():
        kept.check()
    kept.stop()
    kept.stop()
    assert not psutil.pid_exists(kept.pid)


@pytest.mark.parametrize("status", [0, 3])
def test_one_that_ended_by_itself_is_said_to_have_died(status):
    program = f"import os; print('no room for', os.environ['WHAT']); exit({status})"
    kept = KeptProcess([sys.executable, "-c", program], WHAT="the cache")
    with pytest.raises(ModelLoadError, match=rf"status {status}(?s:.*)for the cache"):
        while True:
            kept.check()
    kept.stop()  # it has been said
