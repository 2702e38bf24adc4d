"""A run directory read for its page: whole, without traces, half written, damaged, and live."""

import json
import shutil
from pathlib import Path

import pytest

from orchestrator.commands.cli import main
from orchestrator.commands.report import DEMO
from orchestrator.config import ConfigError
from orchestrator.report.behaviour import REPLY_COLUMNS
from orchestrator.run.page import PAGE, LivePages, leave_page, read_run, read_runs, write_page
from tests.orchestrator.report.runs_by_hand import event, sample, write_run

ROWS = [{"step": step, "reward": float(step), "step_s": 1.0, "loss": 0.0} for step in (1, 2)]
EVENTS = [event("began", 100.0, version=0), event("served", 110.0, version=1)]
SAMPLES = [sample(step, 2 * (step - 1) + place, index) for step in (1, 2) for place in (0, 1) for index in (0, 1)]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", ROWS, EVENTS, SAMPLES)


@pytest.fixture(scope="module")
def demo():
    return read_run(DEMO)


def test_the_demo_lacks_nothing(demo):
    assert demo.notes == ()
    assert len(demo.traces) == demo.traces_total == 12 * 4 * 8
    assert set(demo.traces["prompt_id"].to_pylist()) == set(demo.prompts)
    assert all(len(prompt.pictures) == 2 for prompt in demo.prompts.values())
    assert demo.tokens(demo.traces["token_ids"][0][0].as_py()) == "<think>"
    assert demo.rows[-1]["step"] == demo.steps == 12


def test_the_demo_is_some_hundred_kilobytes():
    assert sum(path.stat().st_size for path in DEMO.parent.rglob("*") if path.is_file()) < 600_000


def test_data_that_are_gone_are_a_note_and_the_samples_stay(run):
    found = read_run(run)
    assert len(found.traces) == 8
    assert found.prompts == {}
    assert len(found.notes) == 1
    assert found.notes[0].startswith("its data is not there (there is no data set in")


def test_data_that_are_others_are_not_taken_for_the_runs(tmp_path):
    for name in ("tiny_run", "data"):
        shutil.copytree(DEMO.parent / name, tmp_path / name)
    (tmp_path / "data" / "recipe.json").write_text("{}")
    found = read_run(tmp_path / "tiny_run")
    assert found.prompts == {}
    assert "and the run learned from recipe" in found.notes[0]


def test_a_run_without_traces_says_so(tmp_path):
    found = read_run(write_run(tmp_path / "run", ROWS, EVENTS))
    assert "No samples were kept (traces.share)" in found.notes[0]
    assert found.rows == ROWS


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "journal.jsonl", "traces"])
def test_what_is_not_there_yet_leaves_the_rest(run, name):
    shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
    found = read_run(run)
    assert (bool(found.rows), bool(found.events), bool(len(found.traces))) == (
        name != "metrics.jsonl",
        name != "journal.jsonl",
        name != "traces",
    )
    write_page([run], run / PAGE)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", "{"),
        ("metrics.jsonl", '{"step": 1\n{"step": 2}\n'),
        ("journal.jsonl", "garbage\nmore garbage\n\n"),
        ("evaluation.json", "["),
        ("status.json", '{"at": 1}'),
        ("traces/000002-000002.parquet", "no parquet"),
    ],
)
def test_what_is_damaged_is_named_and_leaves_the_rest(run, name, content):
    (run / name).write_text(content)
    notes = " ".join(write_page([run], run / PAGE))
    assert f"{name.partition('/')[0]} cannot be read" in notes


def test_a_last_row_without_its_end_is_no_row(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "rew')
    assert read_run(run).rows == ROWS


@pytest.mark.parametrize("config", [None, "loop = [", "x = 1"])
def test_a_folder_that_is_no_run_is_said_with_the_remedy(tmp_path, config, capsys):
    if config is not None:
        (tmp_path / "config.toml").write_text(config)
    with pytest.raises(SystemExit) as ended:
        main(["report", str(tmp_path), "--out", str(tmp_path / "page.html")])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert str(tmp_path) in said
    assert said.count("\n") == 1
    assert not (tmp_path / "page.html").exists()


def test_runs_of_one_name_are_told_apart_by_where_they_are(tmp_path):
    first, second = (write_run(tmp_path / name / "run", ROWS) for name in ("a", "b"))
    assert [it.name for it in read_runs([first, second])] == ["a/run", "b/run"]


def test_many_samples_are_read_in_part_and_behaviour_reads_its_columns_alone(run):
    found = read_run(run, most_samples=4)
    assert (found.traces["ticket"].to_pylist(), found.traces_total) == ([1, 1, 3, 3], 8)
    assert read_run(run, None, REPLY_COLUMNS).traces.column_names == list(REPLY_COLUMNS)


def test_a_page_that_cannot_be_made_at_a_runs_end_is_a_warning(tmp_path, caplog):
    leave_page(tmp_path)
    assert "star-r1 report" in caplog.text
    assert not (tmp_path / PAGE).exists()


def test_the_stamp_changes_with_a_step_and_not_with_the_status(run):
    pages = LivePages([run])
    stamp = pages.stamp()
    (run / "status.json").write_text("{}")
    assert pages.stamp() == stamp
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 3, "reward": 0.0, "step_s": 1.0, "loss": 0.0}) + "\n")
    assert pages.stamp() != stamp


def test_watch_without_serve_says_how_a_run_stands_and_ends_with_it(run, capsys):
    main(["watch", str(run)])
    assert "Stopped at step 2 of 4" in capsys.readouterr().out


def test_a_port_that_is_taken_is_said_with_the_remedy(run, capsys):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(SystemExit) as ended:
            main(["watch", str(run), "--serve", "--port", str(taken.getsockname()[1])])
        assert ended.value.code == 2
    assert "give another one" in capsys.readouterr().err


def test_report_wants_runs_or_the_demo(tmp_path, capsys):
    for arguments in ([], ["--demo", str(tmp_path)]):
        with pytest.raises(SystemExit) as ended:
            main(["report", *arguments])
        assert ended.value.code == 2
    assert "--demo alone" in capsys.readouterr().err


def test_the_demo_is_a_page(tmp_path, capsys):
    main(["report", "--demo", "--out", str(tmp_path / "page.html")])
    assert "tiny_run: STAR-R1 report" in (tmp_path / "page.html").read_text()
    assert "wrote" in capsys.readouterr().out


def test_behaviour_is_json_or_a_table(capsys):
    main(["behaviour", str(DEMO), "--json"])
    bins = json.loads(capsys.readouterr().out)
    assert sum(it["samples"]["all"] for it in bins) == 12 * 4 * 8
    assert set(bins[0]["goes through the objects"]) == {"all", "same view", "changed view"}
    main(["behaviour", str(DEMO)])
    assert "changed" in capsys.readouterr().out


def test_behaviour_of_a_run_without_replies_is_said(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["behaviour", str(write_run(tmp_path / "run", ROWS))])
    assert ended.value.code == 2
    assert "No samples were kept" in capsys.readouterr().err


def test_config_error_is_what_read_run_raises(tmp_path):
    with pytest.raises(ConfigError, match="is no run directory"):
        read_run(tmp_path)
