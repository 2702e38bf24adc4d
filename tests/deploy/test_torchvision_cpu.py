"""The repair of torchvision beside torch's CPU build. A shell script stands in for an environment's interpreter."""

import subprocess
import sys
from pathlib import Path

import pytest

from deploy.torchvision_cpu import KNOWN_ERROR, SHIM, repair


def interpreter(folder: Path, script: str) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site-packages"
    folder.mkdir()
    return folder


BROKEN_UNLESS_SHIMMED = f"""[ "$STAR_R1_TORCHVISION_SHIM" = 1 ] && exit 0; echo '{KNOWN_ERROR}' >&2; exit 1"""


def test_it_writes_nothing_where_torchvision_is_sound(site, tmp_path):
    assert repair(site, interpreter(tmp_path, "exit 0")) == "torchvision is sound"
    assert list(site.iterdir()) == []


def test_it_installs_the_shim_on_the_known_error_and_again_without_harm(site, tmp_path):
    python = interpreter(tmp_path, BROKEN_UNLESS_SHIMMED)
    for _ in range(2):
        repair(site, python)
        assert sorted(file.name for file in site.iterdir()) == [f"{SHIM}.pth", f"{SHIM}.py"]
    assert (site / f"{SHIM}.pth").read_text() == f"import {SHIM}\n"


def test_it_takes_the_shim_away_once_torchvision_is_sound(site, tmp_path):
    repair(site, interpreter(tmp_path, BROKEN_UNLESS_SHIMMED))
    repair(site, interpreter(tmp_path, "exit 0"))
    assert list(site.iterdir()) == []


def test_it_leaves_any_other_error_alone(site, tmp_path):
    python = interpreter(tmp_path, "echo \"ModuleNotFoundError: No module named 'torchvision'\" >&2; exit 1")
    with pytest.raises(RuntimeError, match="not for the known reason: ModuleNotFoundError"):
        repair(site, python)
    assert list(site.iterdir()) == []


def test_torchvision_can_be_imported_here_and_asking_for_it_does_not_import_torch():
    code = (
        "import sys, importlib.util; assert importlib.util.find_spec('torchvision'); assert 'torch' not in sys.modules;"
        "import torchvision.transforms.v2"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
