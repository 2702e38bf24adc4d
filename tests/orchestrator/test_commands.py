"""The commands as a user types them, from a data set to its scores."""

import json
from pathlib import Path

import pytest

from orchestrator.cli import build_parser, main
from tvr import dataset
from tvr.answer import format_answer

MAKE = ["data", "make", "--train", "3", "--test", "6", "--size", "48x36", "--spp", "1", "--workers", "1", "--seed", "3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "pairs"
    main([*MAKE, "--out", str(path), "--objects", "2-4", "--changes", "1-3"])
    return path


def test_a_made_data_set_is_sound_and_can_be_looked_at(folder, tmp_path, capsys):
    main(["data", "check", str(folder)])
    assert "OK" in capsys.readouterr().out
    main(["data", "show", str(folder), "--out", str(tmp_path / "page.html"), "--split", "test", "--max", "4"])
    page = (tmp_path / "page.html").read_text()
    assert page.count("<img") == 8


def test_check_ends_with_status_1_when_something_is_wrong(folder, tmp_path, capsys):
    rows = [{**row, "id": "1/event/center"} for row in _rows(folder, "test")]
    dataset.write_folder(tmp_path / "bad", {"test": rows}, {"spp": 1})
    with pytest.raises(SystemExit) as ended:
        main(["data", "check", str(tmp_path / "bad")])
    assert ended.value.code == 1
    assert "1/event/center" in capsys.readouterr().out


def test_true_answers_score_full_marks_and_the_json_says_so(folder, tmp_path, capsys):
    prompts = list(dataset.load(folder, "test"))
    lines = [{"id": prompt.id, "reply": format_answer(prompt.gold.changes, "so")} for prompt in prompts]
    replies = tmp_path / "replies.jsonl"
    replies.write_text("".join(json.dumps(line) + "\n" for line in reversed(lines)))
    out = tmp_path / "scores.json"
    main(["score", "--data", str(folder), "--replies", str(replies), "--json", str(out)])
    assert "TAcc" in capsys.readouterr().out
    scores = json.loads(out.read_text())
    assert scores["metrics"]["TAcc"] == scores["well_formed"] == 1.0
    assert scores["metrics"]["Event/NDiff"] == 0.0
    assert [sample["id"] for sample in scores["samples"]] == [prompt.id for prompt in prompts]
    expected = [1.0 + 5.0 * len(prompt.gold.changes) for prompt in prompts]
    assert [sample["reward"] for sample in scores["samples"]] == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "check", "nowhere"], "no data set in nowhere"),
        (["data", "show", "nowhere", "--out", "page.html"], "no data set in nowhere"),
        (["data", "trance", "nowhere", "--out", "out"], "nowhere"),
        ([*MAKE, "--out", "out", "--objects", "3-2"], "3 to 2"),
        ([*MAKE, "--out", "."], "exists; remove it"),
        (["score", "--data", "nowhere", "--replies", "r.jsonl"], "nowhere"),
        (["eval", "--data", "nowhere", "--model", "nowhere"], "nowhere"),
        (["train", "run.toml", "--resume"], "--resume needs --out DIR"),
        (["sft", "run.toml", "--resume"], "--resume needs --out DIR"),
        (["study", "nowhere.toml"], "nowhere.toml: cannot be read"),
        (
            ["replay", "nowhere"],
            "nowhere: holds no refused step; give one of the folders in a run directory's refused/",
        ),
    ],
)
def test_what_a_user_can_mend_ends_with_status_2_and_one_message(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    "command",
    [
        "train",
        "sft",
        "replay",
        "data",
        "data make",
        "data trance",
        "data check",
        "data show",
        "score",
        "eval",
        "tiny-policy",
        "pretrain",
        "study",
    ],
)
def test_every_command_has_help_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args([*command.split(), "--help"])
    assert ended.value.code == 0
    assert f"example:\n  star-r1 {command.split()[0]}" in capsys.readouterr().out


def _rows(folder: Path, split: str) -> list[dict]:
    import datasets

    still_encoded = datasets.Image(decode=False)
    rows = datasets.load_from_disk(folder)[split]
    return list(rows.cast_column("initial", still_encoded).cast_column("final", still_encoded))
