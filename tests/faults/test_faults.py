"""Workers are lost in a run, and it comes out as if nothing had been.

`README.md` says what is promised; `nodes.py` loses nodes, and `make soak` makes many more faults, drawn from a seed.
"""

import pytest

from tests.faults.faulty_run import Fault, FaultyRun, Outcome

pytestmark = pytest.mark.slow

WORKERS = (
    Fault("kill", "rollout", "sample"),
    Fault("kill", "reward", "score"),
    Fault("kill", "learner", "step"),
    Fault("kill", "rollout", "load"),
    Fault("stop", "rollout", "sample"),
    Fault("kill", "driver", "export"),
)


def suffer(run: FaultyRun, fault: Fault) -> None:
    witness = run.strike(fault, after=max(1, run.served()))
    run.await_recovery(witness)


def check_comes_out_the_same(run: FaultyRun, undisturbed: Outcome, faults: tuple[Fault, ...]) -> None:
    run.finish()
    assert [witness.fault for witness in run.witnesses] == list(faults)
    outcome = Outcome.of(run.out)
    assert outcome.prompts == undisturbed.prompts
    assert outcome.rows == undisturbed.rows
    assert outcome.parameters == undisturbed.parameters


def test_whatever_worker_is_lost_the_run_comes_out_the_same(run: FaultyRun, undisturbed: Outcome):
    run.start()
    for fault in WORKERS:
        suffer(run, fault)
    check_comes_out_the_same(run, undisturbed, WORKERS)
    hung = [event.facts["worker"] for event in run.events() if "completed nothing" in event.facts.get("why", "")]
    assert [path.stem for path in (run.out / "stacks").iterdir()] == hung
    assert "MainThread" in (run.out / "stacks" / f"{hung[0]}.txt").read_text()
