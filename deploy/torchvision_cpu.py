"""Repairs this environment where torch's CPU build has companions built for CUDA torch; else changes nothing.

torchvision from the package index then fails to import with "operator torchvision::nms does not exist", and with it
transformers' image processors and vLLM's model registry, in processes of their own too. So the repair is a `.pth` in
site-packages (see `torchvision_shim.py`), not code in our packages. Run it again after replacing torchvision: it takes
the shim away where it is no longer needed. torchaudio and torchcodec (sound and video, which vLLM asks for and nothing
here uses) cannot load their library; transformers imports torchaudio wherever it is installed, so they are uninstalled.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

KNOWN_ERROR = "RuntimeError: operator torchvision::nms does not exist"
UNUSED = ("torchaudio", "torchcodec")
UNUSED_ERROR = "OSError: Could not load this library: "
SHIM_SOURCE = Path(__file__).with_name("torchvision_shim.py")
SHIM = "_star_r1_torchvision_shim"
SWITCH = "STAR_R1_TORCHVISION_SHIM"


def import_error(python: str, package: str, shim: bool = True) -> str | None:
    """Why importing *package* fails in a new process of *python*, as its last line; None when it works."""
    environment = {**os.environ, SWITCH: "1" if shim else "0"}
    result = subprocess.run([python, "-c", f"import {package}"], env=environment, capture_output=True, text=True)
    lines = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
    return lines[-1].strip() if result.returncode else None


def repair(site_packages: Path, python: str) -> str:
    """Install the shim if torchvision fails with `KNOWN_ERROR`, remove it if torchvision works without.

    Returns what was done, in words. Raises RuntimeError when torchvision fails in any other way, or still fails.
    """
    module, pth = site_packages / f"{SHIM}.py", site_packages / f"{SHIM}.pth"
    error = import_error(python, "torchvision", shim=False)
    if error is None:
        stale = [path for path in (pth, module) if path.exists()]
        for path in stale:
            path.unlink()
        return "torchvision is sound" + ("; the shim was removed" if stale else "")
    if error != KNOWN_ERROR:
        raise RuntimeError(f"torchvision cannot be imported, and not for the known reason: {error}")
    shutil.copyfile(SHIM_SOURCE, module)
    pth.write_text(f"import {SHIM}\n")
    if (error := import_error(python, "torchvision")) is not None:
        raise RuntimeError(f"torchvision cannot be imported, even with the missing operators defined: {error}")
    return f"torchvision was built for CUDA torch; {pth.name} now defines the operators it misses"


def uninstall_unloadable(python: str) -> list[str]:
    """Uninstall those of `UNUSED` that fail with `UNUSED_ERROR`; returns their names."""
    broken = [name for name in UNUSED if (import_error(python, name) or "").startswith(UNUSED_ERROR)]
    if broken:
        subprocess.run([python, "-m", "pip", "uninstall", "--yes", "--quiet", *broken], check=True)
    return broken


if __name__ == "__main__":
    try:
        print(repair(Path(sysconfig.get_paths()["purelib"]), sys.executable))
        for name in uninstall_unloadable(sys.executable):
            print(f"{name} was built for CUDA torch and is not used here; it was uninstalled")
    except RuntimeError as error:
        sys.exit(str(error))
