"""Groups as JSON and arrays, to be kept on a disk: nothing that is read from there is run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from typing import Any

import numpy as np
from pydantic import ConfigDict, TypeAdapter

from records.samples import ScoredGroup

_STANDS_FOR = "$stands for"


def pack(groups: Sequence[ScoredGroup]) -> tuple[str, dict[str, np.ndarray]]:
    """*groups* as JSON, and the arrays and pictures that a name stands for in it; what several share is kept once."""
    arrays: dict[str, np.ndarray] = {}
    names: dict[int, str] = {}

    def plain(value: Any) -> dict[str, Any]:
        if not isinstance(value, bytes | np.ndarray):
            return {name: getattr(value, name) for name in _field_names(value.__class__)}
        if id(value) not in names:
            kind = "picture" if isinstance(value, bytes) else "array"
            name = names[id(value)] = f"{kind} {len(arrays)}"
            arrays[name] = np.frombuffer(value, np.uint8) if isinstance(value, bytes) else np.ascontiguousarray(value)
        return {_STANDS_FOR: names[id(value)]}

    return json.dumps(groups, default=plain), arrays


@cache
def _field_names(kind: Any) -> tuple[str, ...]:
    """Raises TypeError for what is no record."""
    return tuple(field.name for field in fields(kind))


def unpack(text: str, arrays: Mapping[str, np.ndarray]) -> tuple[ScoredGroup, ...]:
    """What was packed, checked as it was when it was made; a judgement is the dict of its fields. Raises ValueError,
    or KeyError for an array that is not there.
    """

    def put_back(entry: dict[str, Any]) -> Any:
        if _STANDS_FOR not in entry:
            return entry
        name = entry[_STANDS_FOR]
        return arrays[name].tobytes() if name.startswith("picture") else arrays[name]

    kind = TypeAdapter(tuple[ScoredGroup, ...], config=ConfigDict(arbitrary_types_allowed=True))
    return kind.validate_python(json.loads(text, object_hook=put_back))
