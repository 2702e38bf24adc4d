"""A study file: several ways to train one base policy, each with several seeds, on the same data and tested alike.

Always: every arm learns from the same number of answers, see `answers_per_step`.
"""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

from orchestrator.config import RunConfig, Sections, for_task, load_config
from records.task import Imitation
from tasks.tvr.data.config import DataConfig
from tasks.tvr.task import TASK


class TestConfig(DataConfig):
    """The pairs of the results' table; as the `data` section, and nobody trains on them."""

    __test__ = False  # pytest would collect it by its name

    train: PositiveInt = Field(default=1, description="Training pairs beside them, which every data set has; unused.")


def _check_rule(rule: str) -> str:
    if rule not in TASK.rules:
        raise ValueError(f"no such rule; give one of {', '.join(TASK.rules)}")
    return rule


class ArmConfig(BaseModel):
    """One way to train."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, description="How tables and charts call it; its folders are named after it.")
    kind: Literal["rl", "sft"] = Field(description="Reinforcement learning with a rule, or fine-tuning on answers.")
    rule: Annotated[str, AfterValidator(_check_rule)] | None = Field(
        default=None, description="rl: star, naive, or one of the paper's ablations (no_object_tier, ...)."
    )
    imitation: Imitation | None = Field(
        default=None, description="sft: the right answers alone (STAR-SFT), or with the careful reasoning before them."
    )
    learning_rate: float | None = Field(
        default=None, gt=0, description="In place of learner.learning_rate, chosen on the validation pairs."
    )

    @property
    def slug(self) -> str:
        """The name as a part of file names: `STAR-R1` is star-r1."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        needs, unused = ("rule", "imitation") if self.kind == "rl" else ("imitation", "rule")
        if getattr(self, needs) is None:
            raise ValueError(f"arm {self.name!r} is of kind {self.kind} and has no {needs}; add it")
        if getattr(self, unused) is not None:
            raise ValueError(f"arm {self.name!r} is of kind {self.kind}, which has no use for {unused}; remove it")
        if not self.slug:
            raise ValueError(f"arm name {self.name!r} has no letter and no digit for its folder; give another")
        return self


class StudyConfig(Sections):
    """A whole study file. `data` holds training pairs, and as its split test the validation pairs."""

    task: Literal["tvr"] = Field(default="tvr", description="What the arms learn; the results are its metrics.")
    data: DataConfig
    out: Path = Field(description="Folder of the study: its cells, study.json and study.html.")
    seeds: tuple[NonNegativeInt, ...] = Field(
        min_length=1,
        description="Seeds of each arm; more make the means less noisy. May grow in a study that is there.",
    )
    test: TestConfig = Field(description="A table of its own.")
    arms: tuple[ArmConfig, ...] = Field(min_length=1, description="Tables of their own, in the order of the results.")

    @model_validator(mode="after")
    def _check_study(self) -> Self:
        slugs = [arm.slug for arm in self.arms]
        if twice := {arm.name for arm in self.arms if slugs.count(arm.slug) > 1}:
            raise ValueError(f"the arms {', '.join(sorted(twice))} would share a folder; give each a name of its own")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds are {', '.join(map(str, self.seeds))}; name each once")
        if self.test.path == self.data.path:
            raise ValueError(f"test.path and data.path are both {str(self.data.path)!r}; give the test pairs their own")
        for key in ("max_samples", "every_steps"):
            if not getattr(self.evaluation, key):
                raise ValueError(
                    f"evaluation.{key} is 0, and there would be no curve of the validation pairs; raise it"
                )
        for section, key in ((self.reward_service, "rule"), (self.learner, "imitation")):
            if key in section.model_fields_set:
                raise ValueError(f"{key} is a setting of each arm; remove it from its section")
        return self


class Cell(BaseModel):
    """One arm with one seed: one training run and its replies to the test pairs."""

    model_config = ConfigDict(frozen=True)

    arm: ArmConfig
    seed: int

    @property
    def name(self) -> str:
        return f"{self.arm.slug}-seed{self.seed}"


def load_study_config(path: Path) -> StudyConfig:
    """Read a study file. Raises ConfigError."""
    return load_config(StudyConfig, path)


def cells(study: StudyConfig) -> tuple[Cell, ...]:
    """All of them; a seed of every arm before the next seed of any, so that a partial study compares all arms."""
    return tuple(Cell(arm=arm, seed=seed) for seed in study.seeds for arm in study.arms)


def answers_per_step(study: StudyConfig) -> int:
    """Answers learned from in a step of any arm: groups_per_step prompts times samples_per_prompt sampled answers, or
    as many prompts with the one right answer of each."""
    return study.loop.groups_per_step * study.rollout.samples_per_prompt


def cell_config(study: StudyConfig, cell: Cell) -> RunConfig:
    """The run file of *cell*. Supervised steps take `answers_per_step` prompts, in as many epochs as it needs."""
    content = study.model_dump(mode="json", exclude_none=True, include=set(Sections.model_fields))
    content["seed"] = cell.seed
    if cell.arm.kind == "rl":
        content["reward_service"]["rule"] = cell.arm.rule
    else:
        content["learner"]["imitation"] = cell.arm.imitation
        content["loop"]["groups_per_step"] = answers_per_step(study)
    if cell.arm.learning_rate is not None:
        content["learner"]["learning_rate"] = cell.arm.learning_rate
    return for_task(RunConfig, TASK).model_validate(content)
