"""Scoring a file of replies, against numbers worked out by hand.

The scene is `red cube large metal`, `blue sphere small glass`, `cyan cylinder medium rubber`.
"""

import io
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from orchestrator.commands.score import score
from orchestrator.config import ConfigError
from orchestrator.evaluation.score import ScoreReport, print_report, score_replies, write_json
from reward_service.rules import load_rule
from tasks.tvr.data.dataset import load, load_golds, write_folder
from tasks.tvr.language.gold import Gold
from tasks.tvr.language.metrics import METRICS
from tasks.tvr.language.scene import SceneObject
from tasks.tvr.rules import StarOptions
from tasks.tvr.task import TASK

SCENE = (
    SceneObject(color="red", shape="cube", size="large", material="metal", position=(-2.0, 0.5)),
    SceneObject(color="blue", shape="sphere", size="small", material="glass", position=(0.0, 1.0)),
    SceneObject(color="cyan", shape="cylinder", size="medium", material="rubber", position=(2.0, 0.0), rotation=30.0),
)
TRUTH = {
    "0/basic/center": "1.color.gray",
    "1/event/center": "0.color.gray 1.size.large",
    "2/view/left": "2.color.red",
    "3/view/right": "0.color.gray 1.size.large 2.color.red",
}
REPLIES = {
    "0/basic/center": "<think>a</think><answer>1.color.green</answer>",  # object and attribute
    "1/event/center": "<think>a</think><answer>1.size.large, 0.color.gray</answer>",  # right
    "2/view/left": "<think>a</think><answer>2.color.red, 9.color.red</answer>",  # right, and one impossible
    "3/view/right": "0.color.gray",  # malformed
}
HERE = "tests.orchestrator.evaluation.test_score"


def scored(data: Path, replies: Path, rule: str = "star", split: str = "test", **progress: Any) -> ScoreReport:
    where = f"{data}, split {split!r}"
    found = load_rule(TASK, rule, StarOptions())
    return score_replies(TASK, load_golds(data, split), replies, found, where=where, **progress)


def make_row(sample_id: str, truth: str) -> dict[str, Any]:
    _, setting, view = sample_id.split("/")
    changes = [change.split(".") for change in truth.split()]
    return {
        "id": sample_id,
        "setting": setting,
        "view": view,
        "initial": {"bytes": b"no picture"},
        "final": {"bytes": b"no picture"},
        "objects": [asdict(item) for item in SCENE],
        "transformations": [{"index": int(at), "attribute": name, "value": value} for at, name, value in changes],
    }


def write_data(folder: Path, rows: Iterable[dict[str, Any]]) -> Path:
    write_folder(folder, {"test": rows}, {})
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "pairs", [make_row(*row) for row in TRUTH.items()])


def to_lines(replies: Mapping[str, str], **more: Any) -> list[str]:
    return [json.dumps({"id": sample_id, "reply": reply, **more}) for sample_id, reply in replies.items()]


def write_lines(tmp_path: Path, lines: Iterable[str]) -> Path:
    path = tmp_path / "replies.jsonl"
    path.write_text("".join(line + "\n" for line in lines))
    return path


@pytest.fixture
def replies(tmp_path: Path) -> Path:
    return write_lines(tmp_path, to_lines(REPLIES))


def as_json(data: Path, replies: Path, rule: str = "star") -> dict[str, Any]:
    path = replies.with_name("new") / "scores.json"
    write_json(scored(data, replies, rule), path)
    assert [file.name for file in path.parent.iterdir()] == ["scores.json"]
    return json.loads(path.read_text())


