"""What a worker's machine must have, looked at on its node before any weights are loaded.

GPUs are asked by a process of its own (`python -m orchestrator.cluster.machine`), which gives back what memory CUDA
takes.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from learner.device import missing_cuda

ASKING_S = 180.0
GB = 1e9


class UnfitMachine(Exception):
    """A worker cannot run here; its text is meant for the user, who can mend it."""


def check_gpus(share: float, said_by: str) -> None:
    """Raise UnfitMachine unless CUDA answers and *share* of each visible GPU's memory is free.

    *said_by* is the setting that asks for so much.
    """
    asked = subprocess.run(
        [sys.executable, "-m", "orchestrator.cluster.machine"],
        capture_output=True,
        text=True,
        timeout=ASKING_S,
        check=False,
    )
    if asked.returncode != 0:
        raise UnfitMachine(f"its GPUs could not be asked: {asked.stderr.strip()[-1000:]}")
    found = json.loads(asked.stdout.splitlines()[-1])
    if found["missing"] is not None:
        raise UnfitMachine(found["missing"])
    for gpu in found["gpus"]:
        if gpu["free"] < share * gpu["total"]:
            raise UnfitMachine(
                f"{gpu['name']} has {gpu['free'] / GB:.1f} of {gpu['total'] / GB:.1f} GB free, and {said_by} asks for "
                f"{share * gpu['total'] / GB:.1f}: another process fills it (nvidia-smi names it); end that process"
            )


def check_folder(folder: Path, what: str) -> None:
    """Raise UnfitMachine unless this node sees *folder*, which is *what* and which the driver's node has."""
    if not folder.is_dir():
        raise UnfitMachine(
            f"{folder}, {what}, is not there; give a path on a file system that all nodes share"
            + (", or copy it to every node" if what == "the model" else "")
        )


def check_shared_memory(folder: Path, wanted: int, what: str) -> None:
    """Raise UnfitMachine unless *wanted* bytes are free in *folder*; *what* they are for."""
    usage = shutil.disk_usage(folder)
    if usage.free < wanted:
        raise UnfitMachine(
            f"{folder} has {usage.free / GB:.2f} of {usage.total / GB:.2f} GB free, and {what} need {wanted / GB:.2f}; "
            f"give a container more (docker run --shm-size={max(1, round(1.5 * wanted / GB))}g, in Kubernetes an "
            "emptyDir of medium Memory), or remove what lies there"
        )


def _describe() -> dict[str, object]:
    missing = missing_cuda()
    if missing is not None:
        return {"missing": missing, "gpus": []}
    import torch

    gpus = []
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        gpus.append({"name": f"GPU {number} ({torch.cuda.get_device_name(number)})", "free": free, "total": total})
    return {"missing": None, "gpus": gpus}


if __name__ == "__main__":
    print(json.dumps(_describe()))  # noqa: T201
