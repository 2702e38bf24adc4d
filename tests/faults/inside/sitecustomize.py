"""In every process of a run under test: an exception in the engine's thread, when the test orders it.

Python imports a module of this name at its start. It watches for a file with the process's number in its name; a thread
cannot be killed from without.
"""

import ctypes
import os
import threading
import time
from pathlib import Path

ENGINE = "vllm-core"


def _break_when_ordered() -> None:
    order = Path(os.environ.get("TMPDIR", "/tmp")) / f"star-r1-break-{os.getpid()}"
    while not order.exists():
        time.sleep(0.02)
    order.unlink()
    for thread in threading.enumerate():
        if thread.name == ENGINE:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(MemoryError))


threading.Thread(target=_break_when_ordered, name="breaker", daemon=True).start()
