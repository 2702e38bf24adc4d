"""A whole study with real engines: every command is the real one, in a process of its own."""

import json
import subprocess
import sys

import pytest

from orchestrator.study.results import HALF_GAIN, StudyResult
from tests.orchestrator.study.small_studies import arm, write_study

pytestmark = pytest.mark.slow
SMALL = {
    "loop__steps": 2,
    "loop__groups_per_step": 2,
    "evaluation__max_samples": 4,
    "evaluation__every_steps": 1,
    "rollout__samples_per_prompt": 2,
    "rollout__max_answer_tokens": 16,
    "rollout__kv_cache_mib": 64,
    "seeds": [1],
    "arms": [arm("STAR-R1", "star"), arm("STAR-SFT", "answer")],
}
PAIRS = {"size": [48, 48], "spp": 1, "workers": 1}


def test_a_study_of_two_arms_goes_from_pictures_to_a_page(tmp_path):
    tables = {f"{table}__{key}": value for table in ("data", "test") for key, value in PAIRS.items()}
    data = {"data__path": str(tmp_path / "pairs"), "data__train": 8, "data__test": 4}
    test = {"test__path": str(tmp_path / "test-pairs"), "test__test": 6}
    out = tmp_path / "out"
    path = write_study(tmp_path / "study.toml", **SMALL, **tables, **data, **test, out=str(out))
    command = [sys.executable, "-m", "orchestrator.commands.cli", "study", str(path)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "star-sft-seed1: step 0 of 2, 0:00:00; 2 of 3 cells complete" in ended.stdout

    result = StudyResult.model_validate_json((out / "study.json").read_text())
    assert (result.cells_done, result.cells_total) == (3, 3)
    assert result.base is not None
    for cell in (result.base, *(each.cells[0] for each in result.arms)):
        assert 0 <= cell.numbers["TAcc"] <= 1
        assert 0 < cell.numbers["reply length, tokens"] <= 16
        assert cell.seconds.test > 0
    for each in result.arms:
        (cell,) = each.cells
        assert [at.samples for at in cell.training] == [4.0, 8.0]  # 2 groups of 2 a step, or 4 right answers
        assert (cell.validation[0].version, cell.validation[-1].version) == (0.0, 2.0)
        assert HALF_GAIN in cell.numbers
        assert cell.seconds.set_up > 0
    star, sft = (each.cells[0] for each in result.arms)
    assert star.training[0].triplets is not None
    assert star.training[0].careful is not None
    assert sft.training[0].reward is None
    assert all(at.careful is not None and at.triplets is not None for at in star.validation)
    run = out / "cells" / "star-sft-seed1"
    assert (run / "model" / "model.safetensors").exists()
    assert not (run / "checkpoints").exists()
    page = (out / "study.html").read_text()
    assert "<strong>3 of 3</strong> cells are done" in page

    (out / "study.html").unlink()
    again = subprocess.run([*command, "--page"], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert (out / "study.html").read_text() == page
    assert json.loads((out / "study.json").read_text()) == json.loads(result.model_dump_json())
