"""Every kind of worker is lost in a run, at one stage after another, and the run comes out as if nothing had been.

`README.md` says what is promised; `python -m tests.faults.soak` makes many more, drawn from a seed.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.faulty_run import Fault, FaultyRun, Outcome, run_undisturbed
from tests.faults.settings import settings

pytestmark = pytest.mark.slow

PLAN = (
    Fault("kill", "rollout", "sample"),
    Fault("kill", "reward", "score"),
    Fault("kill", "learner", "step"),
    Fault("kill", "rollout", "load"),
    Fault("stop", "rollout", "sample"),
    Fault("break", "rollout", "sample"),
    Fault("kill", "learner", "export"),
    Fault("kill", "driver", "step"),
    Fault("kill", "learner", "checkpoint"),
)


@pytest.fixture
def run(data: Path, tmp_path: Path) -> Iterator[FaultyRun]:
    it = FaultyRun(tmp_path / "faulty", settings(data, steps=2 * len(PLAN)))
    yield it
    it.end()


def test_whatever_is_lost_the_run_comes_out_the_same(run: FaultyRun, tmp_path: Path):
    undisturbed = run_undisturbed(tmp_path / "undisturbed", run.settings)
    run.start()
    version = 1
    for fault in PLAN:
        witness = run.strike(fault, after=version)
        run.await_recovery(witness)
        sys.stdout.write(f"{fault}: {witness.recovered_s:.1f} s, {witness.asked_again} asked again\n")
        version = max(event.facts["version"] for event in run.events() if event.name == "served")
    run.finish()
    assert len(run.witnesses) == len(PLAN)
    outcome = Outcome.of(run.out)
    assert outcome.prompts == undisturbed.prompts
    assert outcome.rows == undisturbed.rows
    assert outcome.parameters == undisturbed.parameters
    (stacks,) = (run.out / "stacks").iterdir()  # of the one that hung
    assert "rollout" in stacks.name
    assert "MainThread" in stacks.read_text()
    ended = [json.loads(line) for line in (run.out / "journal.jsonl").read_text().splitlines() if '"ended"' in line]
    assert any("completed nothing" in event["why"] for event in ended)
