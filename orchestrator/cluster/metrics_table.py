"""Every metric that a run exports, in one table: `metrics_page.py` makes them of it, and `docs/metrics.md` shows it.

    python -m orchestrator.cluster.metrics_table    prints it as the page has it

Ray writes `ray_` before each name, and adds labels of its own; each has the label `run` besides, the name of the run
directory.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["gauge", "counter", "histogram"]
PREFIX = "star_r1_"
RUN = "run"
REWARD_TERM = "reward/"
"""What the column of a reward's term begins with."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One line. *column* is that of the step's row whose newest value a gauge has; the others are counted or looked at.

    *boundaries* are a histogram's.
    """

    name: str
    kind: Kind
    unit: str
    description: str
    labels: tuple[str, ...] = ()
    column: str | None = None
    boundaries: tuple[float, ...] = ()


def _column(column: str, name: str, unit: str, description: str) -> Metric:
    return Metric(PREFIX + name, "gauge", unit, description, column=column)


TERM = Metric(PREFIX + "reward_term", "gauge", "reward", "mean over the step's samples of each term", ("term",))
TASK = Metric(
    PREFIX + "task_mean",
    "gauge",
    "",
    "mean over the step's samples of what the task finds",
    ("column",),
)

PHASE = Metric(PREFIX + "phase", "gauge", "0 or 1", "what the learning side does: exactly one is 1", ("phase",))
HELD = Metric(PREFIX + "window_held_groups", "gauge", "groups", "slots in use: admitted, and not served yet")
READY = Metric(PREFIX + "window_ready_groups", "gauge", "groups", "scored groups that wait for the learner")
CAPACITY = Metric(PREFIX + "window_capacity_groups", "gauge", "groups", "slots that there are")
WORKERS = Metric(PREFIX + "workers", "gauge", "workers", "of each kind in each state", ("kind", "state"))
WANTED = Metric(PREFIX + "workers_wanted", "gauge", "workers", "how many of each kind shall serve", ("kind",))
LAST_STEP = Metric(PREFIX + "last_step_timestamp_seconds", "gauge", "s since 1970", "when the newest step was recorded")

LOSSES = Metric(
    PREFIX + "worker_losses_total", "counter", "workers", "lost and to be replaced: died, or hung and killed", ("kind",)
)
GOODPUT = Metric(
    PREFIX + "goodput_seconds_total", "counter", "s", "what the time since the driver began went into", ("bucket",)
)
OVERLAP = Metric(PREFIX + "overlap_seconds_total", "counter", "s", "in which groups were sampled while a step was made")
STEPS = Metric(PREFIX + "steps_total", "counter", "steps", "learned and published")
GROUPS = Metric(PREFIX + "groups_total", "counter", "groups", "learned from")
NO_SIGNAL = Metric(PREFIX + "groups_without_signal_total", "counter", "groups", "of those, with equal rewards")
SAMPLES = Metric(PREFIX + "samples_total", "counter", "samples", "learned from")
TOKENS = Metric(PREFIX + "answer_tokens_total", "counter", "tokens", "of those samples")
GROUP_STALENESS = Metric(
    PREFIX + "group_staleness_versions",
    "histogram",
    "versions",
    "of each group, by its oldest token, when it was learned from",
    boundaries=(0.5, 1.5, 2.5, 4.5, 8.5),
)

COLUMNS = (
    _column("step", "step", "steps", "the newest one; it is also the version that is served"),
    _column("reward", "reward", "reward", "mean over the step's samples"),
    _column("reward_std", "reward_std", "reward", "standard deviation within a group, mean over groups"),
    _column("with_signal", "with_signal_ratio", "of groups", "whose rewards differ"),
    _column("cut_off", "cut_off_ratio", "of samples", "that reached the largest length"),
    _column("staleness", "staleness_versions", "versions", "mean over the step's groups, by their oldest token"),
    _column("staleness_max", "staleness_max_versions", "versions", "of the step's oldest group"),
    _column("answer_tokens", "step_answer_tokens", "tokens", "of the step"),
    _column("answer_length", "answer_length_tokens", "tokens", "mean over the step's samples"),
    _column("tokens_per_s", "tokens_per_second", "tokens/s", "answer tokens learned from"),
    _column("samples_per_s", "samples_per_second", "samples/s", "learned from"),
    _column("loss", "loss", "loss", "of the step"),
    _column("grad_norm", "grad_norm", "norm", "of the step, before it is clipped"),
    _column("ratio", "importance_ratio", "ratio", "learner over sampler, mean over tokens"),
    _column("clip_fraction", "clip_ratio", "of tokens", "whose ratio was clipped"),
    _column("kl", "reference_kl_nats", "nats", "of the policy from the one it began with, where the loss has it"),
    _column("entropy", "entropy_nats", "nats", "mean of -log-prob over the sampled tokens"),
    _column("sampler_kl", "sampler_kl_nats", "nats", "mismatch: of the sampler from the learner, mean over tokens"),
    _column("max_abs_log_ratio", "max_abs_log_ratio_nats", "nats", "mismatch: of the token where it is largest"),
    _column("truncated_fraction", "truncated_ratio", "of tokens", "whose importance weight was truncated"),
    _column("masked_token_fraction", "masked_token_ratio", "of tokens", "masked one by one"),
    _column("masked_sample_fraction", "masked_sample_ratio", "of tokens", "in masked samples"),
    _column("learning_rate", "learning_rate", "rate", "of the step"),
    _column("equal_groups", "equal_groups_ratio", "of groups", "that no gradient came from"),
    _column("overlong_fraction", "overlong_ratio", "of samples", "longer than what is not punished"),
    _column("wait_s", "wait_seconds", "s", "that the learner waited for the step's groups"),
    _column("learn_s", "learn_seconds", "s", "that the step was made in"),
    _column("publish_s", "publish_seconds", "s", "from the end of the step until its version was served"),
    _column("transfer_s", "publish_transfer_seconds", "s", "of these, the way of the weights"),
    _column(
        "pause_s", "publish_pause_seconds", "s", "of these, in which the worker that paused longest could not sample"
    ),
    _column("scoring_full", "scoring_full_ratio", "of time", "in which the fullest reward worker had no place free"),
    _column("scoring_wait_s", "scoring_wait_seconds", "s", "that a sample waited for a place; the longest"),
    _column("step_s", "step_seconds", "s", "between the last two steps"),
    _column("elapsed_s", "elapsed_seconds", "s", "since this driver's first step began"),
)
"""The columns of the row that every task and reward has; those of the reward's terms and of the task are labels."""

METRICS = (
    *(PHASE, LAST_STEP, HELD, READY, CAPACITY, WORKERS, WANTED, LOSSES, GOODPUT, OVERLAP),
    *(STEPS, GROUPS, NO_SIGNAL, SAMPLES, TOKENS, GROUP_STALENESS),
    *COLUMNS,
    *(TERM, TASK),
)
ELSEWHERE = {"version", "productive_s", "overhead_s", "idle_s", "wasted_s", "overlap_s"}
"""Columns that another metric tells: the step, or what counts seconds."""


def as_markdown() -> str:
    """The table of `docs/metrics.md`."""
    lines = ["| name | kind | unit | labels | what | column |", "|---|---|---|---|---|---|"]
    for it in METRICS:
        labels, column = (", ".join(f"`{label}`" for label in it.labels), f"`{it.column}`" if it.column else "")
        lines.append(f"| `{it.name}` | {it.kind} | {it.unit} | {labels} | {it.description} | {column} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(as_markdown(), end="")  # noqa: T201
