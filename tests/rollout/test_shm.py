import os
import signal
import subprocess
import sys
from pathlib import Path

from rollout.shm import SharedFiles, remove_leftovers


def test_only_files_of_dead_workers_are_removed(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from rollout.shm import SharedFiles\n"
        "files = SharedFiles('dead', Path(sys.argv[1])); (files.folder / files.name).write_bytes(b'x')\n"
        "print(files.name, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as dead:
        assert dead.stdout is not None
        name = dead.stdout.readline().strip()
        assert remove_leftovers(tmp_path) == []
        os.kill(dead.pid, signal.SIGKILL)
        dead.wait()
    live = SharedFiles("live", tmp_path)
    (live.folder / live.name).write_bytes(b"x")
    assert remove_leftovers(tmp_path) == [name]
    assert sorted(path.name for path in tmp_path.iterdir()) == [live.name, f"{live.name}.lock"]
    live.remove()
    assert list(tmp_path.iterdir()) == []
