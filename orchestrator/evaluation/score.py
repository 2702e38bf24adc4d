"""Scores the replies that any model made to a data set, from a JSON-lines file, without a GPU or Ray.

Called by `star-r1 score`. Every sample of the split has exactly one reply, so that the metrics of two files can be
compared; what is wrong in the files is said as one `ConfigError`. A malformed reply is scored like any other.
"""

import gc
import json
import os
import traceback
from collections import Counter
from collections.abc import Collection, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from rich.console import Console
from rich.table import Table

from orchestrator.config import ConfigError
from orchestrator.display import metrics_table
from records.task import Golds, Judgement, Progress, Task
from reward_service.rules import Rule, compute_parts

PROGRESS_EVERY = 10_000


class RuleError(Exception):
    """A user's rule raised, or returned no finite numbers; the text has its traceback."""


class Reply(NamedTuple):
    """One line of a replies file; *num_tokens* is the length of the reply where the file gives it."""

    line: int
    text: str
    num_tokens: int | None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Verdict:
    """What the task and what the rule say of a reply; *parts* sum to *reward*.

    Replies of which they say the same share one: a million replies have some thousand verdicts.
    """

    judgement: Judgement
    reward: float
    parts: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        return {**self.judgement.to_json(), "reward": self.reward, "parts": self.parts}


class ScoredReply(NamedTuple):
    """One sample of the data, and the verdict on the reply to it."""

    id: str
    verdict: Verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreReport:
    """All replies of a split. *found* is the task's report, *samples* are in the data's order, whatever that of the
    replies.

    *reward* has the mean over the samples of the reward, as `total`, and of each of its parts, which sum to it; a part
    that the rule leaves out of a sample is 0 there.
    """

    found: dict[str, Any]
    reward: dict[str, float]
    samples: tuple[ScoredReply, ...]


def score_replies(
    task: Task, golds: Golds, replies: Path, rule: Rule, *, where: str, progress: Progress | None = None
) -> ScoreReport:
    """Score the file *replies*, `{"id", "reply"}` a line and perhaps `"num_tokens"`, against the *golds* of *task*.

    *where* is what messages call these. *progress* is told now and then how many are scored. Raises ConfigError, also
    when a user's rule fails: there is no report without a reward for every reply.
    """
    with _no_search_for_cycles():
        read = _read_replies(replies, _places(golds, where))
        mean_tokens = _mean_tokens(read)
        try:
            samples = tuple(_score_all(task, golds, read, rule, progress))
        except RuleError as error:
            raise ConfigError(f"{replies}, {error}") from error
        except ValueError as error:
            raise ConfigError(f"{where}: {error}; make the data set again") from error
    found = task.report([sample.verdict.judgement for sample in samples], mean_tokens)
    return ScoreReport(found=found, reward=_mean_reward(samples), samples=samples)


def write_json(report: ScoreReport, path: Path) -> None:
    """Write *report* as one JSON object, a sample a line; whole or not at all. Raises ConfigError."""
    summary = {**report.found, "reward": report.reward}
    encode = json.JSONEncoder(allow_nan=False).encode
    try:
        with _written_whole(path) as file:
            file.write("{\n")
            file.writelines(f"{encode(key)}: {encode(value)},\n" for key, value in summary.items())
            file.write('"samples": [')
            verdicts = {verdict: encode(verdict.to_json())[1:] for verdict in {item.verdict for item in report.samples}}
            for number, (sample_id, verdict) in enumerate(report.samples):
                file.write(f'{"," if number else ""}\n{{"id": {encode(sample_id)}, {verdicts[verdict]}')
            file.write("\n]\n}\n")
    except OSError as error:
        raise ConfigError(f"--json {path}: cannot be written ({error.strerror}); give another path") from error


def print_report(task: Task, report: ScoreReport, console: Console) -> None:
    """The metrics of *task* and their breakdowns, and the mean of each part of the reward."""
    metrics = metrics_table(task, {"value": report.found})
    metrics.title = "Metrics of the replies"
    console.print(metrics)
    reward = Table("part", title="Mean reward")
    reward.add_column("value", justify="right")
    for part, mean in report.reward.items():
        reward.add_row(part, f"{mean:+.3f}")
    console.print(reward)


def _places(golds: Golds, where: str) -> dict[str, int]:
    """The place of each id in the data. Raises ConfigError when an id has two."""
    places: dict[str, int] = {}
    for place, sample_id in enumerate(golds.ids()):
        if places.setdefault(sample_id, place) != place:
            raise ConfigError(
                f"{where}: has the id {sample_id!r} twice, so that replies cannot be told apart; rename one"
            )
    return places


