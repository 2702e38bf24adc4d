"""How many answers of a step were long enough to be punished."""

from typing import Any

import pytest

from learner.actor import LearnerRank
from learner.config import LearnerConfig
from learner.loss_config import LossConfig
from records.samples import PolicyVersion, StepReport
from tests.learner.made_groups import make_group
from tests.learner.ranks import make_job


class Unconnected(LearnerRank):
    """Without a policy: nothing is learned, the report has no statistics of tokens."""

    def _weigh(self, *_: Any) -> Any:
        return [], []

    def _update(self, *_: Any) -> StepReport:
        return StepReport(version=PolicyVersion(1), loss=0.0, grad_norm=0.0, tokens=0)


# At most 16 tokens; 13 of two answers and 16 of one are more than 16 - 4, 12 are not.
@pytest.mark.parametrize(("buffer", "share"), [(0, 0.0), (4, 3 / 5), (5, 4 / 5), (15, 1.0)])
def test_answers_in_the_buffer_count_over_all_answers_of_the_step(
    buffer: int, share: float, policy_folder: str, tmp_path: Any
) -> None:
    config = LearnerConfig(loss=LossConfig(overlong_buffer_tokens=buffer))
    rank = Unconnected(config, make_job(policy_folder, tmp_path), 0, 1)
    report = rank.step((make_group(0, [12, 13, 16]), make_group(1, [13, 2])))
    assert report.stats["overlong_fraction"] == share
