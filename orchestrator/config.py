"""RunConfig: the sections of all packages, and the checks that cross them. A run file is TOML and complete.

What is wrong in a run file is said with file, key, value and remedy, as one `ConfigError`.
"""

import difflib
import re
import tomllib
from collections.abc import Iterable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from learner.config import LearnerConfig
from learner.loss_config import with_algorithm
from records.task import Task, load_task
from reward_service.config import RewardConfig
from rollout.config import RolloutConfig


class ConfigError(ValueError):
    """A run file or a `--set` that cannot be used; its text is meant for the user."""


class StartFailed(Exception):
    """A worker did not become ready; the text says what it said last, and where the rest stands."""


class RunFailed(Exception):
    """A run ended with an error; the text says what was kept, and how to go on."""


def first_of(group: BaseExceptionGroup[ConfigError | StartFailed]) -> ConfigError | StartFailed:
    """One message for a user, of the errors of parallel tasks."""
    first = group.exceptions[0]
    return first_of(first) if isinstance(first, BaseExceptionGroup) else first


Device = Literal["cpu", "gpu"]


class LoopConfig(BaseModel):
    """How long to run, and how far sampling may run ahead of learning."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(ge=1, description="Learner steps, one published version each.")
    groups_per_step: int = Field(ge=1, description="Prompts learned from in a step; more give steadier, slower steps.")
    max_staleness: int = Field(
        default=1, ge=0, description="Versions a sample may be old when learned from; 0 is synchronous, 1 overlaps."
    )


class EvaluationConfig(BaseModel):
    """Greedy evaluation on held-out prompts: before, after, and beside the steps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_samples: int = Field(ge=0, description="Held-out prompts asked, from the start of the split; 0 turns it off.")
    every_steps: int = Field(
        default=0, ge=0, description="Steps between evaluations beside training; larger costs less; 0 turns them off."
    )
    concurrent_prompts: int = Field(
        default=4,
        ge=1,
        description="Prompts asked at a time beside training; larger ends sooner, and samples wait.",
    )


class CheckpointConfig(BaseModel):
    """What is kept to go on from (`--resume`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    every_steps: int = Field(
        default=20, ge=0, description="Steps between checkpoints; larger loses more steps to a crash; 0 turns them off."
    )
    keep: int = Field(
        default=2,
        ge=1,
        description="Newest checkpoints kept; each has three float32 numbers (12 bytes) for every trained weight. One "
        "more lies on the disk while it is written, and in host memory, shared out over the ranks.",
    )
    timeout_s: float = Field(
        default=3600.0,
        gt=0,
        description="Deadline in seconds of writing a checkpoint, and of saving the model; larger bears a slower disk.",
    )


class SupervisionConfig(BaseModel):
    """When a worker counts as hung, and how those that are lost are replaced. Times are in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    silent_s: float = Field(
        default=300.0,
        gt=0,
        description="So long a worker that has work may complete no part of it before it is suspected; larger bears a "
        "slower machine, smaller finds a hung worker sooner.",
    )
    grace_s: float = Field(
        default=30.0, ge=0, description="So long a suspected worker has to complete something before it is killed."
    )
    leave_s: float = Field(
        default=120.0,
        ge=0,
        description="So long one that leaves may end its answers; what is left goes to others.",
    )
    backoff_s: float = Field(
        default=1.0, ge=0, description="Wait before a lost worker's successor starts, doubled after each in a row."
    )
    most_backoff_s: float = Field(default=60.0, ge=0, description="Longest such wait.")
    failures: int = Field(
        default=5, ge=0, description="Losses of a kind of worker in a row, with nothing done between, that end the run."
    )


TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]


class TrackersConfig(BaseModel):
    """Where else the run's numbers and some samples go. Addresses and credentials are each client's own environment
    variables; a tracker that fails never ends a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    use: tuple[TrackerName, ...] = Field(
        default=(), description="Any of tensorboard, wandb, mlflow, trackio; pip install 'star-r1[NAME]' brings each."
    )
    project: str = Field(
        default="star-r1", min_length=1, description="The project, or experiment, that the run is listed under."
    )
    name: str | None = Field(default=None, description="The run's name there; by default that of its directory.")
    samples_every_steps: int = Field(
        default=10, ge=0, description="Steps between shown samples, with their pictures; larger sends less; 0: none."
    )
    samples: int = Field(default=4, ge=1, description="Samples shown at a time, of as many prompts as there are.")

    @field_validator("use")
    @classmethod
    def _check_once(cls, use: tuple[TrackerName, ...]) -> tuple[TrackerName, ...]:
        if len(set(use)) < len(use):
            raise ValueError(f"{', '.join(use)} names a tracker twice; name each once")
        return use


NARROWEST_SEQUENCE_CLIP = 0.01
"""Narrower, the clip of whole answers drops most that are a version old, or rounded otherwise: see gspo's preset."""