def test_four_replies_give_the_numbers_worked_out_by_hand(data, replies):
    scores = as_json(data, replies)
    assert scores["metrics"] == {
        "Basic/ObjAcc": 1.0,
        "Basic/AttrAcc": 1.0,
        "Basic/ValAcc": 0.0,
        "Basic/Acc": 0.0,
        "Event/Diff": 0.0,
        "Event/NDiff": 0.0,
        "Event/Acc": 1.0,
        "View/Diff": 2.0,  # (1 impossible + 3 missing) / 2
        "View/NDiff": 1.0,  # (1/1 + 3/3) / 2
        "View/Acc": 0.0,
        "TAcc": 0.25,  # 1 / 4
    }
    assert scores["by_view"] == {"center": 0.5, "left": 0.0, "right": 0.0}
    assert scores["by_objects"] == {"1-3": 0.25, "4-6": None, "7-8": None, "9-10": None}
    assert scores["by_changes"] == {"1": 0.0, "2": 1.0, "3": 0.0}
    assert scores["well_formed"] == 0.75
    assert scores["num_samples"] == 4
    assert scores["reward"] == {
        "total": 3.625,  # (1.5 + 11 + 5 - 3) / 4
        "format": 0.75,  # 3 / 4
        "value": 3.75,  # (0 + 10 + 5 + 0) / 4
        "attribute": 0.375,  # 1.5 / 4
        "object": 0.0,
        "miss": -0.5,  # (-1 + 0 - 1 + 0) / 4
        "inaction": -0.75,  # -3 / 4
    }
    nothing = {"format": 0.0, "value": 0.0, "attribute": 0.0, "object": 0.0, "miss": 0.0, "inaction": 0.0}
    assert scores["samples"] == [
        {
            "id": "0/basic/center",
            "acc": False,
            "diff": 1,
            "ndiff": 1.0,
            "reward": 1.5,  # 1 + 1.5 - 1
            "parts": nothing | {"format": 1.0, "attribute": 1.5, "miss": -1.0},
        },
        {
            "id": "1/event/center",
            "acc": True,
            "diff": 0,
            "ndiff": 0.0,
            "reward": 11.0,  # 1 + 5 + 5
            "parts": nothing | {"format": 1.0, "value": 10.0},
        },
        {
            "id": "2/view/left",
            "acc": False,
            "diff": 1,
            "ndiff": 1.0,
            "reward": 5.0,  # 1 + 5 - 1
            "parts": nothing | {"format": 1.0, "value": 5.0, "miss": -1.0},
        },
        {
            "id": "3/view/right",
            "acc": False,
            "diff": 3,
            "ndiff": 1.0,
            "reward": -3.0,
            "parts": nothing | {"inaction": -3.0},
        },
    ]


def test_the_json_file_has_these_keys_and_no_others(data, replies):
    scores = as_json(data, replies)
    assert list(scores) == [
        "num_samples",
        "metrics",
        "by_view",
        "by_objects",
        "by_changes",
        "well_formed",
        "mean_tokens",
        "careful",
        "triplets",
        "reward",
        "samples",
    ]
    assert tuple(scores["metrics"]) == METRICS
    assert all(list(row) == ["id", "acc", "diff", "ndiff", "reward", "parts"] for row in scores["samples"])


def test_samples_are_in_the_order_of_the_data_whatever_that_of_the_replies(data, replies, tmp_path):
    expected = as_json(data, replies)
    turned = write_lines(tmp_path, ["", *reversed(to_lines(REPLIES)), "  "])  # and blank lines do not matter
    assert as_json(data, turned) == expected
    assert [row["id"] for row in expected["samples"]] == list(TRUTH)


@pytest.mark.parametrize(
    ("rule", "rewards"),
    [
        ("naive", [1.0, 6.0, 1.0, 0.0]),  # format, and 5 for the whole answer
        ("no_inaction_penalty", [1.5, 11.0, 5.0, 0.0]),  # nothing taken for the three left unsaid
        ("no_wrong_penalty", [2.5, 11.0, 6.0, -3.0]),
    ],
)
def test_another_rule_gives_other_rewards_and_the_same_metrics(data, replies, rule, rewards):
    scores = as_json(data, replies, rule)
    assert [row["reward"] for row in scores["samples"]] == rewards
    assert scores["metrics"] == as_json(data, replies)["metrics"]


