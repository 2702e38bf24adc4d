"""Commands as processes of their own, which end with the one that started them; and what they say."""

import ctypes
import os
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

Tick = Callable[[], None]
RunCommand = Callable[[Sequence[str], Path, Tick], int]
"""Runs a command to its end, what it says appended to a file, calls `Tick` now and then; returns its exit status."""

TICK_S = 1.0
END_S = 30.0
TAIL_LINES = 15
PR_SET_PDEATHSIG = 1
_PRCTL = ctypes.CDLL(None).prctl  # looked up before any fork


def run_command(
    command: Sequence[str],
    log: Path,
    tick: Tick,
    inherited: Collection[int] = (),
    cores: Collection[int] | None = None,
) -> int:
    """The real `RunCommand`. The command ends with this process, however that ends, and with the thread that calls.

    It keeps *inherited* files open, and uses the CPU *cores* named only.
    """

    def before_exec() -> None:
        _end_with_parent()
        if cores is not None:
            os.sched_setaffinity(0, cores)

    with log.open("ab") as out:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            pass_fds=tuple(inherited),
            preexec_fn=before_exec,
        )
        try:
            while process.poll() is None:
                try:
                    process.wait(TICK_S)
                except subprocess.TimeoutExpired:
                    tick()
        finally:
            _end(process)
    return process.returncode


def share_cores(places: int) -> list[list[int]]:
    """The CPU cores that this process may use, shared out. Raises ValueError if there are fewer than *places*."""
    cores = sorted(os.sched_getaffinity(0))
    if places > len(cores):
        raise ValueError(f"{places} cells at once need as many CPU cores, and there are {len(cores)}; give fewer")
    return [cores[place::places] for place in range(places)]


def last_lines(log: Path) -> str:
    if not log.exists():
        return "(empty)"
    with log.open(errors="replace") as file:
        return "".join(deque(file, TAIL_LINES)).rstrip() or "(empty)"


def describe_commit() -> str | None:
    """What git calls the code that runs; None where there is no git or no repository."""
    here = Path(__file__).parent
    command = ["git", "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def _end_with_parent() -> None:
    """Called between fork and exec: the kernel sends SIGTERM when the parent is gone."""
    _PRCTL(PR_SET_PDEATHSIG, signal.SIGTERM)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Nothing to do, unless waiting for it was interrupted."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
