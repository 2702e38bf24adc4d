"""The data of whole runs, one run that nothing happens to, and one to which things can happen."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.faulty_run import FaultyRun, Outcome, run_undisturbed
from tests.faults.settings import settings
from tests.orchestrator.conftest import data

__all__ = ["data"]

STEPS = 16


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return run_undisturbed(tmp_path_factory.mktemp("undisturbed") / "run", settings(data, STEPS))


@pytest.fixture
def run(data: Path, tmp_path: Path) -> Iterator[FaultyRun]:
    it = FaultyRun(tmp_path / "faulty", settings(data, STEPS))
    yield it
    it.end()