def test_the_length_of_replies_is_reported_where_every_line_has_it(data, tmp_path):
    lines = to_lines(REPLIES, num_tokens=30, model="other keys do not matter")
    assert as_json(data, write_lines(tmp_path, lines))["mean_tokens"] == 30.0
    lines[0] = to_lines(REPLIES)[0]
    assert as_json(data, write_lines(tmp_path, lines))["mean_tokens"] is None


def test_any_text_is_a_reply(data, tmp_path):
    texts = ["", "\ud800", "\0", "</answer>" * 9]
    scores = as_json(data, write_lines(tmp_path, to_lines(dict(zip(TRUTH, texts, strict=True)))))
    assert (scores["well_formed"], scores["num_samples"]) == (0.0, 4)
    assert [row["diff"] for row in scores["samples"]] == [1, 2, 1, 3]  # nothing predicted: all true changes are missing


LINES = to_lines(REPLIES)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([*LINES[:2], "{'id': 0}"], "line 3: is not JSON .* write an object"),
        ([LINES[0], "[" * 100_000], "line 2: is not JSON"),
        (["9" * 5000], "line 1: is not JSON"),
        (['["0/basic/center", ""]'], "line 1: is .*, not an object; write"),
        (['{"reply": ""}'], "line 1: has no 'id', only .'reply'.; add it"),
        (['{"id": "0/basic/center", "answer": ""}'], "line 1: has no 'reply', only .'id', 'answer'.; add it"),
        (['{"id": 0, "reply": ""}'], "line 1: the id is 0; it must be a string"),
        (['{"id": "0/basic/center", "reply": null}'], "line 1: the reply is None; it must be a string"),
        (['{"id": "0/basic/center", "reply": "", "num_tokens": 1.5}'], "line 1: num_tokens is 1.5; give the number"),
        (['{"id": "0/basic/center", "reply": "", "num_tokens": true}'], "line 1: num_tokens is True; give the number"),
        (
            ["", '{"id": "0/view/left", "reply": ""}'],
            "line 2: the id '0/view/left' is not among the 4 of the split .the first is '0/basic/center'.; correct it",
        ),
        ([*LINES, "", LINES[1]], "line 6: the id '1/event/center' has a reply in line 2 already; remove"),
        (LINES[1:3], "2 of 4 ids have no reply: 0/basic/center, 3/view/right; add"),
        ([], "4 of 4 ids have no reply: 0/basic/center, 1/event/center, 2/view/left, ...; add"),
    ],
)
def test_a_wrong_replies_file_is_an_error_with_place_and_remedy(data, tmp_path, lines, message):
    path = write_lines(tmp_path, lines)
    with pytest.raises(ConfigError, match=rf"^{path}(:|,) {message}"):
        scored(data, path)


def test_bytes_that_are_no_text_are_an_error_with_the_line(data, tmp_path):
    path = tmp_path / "replies.jsonl"
    path.write_bytes(LINES[0].encode() + b'\n{"id": "\xff"}\n')
    with pytest.raises(ConfigError, match=r"line 2: is not JSON .*utf-8"):
        scored(data, path)


def test_a_missing_file_folder_or_split_is_named(data, replies, tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.jsonl: cannot be read"):
        scored(data, tmp_path / "nothing.jsonl")
    with pytest.raises(ConfigError, match=f"no data set in {tmp_path / 'nothing'}"):
        score(tmp_path / "nothing", replies)
    with pytest.raises(ConfigError, match="no split 'train'; it has test"):
        score(data, replies, split="train")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([make_row("0/basic/center", "0.color.gray")] * 2, "has the id '0/basic/center' twice"),
        (
            [make_row("0/basic/center", "0.color.gray 1.size.large")],
            "sample 0/basic/center: a basic sample has one change, this one has 2",
        ),
        ([make_row("0/event/center", "3.color.gray")], "sample 0/event/center: 3.color.gray is not possible"),
        ([make_row("0/event/above", "0.color.gray")], "sample 0/event/above: view is 'above'"),
        ([make_row("0/all/center", "0.color.gray")], "sample 0/all/center: setting is 'all'"),
        ([{**make_row("0/event/center", ""), "objects": None}], "objects is missing .null. in 1 places"),
    ],
)
def test_data_that_makes_no_sense_is_an_error_that_names_the_sample(tmp_path, rows, message):
    folder = write_data(tmp_path / "pairs", rows)
    path = write_lines(tmp_path, to_lines({row["id"]: "" for row in rows}))
    with pytest.raises(ConfigError, match=f"{folder}, split 'test': .*{message}"):
        scored(folder, path)


