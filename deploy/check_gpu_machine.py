"""What a machine must have before the GPU build is installed: `make setup DEVICE=gpu` begins with this.

    python3.11 deploy/check_gpu_machine.py

Prints each requirement, what was found and, where it falls short, the remedy. Exit status 1 if anything does. Uses the
standard library alone: nothing is installed yet. Not yet run on a GPU.
"""

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

DRIVER = 580
"""The first that speaks CUDA 13, for which torch 2.13 is built."""
SHM_GB = 8
DISK_GB = 25


class Found(NamedTuple):
    wanted: str
    found: str
    remedy: str
    """Empty where all is well."""


def main() -> int:
    found = [gpus(), driver(), compiler(), headers(), shared_memory(), disk()]
    for line in found:
        print(f"{'missing' if line.remedy else 'ok     '}  {line.wanted}: {line.found}")
        if line.remedy:
            print(f"         {line.remedy}")
    return int(any(line.remedy for line in found))


def gpus() -> Found:
    count = len(_nvidia_smi("name"))
    remedy = "nvidia-smi lists no GPU: give the container some (docker run --gpus all), or take another machine"
    return Found("a GPU (a run needs two or more)", f"{count} found", "" if count else remedy)


def driver() -> Found:
    versions = _nvidia_smi("driver_version")
    version = versions[0] if versions else "none"
    match = re.match(r"(\d+)\.", version)
    fits = match is not None and int(match[1]) >= DRIVER
    remedy = "install a newer driver on the host; a container has its host's"
    return Found(f"an NVIDIA driver of {DRIVER} or newer (CUDA 13)", version, "" if fits else remedy)


def compiler() -> Found:
    path = shutil.which("g++")
    return Found("a C++ compiler, for Triton's kernels", path or "no g++", "" if path else "apt-get install g++")


def headers() -> Found:
    header = Path(sysconfig.get_path("include")) / "Python.h"
    package = f"python{sys.version_info.major}.{sys.version_info.minor}-dev"
    remedy = "" if header.exists() else f"apt-get install {package}"
    return Found("Python's headers, for the same", f"no {header}" if remedy else str(header), remedy)


def shared_memory() -> Found:
    total = shutil.disk_usage("/dev/shm").total / 1e9
    remedy = "give the container more (docker run --shm-size=64g); a 7B wants about 64: two versions and the pictures"
    return Found(f"/dev/shm of {SHM_GB} GB or more", f"{total:.1f} GB", "" if total >= SHM_GB else remedy)


def disk() -> Found:
    free = shutil.disk_usage(".").free / 1e9
    remedy = "" if free >= DISK_GB else "free some, or clone to another disk"
    return Found(f"{DISK_GB} GB of disk for the packages", f"{free:.0f} GB free", remedy)


def _nvidia_smi(field: str) -> list[str]:
    """A line for each GPU; none where there is no driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    asked = subprocess.run(
        ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    return asked.stdout.split("\n")[:-1] if asked.returncode == 0 else []


if __name__ == "__main__":
    sys.exit(main())