DEFAULT_TASK = "tvr"


class Sections(BaseModel):
    """What a run file and a study file have in common: the starting policy, and the sections of all packages."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str = Field(
        default=DEFAULT_TASK,
        description="What is learned: tvr, questions, counting, or package.module:name of your own.",
    )
    model: Path = Field(description="Hugging Face folder of the starting policy, on every node.")
    device: Device = Field(description="What rollout workers and learner ranks run on: cpu, or gpu, one or more each.")
    start_timeout_s: float = Field(default=600.0, gt=0, description="Seconds until all workers must be ready.")
    loop: LoopConfig
    evaluation: EvaluationConfig
    checkpoint: CheckpointConfig = Field(default=CheckpointConfig(), description="A table of its own.")
    supervision: SupervisionConfig = Field(default=SupervisionConfig(), description="A table of its own.")
    trackers: TrackersConfig = Field(default=TrackersConfig(), description="A table of its own.")
    data: BaseModel = Field(description="The task's own table.")
    rollout: RolloutConfig
    reward_service: RewardConfig
    learner: LearnerConfig

    @model_validator(mode="after")
    def _check_sections_together(self) -> Self:
        if self.learner.ranks > self.loop.groups_per_step:
            raise ValueError(
                f"learner.ranks {self.learner.ranks} exceeds loop.groups_per_step {self.loop.groups_per_step}, so that "
                "a rank would have nothing to learn; raise groups_per_step or lower ranks"
            )
        buffer, longest = self.learner.loss.overlong_buffer_tokens, self.rollout.max_answer_tokens
        if buffer > longest:
            raise ValueError(
                f"learner.loss.overlong_buffer_tokens {buffer} exceeds rollout.max_answer_tokens {longest}, so that "
                "even an empty answer would be punished; lower it"
            )
        return self

    @model_validator(mode="after")
    def _check_loss_suits_samples(self) -> Self:
        loss, stale = self.learner.loss, self.loop.max_staleness
        if loss.proximal == "learner":
            return self
        if loss.objective == "reinforce" and stale > 0:
            raise ValueError(
                f"learner.loss.objective reinforce with proximal sampler takes samples of an older version, which "
                f"loop.max_staleness {stale} allows, for the learner's own; set proximal to learner (and correction to "
                "truncate), or max_staleness to 0"
            )
        dtypes = {"rollout.dtype": self.rollout.dtype, "learner.dtype": self.learner.dtype}
        causes = [f"{key} {dtype}" for key, dtype in dtypes.items() if dtype != "float32"]
        causes += [f"loop.max_staleness {stale}"] if stale > 0 else []
        narrow = min(loss.clip_low, loss.clip_high) < NARROWEST_SEQUENCE_CLIP
        if loss.objective == "sequence_clip" and narrow and causes:
            raise ValueError(
                f"learner.loss.clip_low {loss.clip_low} and clip_high {loss.clip_high} would clip most answers for "
                f"what is not learned: {', '.join(causes)}; raise both to {NARROWEST_SEQUENCE_CLIP} or more, or take "
                "max_staleness 0 and float32 on both sides"
            )
        return self


class ScoringConfig(BaseModel):
    """What scoring replies takes of a run file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str = DEFAULT_TASK
    data: BaseModel
    reward_service: RewardConfig


Config = TypeVar("Config", bound=BaseModel)
Whole = TypeVar("Whole", bound=Sections)


class RunConfig(Sections):
    """A whole run file."""

    seed: int = Field(default=0, description="Seed of prompt order, sampling and learner.")


