"""What was sampled, as the page's gallery takes it: each prompt and picture once, a byte a number.

A page holds at most MOST_SAMPLES of a run, as whole groups, evenly over its steps.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator.report.run_data import RunData, kind_of
from records.pictures import decode
from records.samples import Prompt
from records.task import Task

MOST_SAMPLES = 10_000
MOST_PIXELS = 480
"""Width and height of a picture on the page."""
QUALITY = 60
UNKNOWN = -128
"""Stands for a log-prob difference that nobody has."""
LEAST_NATS, MOST_NATS = 1e-3, 10.0
"""Differences are told apart between these: linear below the first, by their logarithm above, cut at the second."""


def choose_groups(tickets: Sequence[int], most: int = MOST_SAMPLES) -> list[int]:
    """Of samples whose groups are *tickets*, in order, those groups that a page holds: all, or evenly so many.

    >>> choose_groups([0, 0, 1, 1, 2, 2, 3, 3], most=4)
    [1, 3]
    """
    groups = list(dict.fromkeys(tickets))
    share = min(1.0, most / max(1, len(tickets)))
    return [ticket for place, ticket in enumerate(groups) if int((place + 1) * share) > int(place * share)]


class Shelf:
    """Prompts and pictures of all runs of a page, each once."""

    def __init__(self) -> None:
        self.pictures: list[str] = []
        self.prompts: list[dict[str, Any]] = []
        self._picture: dict[bytes, int] = {}
        self._prompt: dict[tuple[str, str], int] = {}

    def prompt(self, run: RunData, prompt_id: str) -> int:
        """Its place. Prompts of different data are different, whatever they are called."""
        key = (run.data_identity, prompt_id)
        if key not in self._prompt:
            self._prompt[key] = len(self.prompts)
            self.prompts.append({"id": prompt_id, **self._shown(run.task, run.prompts.get(prompt_id))})
        return self._prompt[key]

    def _shown(self, task: Task | None, prompt: Prompt | None) -> dict[str, Any]:
        if task is None or prompt is None:
            return {"kind": "", "truth": None, "pictures": []}
        pictures = [self._place(picture) for picture in prompt.pictures]
        return {"kind": kind_of(task, prompt), "truth": task.truth(prompt.gold), "pictures": pictures}

    def _place(self, picture: bytes) -> int:
        if picture not in self._picture:
            self._picture[picture] = len(self.pictures)
            self.pictures.append(shrink(picture))
        return self._picture[picture]


@lru_cache(maxsize=4096)
def shrink(picture: bytes) -> str:
    """As WebP in base64, no wider or higher than the page shows it; empty for one that is damaged."""
    try:
        image = decode(picture).convert("RGB")
    except ValueError:
        return ""
    image.thumbnail((MOST_PIXELS, MOST_PIXELS))
    out = io.BytesIO()
    image.save(out, "WEBP", quality=QUALITY, method=0)
    return base64.b64encode(out.getvalue()).decode()


def gallery(run: RunData, shelf: Shelf) -> dict[str, Any]:
    """The groups of *run* and their samples, whose prompts come to the *shelf*; see `assets/gallery.js`."""
    rows = run.traces.drop_columns(["token_ids", "versions", "logprobs", "learner_logprobs", "found"]).to_pylist()
    spans = _version_spans(run.traces["versions"])
    terms = sorted({term["name"] for row in rows for term in row["terms"]})
    groups: dict[int, dict[str, Any]] = {}
    samples = []
    for place, (row, versions) in enumerate(zip(rows, spans, strict=True)):
        if row["ticket"] not in groups:
            prompt = shelf.prompt(run, row["prompt_id"])
            worker = row["worker"] or ""
            about = {"ticket": row["ticket"], "step": row["step"], "prompt": prompt, "worker": worker}
            groups[row["ticket"]] = {**about, "first": place, "count": 0}
        groups[row["ticket"]]["count"] += 1
        samples.append(_sample(row, terms, versions, run.task, run.prompts.get(row["prompt_id"])))
    return {
        "groups": list(groups.values()),
        "samples": samples,
        "terms": terms,
        "total": run.traces_total,
        **_tokens(run),
    }


def _sample(
    row: Mapping[str, Any], terms: Sequence[str], versions: list[list[int]], task: Task | None, prompt: Prompt | None
) -> dict[str, Any]:
    """Short names: there are thousands. A reply that cannot be read beside the truth stands there as it is."""
    paid = {term["name"]: term["value"] for term in row["terms"]}
    found: dict[str, Any] = {
        "r": round(row["reward"], 4),
        "t": [round(paid.get(name, 0.0), 4) for name in terms],
        "v": versions,
        "f": row["finish"],
        "s": [_seconds(row["asked_at"], row[name]) for name in ("first_token_at", "ended_at", "scored_at")],
    }
    if task is None or prompt is None:
        return found | {"x": row["reply"], "m": row["malformed"]}
    read = task.read(row["reply"], prompt.gold)
    if read.malformed is not None:
        return found | {"x": row["reply"], "m": read.malformed, "g": list(read.missing)}
    claims = [[claim.text, claim.right] for claim in read.claims]
    return found | {"n": read.reasoning, "c": claims, "g": list(read.missing)}


def _seconds(start: Any, end: Any) -> float | None:
    return None if start is None or end is None else round((end - start).total_seconds(), 2)


def _version_spans(versions: pa.ChunkedArray) -> list[list[list[int]]]:
    """Of each answer, versions in turn and how many tokens each has sampled."""
    found = []
    for each in versions:
        values = each.values.to_numpy()
        ends = [*np.flatnonzero(np.diff(values)).tolist(), len(values) - 1]
        starts = [0, *(end + 1 for end in ends)]
        found.append([[int(values[end]), end + 1 - start] for start, end in zip(starts, ends, strict=False)])
    return found


def _tokens(run: RunData) -> dict[str, Any]:
    """Of the tokens of all samples in turn: *vocabulary* and the place of each in it, and *differences* in a byte each.

    *lengths* are those of the answers.
    """
    ids = run.traces["token_ids"].combine_chunks()
    learned = run.traces["learner_logprobs"].combine_chunks()
    lengths = np.diff(ids.offsets.to_numpy())
    known, places = np.unique(ids.flatten().to_numpy(), return_inverse=True)
    sampled = run.traces["logprobs"].combine_chunks().flatten().to_numpy()
    differences = np.full(len(sampled), UNKNOWN, np.int8)
    has = np.repeat(learned.is_valid().to_numpy(zero_copy_only=False), lengths)
    differences[has] = quantise(learned.drop_null().flatten().to_numpy() - sampled[has])
    texts = [run.tokens(int(token)) for token in known]
    return {
        "lengths": lengths.tolist(),
        "vocabulary": [f"#{token}" if text is None else text for token, text in zip(known, texts, strict=True)],
        "tokens": _base64(places.astype(np.uint32 if len(known) > 1 << 16 else np.uint16)),
        "differences": _base64(differences),
        "nats": [LEAST_NATS, MOST_NATS],
    }


def quantise(nats: np.ndarray) -> np.ndarray:
    """In [-127, 127]: 0 is 0, and 127 MOST_NATS or more.

    >>> quantise(np.array([0.0, 10.0, -99.0, 0.001])).tolist()
    [0, 127, -127, 11]
    """
    scaled = np.arcsinh(nats / LEAST_NATS) / np.arcsinh(MOST_NATS / LEAST_NATS)
    return np.rint(127 * np.clip(scaled, -1, 1)).astype(np.int8)


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode()
