"""Plans of forward passes and of weight buckets."""

import random

import pytest

from learner.packing import plan_passes
from learner.weights import plan_buckets


@pytest.mark.parametrize("ranks", [1, 2, 5])
@pytest.mark.parametrize("row_tokens", [1, 30, 1000])
def test_every_row_once_and_every_rank_equally_often(ranks: int, row_tokens: int) -> None:
    rng = random.Random(ranks * row_tokens)
    lengths = [rng.randint(1, 20) for _ in range(rng.randint(1, 12))]
    plan = plan_passes(lengths, ranks, row_tokens)
    assert len(plan) == ranks
    assert len({len(passes) for passes in plan}) == 1
    real = [rows for passes in plan for rows in passes if not rows.is_filler]
    assert sorted(row for rows in real for row in rows.rows) == list(range(len(lengths)))
    for rows in real:
        assert len(rows.rows) == 1 or len(rows.rows) * max(lengths[row] for row in rows.rows) <= row_tokens


def test_rows_are_balanced_by_tokens() -> None:
    # Longest first, each to the emptier rank: 9 | 5 4, then 2 to the first, which has as much and comes first.
    plan = plan_passes([5, 9, 4, 2], ranks=2, row_tokens=10)
    assert [[rows.rows for rows in passes] for passes in plan] == [[(1,), (3,)], [(0, 2), (3,)]]
    assert plan[1][1].is_filler


def test_padding_counts_against_the_budget() -> None:
    # 3 rows of 10, 6 and 2 tokens are 18 tokens, and 30 padded: two passes of 20 and 2.
    (passes,) = plan_passes([10, 6, 2], ranks=1, row_tokens=20)
    assert [rows.rows for rows in passes] == [(0, 1), (2,)]


def test_buckets_hold_every_name_once_in_order() -> None:
    # 4 + 5 <= 10; 20 is larger than a bucket and has its own; 1.
    assert plan_buckets([("a", 4), ("b", 5), ("c", 20), ("d", 1)], 10) == (("a", "b"), ("c",), ("d",))
    assert plan_buckets([], 10) == ()
    with pytest.raises(ValueError, match="max_bytes is 0"):
        plan_buckets([("a", 4)], 0)
