"""One scoring worker: a plain class, made a Ray actor where the orchestrator places it."""

from reward_service.config import RewardConfig
from reward_service.rules import load_rule, score_sample
from tvr.records import SampleGroup, Score


class RewardWorker:
    """Scores groups, one reply after another. Holds no state but the rule, so any worker may score any group again."""

    def __init__(self, config: RewardConfig) -> None:
        """Raises ValueError when the rule cannot be imported."""
        self._rule = load_rule(config)

    def score(self, group: SampleGroup) -> tuple[Score, ...]:
        """One score a sample, in order.

        Raises ScoringFailure, with the traceback as its cause, when the rule raises or returns no finite numbers.
        """
        gold = group.prompt.gold
        return tuple(score_sample(self._rule, sample.id, sample.text, gold) for sample in group.samples)
