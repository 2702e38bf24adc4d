"""Which samples go through which rank in which forward pass. Pure; every rank computes the same plan.

A row is a group's prompt with all or some of its samples, `prompt | answer 1 | ... | answer G`; a group longer than the
budget is split into rows that each have the prompt. Rows of one pass stand one after the other, without padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """*samples* (indices) of one *group* (an index into the step's groups), behind its prompt; *tokens* in all."""

    group: int
    samples: tuple[int, ...]
    tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """Rows of one forward pass. Its weight is 0 if it is only there to fill up."""

    rows: tuple[Row, ...]
    is_filler: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupLengths:
    """What planning needs to know of one group: its index in the step, tokens of the prompt and of each answer."""

    group: int
    prompt: int
    answers: tuple[int, ...]


def plan_passes(groups: Sequence[GroupLengths], ranks: int, row_tokens: int) -> tuple[tuple[Pass, ...], ...]:
    """Passes of each rank: every sample once in all, every rank with the same number of passes.

    ZeRO's collectives need the equal number; a rank that has too few repeats the shortest row with weight 0.
    """
    rows = [row for group in groups for row in split_group(group, row_tokens)]
    passes = [_pack(share, row_tokens) for share in share_rows(rows, ranks)]
    most = max(map(len, passes))
    filler = Pass(rows=(min(rows, key=lambda row: row.tokens),), is_filler=True)
    return tuple(tuple(own + [filler] * (most - len(own))) for own in passes)


def split_group(group: GroupLengths, row_tokens: int) -> list[Row]:
    """The group's samples in rows of at most *row_tokens*, in order; a row of one sample may be longer than that.

    >>> [row.samples for row in split_group(GroupLengths(group=0, prompt=10, answers=(5, 5, 5, 30)), row_tokens=21)]
    [(0, 1), (2,), (3,)]
    """
    rows: list[Row] = []
    samples: list[int] = []
    tokens = group.prompt
    for sample, length in enumerate(group.answers):
        if samples and tokens + length > row_tokens:
            rows.append(Row(group=group.group, samples=tuple(samples), tokens=tokens))
            samples, tokens = [], group.prompt
        samples.append(sample)
        tokens += length
    return [*rows, Row(group=group.group, samples=tuple(samples), tokens=tokens)]


def share_rows(rows: Sequence[Row], ranks: int) -> list[list[Row]]:
    """Rows of each rank, balanced by tokens: the longest first, each to the rank that has the least so far."""
    shares: list[list[Row]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for row in sorted(rows, key=lambda row: (-row.tokens, row.group, row.samples)):
        least = loads.index(min(loads))
        shares[least].append(row)
        loads[least] += row.tokens
    return shares


def _pack(share: Sequence[Row], row_tokens: int) -> list[Pass]:
    """First fit; *share* comes longest first, so short rows fill the room that long ones leave."""
    passes: list[list[Row]] = []
    room: list[int] = []
    for row in share:
        fitting = (index for index, left in enumerate(room) if left >= row.tokens)
        index = next(fitting, len(passes))
        if index == len(passes):
            passes.append([])
            room.append(row_tokens)
        passes[index].append(row)
        room[index] -= row.tokens
    return [Pass(rows=tuple(rows)) for rows in passes]
