"""Data for whole runs."""

from pathlib import Path

import pytest

from orchestrator.config import load_run_config
from tests.orchestrator.small_runs import SMALL, TINY
from tvr.rendered import ensure


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set, rendered once."""
    folder = tmp_path_factory.mktemp("data") / "pairs"
    return ensure(load_run_config(TINY, [*SMALL, f"data.path={folder}"]).data)