def test_golds_are_those_of_the_prompts(data):
    golds, prompts = load_golds(data, "test"), load(data, "test")
    assert list(golds) == [(prompt.id, prompt.gold) for prompt in prompts]
    assert golds.ids() == list(TRUTH)
    assert len(golds) == 4


def broken(text: str, gold: Gold) -> dict[str, float]:
    return {"short": 1.0 if "<" in text else 1 / 0}


def unbounded(text: str, gold: Gold) -> dict[str, float]:
    return {"ratio": 1.0 if "<" in text else float("nan")}


def choosy(text: str, gold: Gold) -> dict[str, float]:
    return {"tags": 1.0} if "<" in text else {"none": -1.0}


def ambiguous(text: str, gold: Gold) -> dict[str, float]:
    return {"total": 1.0}


@pytest.mark.parametrize(("rule", "cause"), [("broken", "ZeroDivisionError"), ("unbounded", "finite number")])
def test_a_users_rule_that_fails_ends_with_the_sample_and_its_traceback(data, replies, rule, cause):
    with pytest.raises(ConfigError) as caught:
        scored(data, replies, f"{HERE}:{rule}")
    first, *rest = str(caught.value).splitlines()
    assert first.startswith(f"{replies}, line 4: the rule failed on sample 3/view/right; mend it. Traceback")
    assert cause in rest[-1]


def test_a_part_that_is_left_out_of_a_sample_is_zero_there(data, replies):
    assert as_json(data, replies, f"{HERE}:choosy")["reward"] == {"total": 0.5, "tags": 0.75, "none": -0.25}


def test_a_part_may_not_be_called_total(data, replies):
    with pytest.raises(ConfigError, match="part named 'total'"):
        scored(data, replies, f"{HERE}:ambiguous")


def test_a_rule_that_is_not_there_is_refused(data, replies):
    with pytest.raises(ConfigError, match=r"reward_service.rule = 'best': 'best' is no rule; give one of star, naive"):
        score(data, replies, rule="best")
    with pytest.raises(ConfigError, match="cannot be imported"):
        score(data, replies, rule="no_such_module:rule")


def test_a_json_path_that_cannot_be_written_is_an_error(data, replies, tmp_path):
    report = scored(data, replies)
    with pytest.raises(ConfigError, match=r"--json .*replies\.jsonl/scores\.json: cannot be written"):
        write_json(report, replies / "scores.json")
    with pytest.raises(ConfigError, match=f"--json {tmp_path}: cannot be written"):
        write_json(report, tmp_path)


def test_progress_ends_with_the_number_of_samples(data, replies):
    seen: list[tuple[int, int]] = []
    scored(data, replies, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 4)]


def test_the_report_is_printed_with_a_dash_where_nothing_is_known(data, replies):
    text = io.StringIO()
    print_report(TASK, scored(data, replies), Console(file=text, width=100))
    rows = {
        cells[1].strip(): cells[2].strip()
        for line in text.getvalue().splitlines()
        if len(cells := line.split("│")) == 4
    }
    assert rows["TAcc"] == "0.25"
    assert rows["Basic/ObjAcc"] == "1"
    assert rows["reply length, tokens"] == "-"
    assert (rows["total"], rows["inaction"]) == ("+3.625", "-0.750")


def test_scoring_loads_no_ray_and_no_engine(data, replies):
    code = (
        "import sys\nfrom pathlib import Path\nfrom orchestrator.commands.score import score\n"
        "score(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "loaded = {'torch', 'ray', 'vllm', 'deepspeed', 'transformers', 'mitsuba'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    command = [sys.executable, "-c", code, str(data), str(replies)]
    result = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
