"""The row of a step, by hand."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from orchestrator.display import metrics_table, reward_table, step_line
from orchestrator.loop.loop import StepTimes
from orchestrator.run.metrics import MetricsFile, imitation_row, read_rows, step_row, terms_in, terms_of, write_rows
from records.samples import PolicyVersion, SampleGroup, ScoredGroup, StepReport
from reward_service.actor import ScoringLoad
from tasks.tvr.task import TASK
from tests.fakes import GOLD, make_group, make_prompt, make_score, make_scored

REPORT = StepReport(version=PolicyVersion(3), loss=0.5, grad_norm=2.0, tokens=12, stats={"ratio": 1.0})
TIMES = StepTimes(wait_s=1.0, learn_s=2.0, publish_s=0.5, transfer_s=0.375, pause_s=0.25)
SCORING = (
    ScoringLoad(busy_s=2.0, full_s=1.0, longest_wait_s=0.75),
    ScoringLoad(busy_s=3.5, full_s=3.0, longest_wait_s=0.5),
)


def test_a_row_by_hand(tmp_path):
    # Learned at version 2: the first group, of version 2, is 0 old; the second, of version 1, is 1 old.
    fresh = make_scored(make_group(make_prompt("0/basic/center"), version=2, num_samples=3), [6.0, 0.0, 0.0])
    stale = make_scored(make_group(make_prompt("1/basic/center"), version=1, num_samples=3), [1.0, 1.0, 1.0])
    row = step_row(REPORT, (fresh, stale), TIMES, SCORING, {"all"}, step_s=4.0, elapsed_s=20.0)
    assert row["reward"] == pytest.approx((6 + 0 + 0 + 1 + 1 + 1) / 6)
    assert row["reward/all"] == row["reward"]
    assert (row["staleness"], row["staleness_max"]) == (0.5, 1.0)
    assert row["with_signal"] == 0.5  # the second group's rewards are equal
    assert row["reward_std"] == pytest.approx((8**0.5 + 0) / 2)  # 6, 0, 0: variance (16 + 4 + 4) / 3 = 8
    assert row["scoring_full"] == 3.0 / 4.0  # of the fullest worker
    assert row["scoring_wait_s"] == 0.75  # of all workers
    assert row["answer_tokens"] == 12.0  # 6 samples of 2 tokens
    assert (row["tokens_per_s"], row["samples_per_s"]) == (3.0, 1.5)
    assert (row["well_formed"], row["cut_off"], row["ratio"]) == (1.0, 0.0, 1.0)

    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.write(row)
    file.close()
    (read,) = read_rows(tmp_path / "metrics.jsonl")
    assert read == pytest.approx(row, rel=1e-5)
    line = step_line(read, steps=10, left_s=125.0, shares=("exact", "careful"))
    assert "step   3/10  version   3  reward +1.50  exact 100%  staleness 0.5" in line
    assert "left 2:05" in line


def test_how_full_reward_workers_were_is_left_out_where_none_was_there():
    group = make_scored(make_group(make_prompt(), version=2, num_samples=2), [6.0, 0.0])
    whole, row = (
        step_row(REPORT, (group,), TIMES, loads, {"all"}, step_s=4.0, elapsed_s=20.0) for loads in (SCORING, ())
    )
    assert whole.keys() - row.keys() == {"scoring_full", "scoring_wait_s"}


def with_replies(group: SampleGroup, replies: Sequence[str]) -> ScoredGroup:
    """*group* with these replies, each paid 1."""
    samples = tuple(replace(sample, text=text) for sample, text in zip(group.samples, replies, strict=True))
    scores = tuple(make_score(1.0, text) for text in replies)
    return ScoredGroup(group=replace(group, samples=samples), scores=scores)


def test_a_row_says_how_many_answers_go_through_the_objects_and_are_exactly_right():
    # Two objects in the scene; 0.color.blue is the true change.
    first = [
        "<think> 0 red blue 1 blue blue </think> <answer> 0.color.blue </answer>",  # careful, exact
        "<think> 0 turned blue </think> <answer> 0.color.blue </answer>",  # exact; one of two objects
        "0 red blue 1 blue blue 0.color.blue",  # malformed: neither, and no triplets
    ]
    second = [
        "<think> 0 red 1 blue </think> <answer> 0.color.red, 1.size.large, 9.a.b </answer>",  # careful, wrong
        "<think> 0.color.blue, 1.size.large </think> <answer> 0.color.blue, 0.color.blue </answer>",  # guesses; exact
        "<think> 1 blue 0 red </think> <answer> </answer>",  # the wrong way round; no change is wrong
    ]
    groups = tuple(
        with_replies(make_group(make_prompt(f"{number}/basic/center"), version=2, num_samples=3), replies)
        for number, replies in enumerate((first, second))
    )
    row = step_row(REPORT, groups, TIMES, SCORING, set(), step_s=4.0, elapsed_s=20.0)
    assert row["careful"] == pytest.approx(2 / 6)
    assert row["exact"] == pytest.approx(3 / 6)
    assert row["triplets"] == pytest.approx((1 + 1 + 0 + 3 + 2 + 0) / 6)
    assert row["well_formed"] == pytest.approx(5 / 6)


def test_a_row_counts_cut_off_answers_and_their_lengths():
    scored = make_scored(make_group(make_prompt("0/basic/center"), version=2, num_samples=2), [0.0, 0.0])
    short, long = scored.group.samples
    (span,) = long.trace.versions
    trace = replace(
        long.trace,
        token_ids=np.arange(6, dtype=np.int32),
        logprobs=np.full(6, -0.5, np.float32),
        versions=(replace(span, end=6),),
        finish="length",
    )
    group = replace(scored.group, samples=(short, replace(long, trace=trace)))
    row = step_row(REPORT, (replace(scored, group=group),), TIMES, SCORING, set(), step_s=4.0, elapsed_s=20.0)
    assert row["cut_off"] == 0.5
    assert row["answer_length"] == 4.0  # 2 and 6 tokens
    assert (row["publish_s"], row["transfer_s"], row["pause_s"]) == (0.5, 0.375, 0.25)


def test_a_term_that_a_score_leaves_out_is_0_there():
    group = make_scored(make_group(make_prompt("0/basic/center"), version=2, num_samples=2), [3.0, 1.0])
    scores = (replace(group.scores[0], parts={"long": 3.0}), replace(group.scores[1], parts={"short": 1.0}))
    varied = replace(group, scores=scores)
    assert terms_of([group, varied]) == {"all", "long", "short"}
    row = step_row(REPORT, (varied,), TIMES, SCORING, {"long", "short", "seen before"}, step_s=4.0, elapsed_s=20.0)
    assert (row["reward/long"], row["reward/short"], row["reward/seen before"]) == (1.5, 0.5, 0.0)
    assert terms_in([row, {"step": 1}]) == {"long", "short", "seen before"}


def test_small_numbers_are_written_as_exactly_as_large_ones(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.write({"step": 1_234_567, "learning_rate": 1e-7 / 3, "sampler_kl": 4.6e-12, "answer_tokens": 1_234_567.4})
    file.close()
    (row,) = read_rows(tmp_path / "metrics.jsonl")
    assert row == {"step": 1_234_567, "learning_rate": 3.33333e-8, "sampler_kl": 4.6e-12, "answer_tokens": 1_234_567.0}


def test_a_row_is_on_disk_as_soon_as_it_is_written(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.write({"step": 1})
    assert read_rows(tmp_path / "metrics.jsonl") == [{"step": 1}]
    file.close()
    with pytest.raises(ValueError, match="closed file"):
        file.write({"step": 2})


def test_rows_are_replaced_at_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 9}\n')
    write_rows(path, [{"step": 1}, {"step": 2}])
    assert read_rows(path) == [{"step": 1}, {"step": 2}]
    assert list(tmp_path.iterdir()) == [path]


def test_a_supervised_row_by_hand():
    row = imitation_row(REPORT, samples=4, step_s=2.0, elapsed_s=20.0)
    assert (row["step"], row["version"], row["loss"], row["ratio"]) == (3, 3, 0.5, 1.0)
    assert (row["answer_tokens"], row["answer_length"]) == (12.0, 3.0)
    assert (row["tokens_per_s"], row["samples_per_s"]) == (6.0, 2.0)
    assert "step   3/10  version   3  loss +0.5000  6 tokens/s" in step_line(
        row, steps=10, left_s=0.0, shares=("exact",)
    )


def cells(table) -> dict[str, list[str]]:
    """What the table shows, by its first column."""
    console = Console(width=100)
    with console.capture() as capture:
        console.print(table)
    lines = [line.split("│")[1:-1] for line in capture.get().splitlines() if "│" in line]
    return {line[0].strip(): [cell.strip() for cell in line[1:]] for line in lines}


def test_the_reward_table_compares_the_first_and_the_last_steps():
    rows = [{"reward": float(step), "reward/format": 0.5, "loss": 9.0} for step in range(20)]
    assert cells(reward_table(rows, window=2)) == {
        "total": ["+0.500", "+18.500", "+18.000"],  # (0 + 1) / 2, (18 + 19) / 2
        "format": ["+0.500", "+0.500", "+0.000"],
    }


def test_the_reward_table_shows_every_term_that_any_row_has():
    rows = [{"reward": 1.0, "reward/format": 1.0}, {"reward": 2.0, "reward/right": 2.0}]
    assert cells(reward_table(rows, window=1)) == {
        "total": ["+1.000", "+2.000", "+1.000"],
        "format": ["+1.000", "+0.000", "-1.000"],
        "right": ["+0.000", "+2.000", "+2.000"],
    }


def test_the_metrics_table_shows_a_missing_setting_as_a_dash():
    read = TASK.judge("<think></think><answer>0.color.blue</answer>", GOLD, {})
    shown = cells(metrics_table(TASK, {"now": TASK.report([read], mean_tokens=9.0)}))
    assert shown["Basic/Acc"] == ["1"]
    assert shown["Event/Acc"] == ["-"]


def test_a_row_that_a_power_cut_has_left_half_written_is_none(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_rows(path) == [{"step": 1}, {"step": 2}]
