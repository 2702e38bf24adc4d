"""What the records refuse."""

import pickle

import numpy as np
import pytest

from records.samples import PolicyVersion, Score, ScoringFailure, Trace, VersionSpan


def trace(spans: list[tuple[int, int, int]], logprobs: list[float], finish: str = "stop") -> Trace:
    return Trace(
        prompt_token_ids=np.array([1, 2], dtype=np.int32),
        token_ids=np.arange(3, dtype=np.int32),
        logprobs=np.array(logprobs, dtype=np.float32),
        versions=tuple(VersionSpan(version=PolicyVersion(v), start=start, end=end) for v, start, end in spans),
        finish=finish,
    )


def test_a_trace_knows_its_oldest_version():
    assert trace([(5, 0, 2), (4, 2, 3)], [-1.0, -1.0, -1.0]).oldest_version == 4


@pytest.mark.parametrize(
    "spans",
    [[], [(0, 0, 2)], [(0, 0, 4)], [(0, 1, 3)], [(0, 0, 2), (1, 1, 3)], [(0, 0, 3), (1, 3, 3)]],
)
def test_version_spans_must_cover_the_answer(spans):
    with pytest.raises(ValueError, match="spans"):
        trace(spans, [-1.0, -1.0, -1.0])


def test_log_probs_must_be_finite_and_as_many_as_tokens():
    with pytest.raises(ValueError, match="not finite"):
        trace([(0, 0, 3)], [-1.0, float("-inf"), -1.0])
    with pytest.raises(ValueError, match="2 log-probs for 3"):
        trace([(0, 0, 3)], [-1.0, -1.0])


def test_parts_of_a_score_sum_to_its_total():
    with pytest.raises(ValueError, match=r"sum to 1\.0"):
        Score(total=2.0, parts={"format": 1.0}, judgement=None)


def test_a_scoring_failure_travels_to_another_process():
    failure = pickle.loads(pickle.dumps(ScoringFailure("a/0", "boom")))
    assert (failure.sample_id, failure.cause) == ("a/0", "boom")
