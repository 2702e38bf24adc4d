"""One scoring worker: a plain class, made a Ray actor where the orchestrator places it."""

import traceback

from reward_service.config import RewardConfig
from reward_service.rules import load_rule, score
from tvr.records import SampleGroup, Score, ScoringFailure


class RewardWorker:
    """Scores groups, one reply after another. Holds no state but the rule, so any worker may score any group again."""

    def __init__(self, config: RewardConfig) -> None:
        """Raises ValueError when the rule cannot be imported."""
        self._rule = load_rule(config)

    def score(self, group: SampleGroup) -> tuple[Score, ...]:
        """One score a sample, in order.

        Raises ScoringFailure, with the traceback as its cause, when the rule raises or returns no finite numbers.
        """
        return tuple(self._score(sample.id, sample.text, group) for sample in group.samples)

    def _score(self, sample_id: str, reply: str, group: SampleGroup) -> Score:
        try:
            return score(self._rule, reply, group.prompt.gold)
        except Exception as error:  # whatever a user's rule may raise
            raise ScoringFailure(sample_id, traceback.format_exc()) from error
