"""What happens to the learner is the run's activity; what happens to others is not."""

import io

import pytest
from rich.console import Console

from orchestrator.loop.activity import Activity, Phase
from orchestrator.run.journal import Journal
from orchestrator.run.teller import Teller


@pytest.fixture
def activity() -> Activity:
    activity = Activity()
    activity.enter(Phase.LEARNING)
    return activity


@pytest.fixture
def teller(activity, tmp_path) -> Teller:
    return Teller(Journal(tmp_path), Console(file=io.StringIO()), activity)


def test_the_run_recovers_from_the_end_of_a_learner_until_another_serves(teller, activity):
    teller("ended", worker="learner-0", why="killed")
    assert activity.phase is Phase.RECOVERING
    for event in ("gone", "starting", "runs", "making again"):
        teller(event, worker="learner-1")
    assert activity.phase is Phase.RECOVERING
    teller("serving", worker="learner-1", version=3)
    assert activity.phase is Phase.LEARNING


def test_steps_made_again_by_a_new_driver_are_recovery_too(teller, activity):
    teller("making again", worker="learner-0", steps=2)
    assert activity.phase is Phase.RECOVERING


def test_the_end_of_another_worker_does_not_keep_the_learner_from_learning(teller, activity):
    for worker in ("rollout-0", "reward-0"):
        teller("ended", worker=worker, why="killed")
    assert activity.phase is Phase.LEARNING
