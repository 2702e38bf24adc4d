"""What becomes of an engine whose worker is killed."""

import os
import select
import subprocess
import sys

import pytest

from rollout.orphan import WORKER_PID

ENGINE = "from rollout.orphan import end_with_worker; end_with_worker(); print('up', flush=True); input()"
WORKER = """
import os, subprocess, sys
from rollout.orphan import adopt_engine
adopt_engine()
between = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"  # as of a worker of vLLM's
subprocess.run([sys.executable, "-c", between, sys.argv[1]])
"""


def test_a_process_of_the_engine_ends_when_its_worker_is_killed():
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, ENGINE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )  # its end of stdin stays open, so that only the watch can end the engine
    assert worker.stdout is not None
    assert worker.stdout.readline() == b"up\n"
    worker.kill()
    assert worker.wait() == -9
    readable, _, _ = select.select([worker.stdout], [], [], 60.0)
    assert readable, "the engine lives on"
    assert worker.stdout.read() == b""  # all who could write have ended
    assert worker.stdin is not None
    worker.stdin.close()


def test_an_engine_whose_worker_is_gone_when_it_starts_ends_at_once():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    env = os.environ | {WORKER_PID: str(gone.pid)}
    with subprocess.Popen([sys.executable, "-c", ENGINE], env=env, stdin=subprocess.PIPE) as engine:
        assert engine.wait(60) == -9


@pytest.mark.parametrize("pid", [None, "own"])
def test_in_the_worker_s_own_process_nothing_is_watched(pid):
    first = "" if pid is None else "from rollout.orphan import adopt_engine; adopt_engine(); "
    then = "from rollout.orphan import end_with_worker; end_with_worker(); "
    code = first + then + "import threading; print(threading.active_count())"
    env = {key: value for key, value in os.environ.items() if key != WORKER_PID}
    assert subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True).stdout == "1\n"
