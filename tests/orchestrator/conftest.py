"""Data for whole runs, and the numbers of a whole study."""

from pathlib import Path

import pytest

from orchestrator.config import load_run_config
from orchestrator.study.cells import Study
from orchestrator.study.config import load_study_config
from orchestrator.study.directory import open_study_directory
from orchestrator.study.results import StudyResult
from tasks.tvr.data.rendered import ensure
from tests.orchestrator.small_runs import SMALL, TINY
from tests.orchestrator.study.small_studies import write_study, write_synthetic


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set, rendered once."""
    folder = tmp_path_factory.mktemp("data") / "pairs"
    return ensure(load_run_config(TINY, [*SMALL, f"data.path={folder}"]).data)


@pytest.fixture(scope="session")
def study_result(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    """The shipped study, complete, with made-up numbers."""
    folder = tmp_path_factory.mktemp("study")
    study = load_study_config(write_study(folder / "study.toml", out=str(folder / "out")))
    directory = open_study_directory(study)
    write_synthetic(study, directory)
    return Study(study, directory, [], "star-r1 study study.toml").write()
