"""The records that travel between processes.

All are frozen and keyword-only, checked when made, and made of plain data: any can be pickled to another machine.
`La` answer tokens, `Lp` prompt tokens, `G` samples of one prompt. The words: a *sample* is one answer, a *group* the G
answers to one prompt, a *step* one batch learned and published, a *version* counts steps.
"""

from dataclasses import dataclass, field
from typing import Any, NewType

import numpy as np

PolicyVersion = NewType("PolicyVersion", int)
"""Learner steps in the weights; 0 is the start. Only the learner makes a new one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredPictures:
    """Stands for pictures that are kept elsewhere, one copy a node; *reference* is the store's."""

    reference: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """One question: all that is needed to ask it and to score its answers.

    *messages* are chat messages with one placeholder, `{"type": "image"}`, for each of the *images*, in order: encoded
    pictures (PNG or JPEG), none or any number. *gold* is the truth, which only the task and its rules can read; it
    never reaches the engine.
    """

    id: str
    images: tuple[bytes, ...] | StoredPictures
    messages: tuple[dict[str, Any], ...]
    gold: Any

    @property
    def pictures(self) -> tuple[bytes, ...]:
        """The encoded pictures. Raises ValueError where the prompt came without them."""
        if isinstance(self.images, StoredPictures):
            raise ValueError(f"prompt {self.id} came without its pictures")
        return self.images


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionSpan:
    """Answer tokens `[start, end)` were sampled under *version*."""

    version: PolicyVersion
    start: int
    end: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """Tokens in, tokens out: exactly what was sampled, never tokenised again.

    *prompt_token_ids* `[Lp]` int32 with the image placeholders expanded; *token_ids* `[La]` int32, the end token
    included when it was sampled; *logprobs* `[La]` float32, nats, under the policy that sampled; *versions* run-length
    coded, together covering `[0, La)`; *finish* is `stop` (the end token) or `length` (cut off).
    """

    prompt_token_ids: np.ndarray
    token_ids: np.ndarray
    logprobs: np.ndarray
    versions: tuple[VersionSpan, ...]
    finish: str

    def __post_init__(self) -> None:
        length = len(self.token_ids)
        _check(length > 0, "a trace needs at least one answer token")
        _check(len(self.logprobs) == length, f"{len(self.logprobs)} log-probs for {length} answer tokens")
        _check(bool(np.isfinite(self.logprobs).all()), "a log-prob is not finite")
        _check(self.finish in ("stop", "length"), f"finish is {self.finish!r}; it must be stop or length")
        at = 0
        for span in self.versions:
            _check(span.start == at and span.end > at, f"version spans {self.versions} do not follow one another")
            at = span.end
        _check(at == length, f"version spans cover {at} of {length} answer tokens")

    @property
    def oldest_version(self) -> PolicyVersion:
        return min(span.version for span in self.versions)


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleTimes:
    """When an answer's first token was there, and its last: seconds since 1970 by the clock of its worker."""

    first_token: float
    ended: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One answer: its trace and its text (special tokens left out). One that nobody sampled has no *times*."""

    id: str
    trace: Trace
    text: str
    times: SampleTimes | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleGroup:
    """Exactly G sibling answers to one prompt."""

    prompt: Prompt
    samples: tuple[Sample, ...]

    def __post_init__(self) -> None:
        _check(len(self.samples) > 0, f"group {self.prompt.id} has no samples")

    @property
    def oldest_version(self) -> PolicyVersion:
        return min(sample.trace.oldest_version for sample in self.samples)


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """The reward of one sample. *parts* are the rule's terms and sum to *total*; *judgement* is what the task finds in
    it, see `records.task.Judgement`.

    A malformed reply has a score like any other: it is the policy's doing.
    """

    total: float
    parts: dict[str, float]
    judgement: Any

    def __post_init__(self) -> None:
        _check(bool(np.isfinite(self.total)), f"the reward is {self.total}; a rule must return a finite number")
        off = abs(sum(self.parts.values()) - self.total)
        _check(off < 1e-6, f"the parts {self.parts} sum to {sum(self.parts.values())}, not to the total {self.total}")


class ScoringFailure(Exception):
    """Scoring did not happen; there is no reward in it. *sample_id* names the sample, *cause* says why."""

    def __init__(self, sample_id: str, cause: str) -> None:
        super().__init__(sample_id, cause)
        self.sample_id = sample_id
        self.cause = cause

    def __str__(self) -> str:
        return f"sample {self.sample_id} was not scored: {self.cause}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Which *worker* sampled a group, when it was *asked*, and when each sample was *scored*, in the order of the
    samples: seconds since 1970 by its clock.
    """

    worker: str
    asked: float
    scored: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredGroup:
    """A complete group: built only if every sample was scored. *origin* is None where no worker sampled it."""

    group: SampleGroup
    scores: tuple[Score, ...]
    origin: Origin | None = None

    def __post_init__(self) -> None:
        want, have = len(self.group.samples), len(self.scores)
        _check(want == have, f"group {self.group.prompt.id} has {want} samples and {have} scores")

    @property
    def rewards(self) -> np.ndarray:
        """`[G]` float64."""
        return np.array([score.total for score in self.scores], dtype=np.float64)

    @property
    def has_signal(self) -> bool:
        """Whether the rewards differ; equal ones give no gradient."""
        return bool(np.ptp(self.rewards) > 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """One learner step happened and made *version*.

    *loss* and *grad_norm* are those of the step; *tokens* counts the answer tokens learned from; *stats* are further
    means, each over those tokens, unless its name says otherwise. *logprobs*, if the job keeps them, are those that the
    policy before the step gave the sampled tokens: by group of the step and sample `[La]` float32, empty where the
    group was not learned from.
    """

    version: PolicyVersion
    loss: float
    grad_norm: float
    tokens: int
    stats: dict[str, float] = field(default_factory=dict)
    logprobs: tuple[tuple[np.ndarray, ...], ...] = field(default=(), compare=False)


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
