"""Plans of forward passes and of weight buckets."""

import random

import pytest
import torch

from learner.packing import GroupLengths, plan_passes, split_group
from learner.weights import pack_bucket, plan_buckets


def lengths(group: int, prompt: int, *answers: int) -> GroupLengths:
    return GroupLengths(group=group, prompt=prompt, answers=answers)


@pytest.mark.parametrize("ranks", [1, 2, 5])
@pytest.mark.parametrize("row_tokens", [1, 30, 1000])
def test_every_sample_once_and_every_rank_equally_often(ranks: int, row_tokens: int) -> None:
    rng = random.Random(ranks * row_tokens)
    groups = [
        lengths(index, rng.randint(1, 9), *(rng.randint(1, 20) for _ in range(rng.randint(1, 6))))
        for index in range(rng.randint(1, 12))
    ]
    plan = plan_passes(groups, ranks, row_tokens)
    assert len(plan) == ranks
    assert len({len(passes) for passes in plan}) == 1
    real = [rows for passes in plan for rows in passes if not rows.is_filler]
    samples = [(row.group, sample) for rows in real for row in rows.rows for sample in row.samples]
    assert sorted(samples) == [(group.group, sample) for group in groups for sample in range(len(group.answers))]
    for rows in real:
        one_sample = len(rows.rows) == 1 and len(rows.rows[0].samples) == 1
        assert one_sample or sum(row.tokens for row in rows.rows) <= row_tokens
        for row in rows.rows:
            group = groups[row.group]
            assert row.tokens == group.prompt + sum(group.answers[sample] for sample in row.samples)


def test_rows_are_balanced_by_tokens() -> None:
    # Rows of 5, 9, 4 and 2 tokens; longest first, each to the emptier rank: 9 | 5 4, then 2 to the first, which has as
    # much and comes first. A pass holds 10 tokens: 9 | 2 and 5 4.
    groups = [lengths(0, 4, 1), lengths(1, 4, 5), lengths(2, 3, 1), lengths(3, 1, 1)]
    plan = plan_passes(groups, ranks=2, row_tokens=10)
    assert [[[row.group for row in rows.rows] for rows in passes] for passes in plan] == [[[1], [3]], [[0, 2], [3]]]
    assert plan[1][1].is_filler


def test_short_rows_fill_the_room_that_long_ones_leave() -> None:
    # Rows of 9, 8, 2 and 1; 10 a pass: 9, then 8 apart, 2 with the 8, 1 with the 9.
    groups = [lengths(0, 4, 5), lengths(1, 4, 4), lengths(2, 1, 1), lengths(3, 0, 1)]
    (passes,) = plan_passes(groups, ranks=1, row_tokens=10)
    assert [[row.group for row in rows.rows] for rows in passes] == [[0, 3], [1, 2]]


def test_a_group_longer_than_the_budget_is_split_and_each_part_has_the_prompt() -> None:
    # Prompt 10, budget 21: 10 + 5 + 5 = 20; the third 5 would make 25; 10 + 5 + 30 = 45 > 21, so 30 is alone, over it.
    rows = split_group(lengths(7, 10, 5, 5, 5, 30), row_tokens=21)
    assert [(row.group, row.samples, row.tokens) for row in rows] == [(7, (0, 1), 20), (7, (2,), 15), (7, (3,), 40)]


def test_a_row_may_be_full() -> None:
    rows = split_group(GroupLengths(group=0, prompt=10, answers=(5, 5, 1)), row_tokens=20)
    assert [(row.samples, row.tokens) for row in rows] == [((0, 1), 20), ((2,), 11)]


def test_buckets_hold_every_name_once_in_order() -> None:
    # 4 + 5 <= 10; 20 is larger than a bucket and has its own; 1.
    assert plan_buckets([("a", 4), ("b", 5), ("c", 20), ("d", 1)], 10) == (("a", "b"), ("c",), ("d",))
    assert plan_buckets([], 10) == ()
    with pytest.raises(ValueError, match="max_bytes is 0"):
        plan_buckets([("a", 4)], 0)


def test_a_staged_bucket_is_the_same_and_lies_where_it_was_staged():
    tensors = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.arange(5, dtype=torch.bfloat16)}
    staging = torch.zeros(40, dtype=torch.uint8)
    infos, bucket = pack_bucket(tensors, keep=False, staging=staging)
    plain_infos, plain = pack_bucket(tensors, keep=True)
    assert infos == plain_infos
    assert all(bucket[name].tobytes() == plain[name].tobytes() for name in tensors)
    # 6 numbers of 4 bytes, then 5 of 2.
    assert staging.numpy().tobytes() == plain["a"].tobytes() + plain["b"].tobytes() + bytes(6)
    assert [array.ctypes.data - staging.data_ptr() for array in bucket.values()] == [0, 24]
