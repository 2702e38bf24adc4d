"""Which parameters travel together when a version is published. Pure."""

from collections.abc import Sequence


def plan_buckets(sizes: Sequence[tuple[str, int]], max_bytes: int) -> tuple[tuple[str, ...], ...]:
    """Names of each bucket, in the order given, every name once. *sizes* are (name, bytes).

    A bucket holds at most *max_bytes*, or one parameter that is larger.

    >>> plan_buckets([("a", 4), ("b", 5), ("c", 20), ("d", 1)], max_bytes=10)
    (('a', 'b'), ('c',), ('d',))
    """
    if max_bytes < 1:
        raise ValueError(f"max_bytes is {max_bytes}; a bucket must hold at least one byte")
    buckets: list[tuple[str, ...]] = []
    current: list[str] = []
    used = 0
    for name, size in sizes:
        if current and used + size > max_bytes:
            buckets.append(tuple(current))
            current, used = [], 0
        current.append(name)
        used += size
    return tuple([*buckets, tuple(current)] if current else buckets)
