"""What a run takes along to a cluster that has nothing of the user's folder."""

from pathlib import Path

import pytest

from orchestrator.config import ConfigError, RunConfig, read_run_config
from orchestrator.run.travel import pack
from tests.orchestrator.small_runs import TINY


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a rule in a package of its own, and what it needs."""
    folder = tmp_path / "here"
    (folder / "rules" / "__pycache__").mkdir(parents=True)
    (folder / "rules" / "__init__.py").touch()
    (folder / "rules" / "strict.py").write_text("import math\nimport words.lists\ndef rule(reply, gold): ...\n")
    (folder / "rules" / "__pycache__" / "strict.pyc").touch()
    (folder / "words").mkdir()
    (folder / "words" / "lists.py").write_text("from rules import strict\nimport more\n")
    (folder / "more.py").touch()
    (folder / "unused.py").touch()
    (folder / "photographs").mkdir()
    monkeypatch.chdir(TINY.resolve().parents[2])
    return folder


def config(*overrides: str) -> RunConfig:
    return read_run_config(TINY, ["model=/models/tiny", "data.path=/data/tiny", *overrides])


def test_the_run_file_travels_resolved_and_says_the_same(here: Path, tmp_path: Path):
    folder = tmp_path / "job"
    folder.mkdir()
    assert pack(config("loop.steps=7"), "run.toml", here, folder) == ["run.toml"]
    assert read_run_config(folder / "run.toml") == config("loop.steps=7")


def test_a_rule_travels_with_all_that_it_imports_here_and_nothing_else(here: Path, tmp_path: Path):
    folder = tmp_path / "job"
    folder.mkdir()
    taken = pack(config("reward_service.rule=rules.strict:rule"), "run.toml", here, folder)
    assert taken == ["run.toml", "more.py", "rules", "words"]
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {"run.toml", "more.py", "rules/__init__.py", "rules/strict.py", "words/lists.py"}


@pytest.mark.parametrize("key", ["model", "data.path"])
def test_a_path_that_only_this_folder_has_is_refused(here: Path, tmp_path: Path, key: str):
    with pytest.raises(ConfigError, match=f"{key} = 'some/folder': is a path on the cluster, .* --set {key}=/"):
        pack(config(f"{key}=some/folder"), "run.toml", here, tmp_path)


def test_what_is_too_large_to_travel_is_named(here: Path, tmp_path: Path):
    folder = tmp_path / "job"
    folder.mkdir()
    with (here / "words" / "all.txt").open("wb") as file:
        file.truncate(21 << 20)
    with pytest.raises(ConfigError, match="has 21 MiB, words most of them, and 20 MiB may; put data where"):
        pack(config("reward_service.rule=rules.strict:rule"), "run.toml", here, folder)


def test_a_module_that_is_not_python_is_named(here: Path, tmp_path: Path):
    (here / "broken.py").write_text("def rule(:\n")
    with pytest.raises(ConfigError, match=r"broken.py: travels with the run, and is not Python"):
        pack(config("reward_service.rule=broken:rule"), "run.toml", here, tmp_path)
