"""Which row goes through which rank in which forward pass. Pure; every rank computes the same plan.

A row is one group, `prompt | answer 1 | ... | answer G`. Rows of one pass are padded to the longest among them, so rows
of like length go together.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """Rows (indices into the step's groups) of one forward pass. Its weight is 0 if it is only there to fill up."""

    rows: tuple[int, ...]
    is_filler: bool = False


def plan_passes(row_lengths: Sequence[int], ranks: int, row_tokens: int) -> tuple[tuple[Pass, ...], ...]:
    """Passes of each rank: every row once in all, every rank with the same number of passes.

    ZeRO's collectives need the equal number; a rank that has too few repeats the shortest row with weight 0.
    """
    shares = share_rows(row_lengths, ranks)
    passes = [_pack(share, row_lengths, row_tokens) for share in shares]
    most = max(map(len, passes))
    shortest = min(range(len(row_lengths)), key=lambda row: row_lengths[row])
    filler = Pass(rows=(shortest,), is_filler=True)
    return tuple(tuple(own + [filler] * (most - len(own))) for own in passes)


def share_rows(row_lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Rows of each rank, balanced by tokens: the longest first, each to the rank that has the least so far.

    >>> share_rows([5, 9, 4, 2], ranks=2)
    [[1, 3], [0, 2]]
    """
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for row in sorted(range(len(row_lengths)), key=lambda row: (-row_lengths[row], row)):
        least = loads.index(min(loads))
        shares[least].append(row)
        loads[least] += row_lengths[row]
    return shares


def _pack(share: list[int], row_lengths: Sequence[int], row_tokens: int) -> list[Pass]:
    """*share* comes longest first, so a pass is as long as its first row."""
    passes: list[Pass] = []
    current: list[int] = []
    for row in share:
        if current and (len(current) + 1) * row_lengths[current[0]] > row_tokens:
            passes.append(Pass(rows=tuple(current)))
            current = []
        current.append(row)
    return [*passes, Pass(rows=tuple(current))] if current else passes