def _read_replies(path: Path, places: dict[str, int]) -> list[Reply]:
    """The replies in the order of the data, one for each of its ids. Raises ConfigError."""
    replies: list[Reply | None] = [None] * len(places)
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.isspace():
                    _add_reply(replies, places, line, number)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give a file of replies, one a line") from error
    except ValueError as error:
        raise ConfigError(f"{path}, line {number}: {error}") from error
    complete = [reply for reply in replies if reply is not None]
    if len(complete) < len(places):
        missing = [sample_id for sample_id, place in places.items() if replies[place] is None]
        raise ConfigError(
            f"{path}: {len(missing)} of {len(places)} ids have no reply: {', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''}; add a line for each, with an empty reply where the model gave none"
        )
    return complete


def _add_reply(replies: list[Reply | None], places: dict[str, int], line: bytes, number: int) -> None:
    """Raises ValueError when the line, its id or its reply is not as it should be."""
    sample_id, text, num_tokens = _read_line(line)
    place = places.get(sample_id)
    if place is None:
        raise ValueError(
            f"the id {sample_id!r} is not among the {len(places)} of the split (the first is {next(iter(places))!r}); "
            "correct it, or name the data and the split that were asked"
        )
    earlier = replies[place]
    if earlier is not None:
        raise ValueError(f"the id {sample_id!r} has a reply in line {earlier.line} already; remove one of the two")
    replies[place] = Reply(number, text, num_tokens)


def _read_line(line: bytes) -> tuple[str, str, int | None]:
    """Id, reply and number of tokens. Raises ValueError with the remedy."""
    try:
        entry = json.loads(line.decode())
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, or brackets without end
        raise ValueError(f'is not JSON ({error}); write an object {{"id": ..., "reply": ...}} on each line') from error
    if not isinstance(entry, dict):
        raise ValueError(f'is {_shorten(entry)}, not an object; write {{"id": ..., "reply": ...}}')
    num_tokens = entry.get("num_tokens")
    if num_tokens is not None and (type(num_tokens) is not int or num_tokens < 0):
        raise ValueError(
            f"num_tokens is {_shorten(num_tokens)}; give the number of tokens of the reply, or leave it out"
        )
    return _get_text(entry, "id"), _get_text(entry, "reply"), num_tokens


def _get_text(entry: dict[str, Any], key: str) -> str:
    text = entry.get(key)
    if isinstance(text, str):
        return text
    if key not in entry:
        raise ValueError(f"has no {key!r}, only {_shorten(list(entry))}; add it")
    raise ValueError(f"the {key} is {_shorten(text)}; it must be a string")


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _score_all(
    task: Task, golds: Golds, replies: list[Reply], rule: Rule, progress: Progress | None
) -> Iterator[ScoredReply]:
    """Score *replies*, which are in the order of *golds* and are taken out of the list, so that their memory is reused.

    Raises RuleError, and ValueError when a row of the data makes no sense.
    """
    total = len(replies)
    replies.reverse()  # to be taken from the end
    verdicts: dict[Hashable, Verdict] = {}
    for done, (sample_id, gold) in enumerate(golds, 1):
        reply = replies.pop()
        try:
            parts = compute_parts(rule, reply.text, gold)
            judgement = task.judge(reply.text, gold, parts)
        except Exception as error:  # whatever a user's rule may raise
            cause = traceback.format_exc()
            raise RuleError(f"line {reply.line}: the rule failed on sample {sample_id}; mend it. {cause}") from error
        key = (judgement, *parts, *parts.values())
        verdict = verdicts.get(key)
        if verdict is None:
            verdict = verdicts[key] = Verdict(judgement=judgement, reward=sum(parts.values()), parts=parts)
        yield ScoredReply(sample_id, verdict)
        if done % PROGRESS_EVERY == 0 or done == total:
            gc.collect(0)  # a user's rule may well make cycles
            if progress is not None:
                progress(done, total)


def _mean_tokens(replies: Collection[Reply]) -> float | None:
    """None unless every line has the number: a mean over some would mislead."""
    counts = [reply.num_tokens for reply in replies if reply.num_tokens is not None]
    return sum(counts) / len(counts) if len(counts) == len(replies) else None


@contextmanager
def _no_search_for_cycles() -> Iterator[None]:
    """Python's collector would go over the growing millions of records again and again, and there are no cycles."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _mean_reward(samples: tuple[ScoredReply, ...]) -> dict[str, float]:
    sums = {"total": 0.0}
    for verdict, count in Counter(sample.verdict for sample in samples).items():
        if "total" in verdict.parts:
            raise ConfigError("the rule has a part named 'total', as the sum of the parts is; rename it")
        for name, value in {"total": verdict.reward, **verdict.parts}.items():
            sums[name] = sums.get(name, 0.0) + count * value
    return {name: value / len(samples) for name, value in sums.items()}


@contextmanager
def _written_whole(path: Path) -> Iterator[TextIO]:
    """A file that appears at *path*, or replaces what is there, only once it is complete."""
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with part.open("w", encoding="utf-8") as file:
            yield file
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