def load_run_config(path: Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Read a run file and apply `section.key=value` overrides. Raises ConfigError."""
    return load_config(RunConfig, path, overrides)


@cache
def for_task(kind: type[Config], task: Task) -> type[Config]:
    """*kind* whose tables `data` and `reward_service.options`, and the names of rules, are those of *task*."""
    options = Field(default=task.rule_options(), description="Of the task's rules; a table of its own.")
    rule = Field(
        default=next(iter(task.rules), ...), description=f"{', '.join(task.rules)}, or package.module:function."
    )
    rewards = create_model(
        "RewardConfig",
        __base__=RewardConfig,
        rule=(Annotated[str, AfterValidator(partial(_check_rule, tuple(task.rules)))], rule),
        options=(task.rule_options, options),
    )
    data = Field(description="A table of its own.")
    return create_model(kind.__name__, __base__=kind, data=(task.data_config, data), reward_service=(rewards, ...))


def _check_rule(built_in: Sequence[str], rule: str) -> str:
    if rule not in built_in and not re.fullmatch(r"\w+(\.\w+)*:\w+", rule):
        raise ValueError(f"{rule!r} is no rule; give one of {', '.join(built_in)}, or package.module:function")
    return rule


def load_config(kind: type[Whole], path: Path, overrides: Iterable[str] = ()) -> Whole:
    """Read a file as *kind*, with overrides as `load_run_config` has them. Raises ConfigError."""
    try:
        content = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a run file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from error
    settings = [_parse_override(override) for override in overrides]
    _change_algorithm(path, content, settings)
    for setting in settings:
        _apply(content, setting)
    config = _validate(kind, content, str(path))
    if not (config.model / "config.json").exists():
        raise ConfigError(f"{path}: model = {str(config.model)!r}: has no config.json; give the path of a model folder")
    return config


def scoring_config(task: str, data: Path, rule: str | None, overrides: Iterable[str] = ()) -> ScoringConfig:
    """Of a command without a run file: the data set of *task* in the folder *data*. Raises ConfigError."""
    content: dict[str, Any] = {"task": task, "data": {"path": data}, "reward_service": {"rule": rule} if rule else {}}
    for override in overrides:
        _apply(content, _parse_override(override))
    return _validate(ScoringConfig, content, "command line")


def _validate(kind: type[Config], content: dict[str, Any], where: str) -> Config:
    name = str(content.get("task", DEFAULT_TASK))
    try:
        kind = for_task(kind, load_task(name))
    except ValueError as error:
        raise ConfigError(f"{where}: task = {name!r}: {error}") from error
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise ConfigError(explain(kind, where, error)) from error


class _Setting(NamedTuple):
    """A parsed `--set`; *text* as it was given."""

    sections: tuple[str, ...]
    key: str
    value: Any
    text: str


def _parse_override(override: str) -> _Setting:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override}: is not section.key=value, for example --set loop.steps=20")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string, so that --set model=some/folder needs no quotes
    *sections, last = key.strip().split(".")
    return _Setting(tuple(sections), last, value, override)


def _apply(content: dict[str, Any], setting: _Setting) -> None:
    table = content
    for section in setting.sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise ConfigError(
                f"--set {setting.text}: {section} is a value, not a section; name one of its sections' keys"
            )
    table[setting.key] = setting.value


def _change_algorithm(path: Path, content: dict[str, Any], settings: Sequence[_Setting]) -> None:
    """Where the file's algorithm is overridden, leave out what the file says only because of it (`with_algorithm`).

    Raises ConfigError where the file says what neither of them does.
    """
    given = {setting.key: setting.value for setting in settings if setting.sections == ("learner", "loss")}
    learner = content.get("learner")
    loss = learner.get("loss") if isinstance(learner, dict) else None
    if not isinstance(learner, dict) or not isinstance(loss, dict) or "algorithm" not in given:
        return
    learner["loss"], contradictions = with_algorithm(loss, given["algorithm"], given)
    if contradictions:
        raise ConfigError(
            "\n".join(
                f"{path}: learner.loss.{key} = {old!r}: was chosen beside another algorithm, and {given['algorithm']} "
                f"sets {new!r}; say which is meant, --set learner.loss.{key}={new} or --set learner.loss.{key}={old}"
                for key, (old, new) in contradictions.items()
            )
        )


def explain(kind: type[BaseModel], path: Path | str, error: ValidationError) -> str:
    """What is wrong in the file at *path*, which should be a *kind*, a line for each mistake."""
    return "\n".join(_explain(kind, path, item) for item in error.errors())


def _explain(kind: type[BaseModel], path: Path | str, item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"]) or "the file as a whole"
    if item["type"] == "extra_forbidden":
        known = _known_keys(kind, item["loc"][:-1])
        close = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
        remedy = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"
        return f"{path}: {key} = {item['input']!r}: unknown key; {remedy}"
    if item["type"] == "missing":
        return f"{path}: {key}: is missing; add it"
    message = item["msg"].removeprefix("Value error, ")
    value = f" = {item['input']!r}" if item["loc"] and not isinstance(item["input"], dict) else ""
    return f"{path}: {key}{value}: {message[:1].lower()}{message[1:]}"


def _known_keys(kind: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Those of the table at *location* in *kind*; numbers in it are places in arrays of tables, `tuple[T, ...]`."""
    model: Any = kind
    for part in location:
        model = get_args(model)[0] if isinstance(part, int) else model.model_fields[part].annotation
    return list(model.model_fields)
