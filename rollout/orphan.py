"""An engine's processes end with the worker that started them, however it ends.

vLLM's core watches no parent: behind a worker that is killed it would keep its GPU's memory for ever.
"""

import os
import select
import signal
import threading

WORKER_PID = "STAR_R1_ROLLOUT_WORKER_PID"


def adopt_engine() -> None:
    """In the worker, before its engine is started: those processes shall end with this one."""
    os.environ[WORKER_PID] = str(os.getpid())


def end_with_worker() -> None:
    """In a process of the engine. Does nothing in the worker itself, or where no worker has adopted the engine."""
    pid = int(os.environ.get(WORKER_PID, os.getpid()))
    if pid != os.getpid():
        threading.Thread(target=_end_after, args=(pid,), name="orphan-watch", daemon=True).start()


def _end_after(pid: int) -> None:
    try:
        worker = os.pidfd_open(pid)
    except ProcessLookupError:  # it has ended already
        os.kill(os.getpid(), signal.SIGKILL)
        return
    select.select([worker], [], [])  # readable when the process has ended
    os.kill(os.getpid(), signal.SIGKILL)
