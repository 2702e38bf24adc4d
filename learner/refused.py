"""A step that was not finite: which groups are the cause, kept so that it can be done again.

    refused/step-000012/
      model/             the policy that the step would have changed, a plain Hugging Face folder
      groups.pickle      all groups of the step, ScoredGroup records
      refused.json       the causes, and the learner's section of the run file

`star-r1 replay` does the step again from this folder, group by group, without an update.
"""

import json
import pickle
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from learner.config import LearnerConfig, LearnerJob
from tvr.records import ScoredGroup


@dataclass(frozen=True, slots=True)
class Examined:
    """A group alone, by its *index* in the step: its part of the loss, the samples (indices) whose terms are not
    finite, and whether the gradient is.
    """

    index: int
    prompt_id: str
    loss: float
    odd_samples: tuple[int, ...]
    gradient_is_finite: bool

    @property
    def is_finite(self) -> bool:
        return not self.odd_samples and self.gradient_is_finite

    def __str__(self) -> str:
        if self.odd_samples:
            return f"group {self.prompt_id} (loss of sample {', '.join(map(str, self.odd_samples))})"
        return f"group {self.prompt_id} ({'finite' if self.gradient_is_finite else 'gradient'})"


def explain(examined: Sequence[Examined]) -> str:
    """For the message of the error."""
    if causes := [group for group in examined if not group.is_finite]:
        return f"The cause: {', '.join(map(str, causes))}"
    return "No group alone is the cause"


def save_refused(
    folder: Path,
    groups: Sequence[ScoredGroup],
    examined: Sequence[Examined],
    config: LearnerConfig,
    job: LearnerJob,
) -> None:
    """Write the folder beside the model, which is there already."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "groups.pickle").write_bytes(pickle.dumps(tuple(groups)))
    content = {
        "causes": [str(group) for group in examined if not group.is_finite],
        "learner": config.model_dump(mode="json"),
        "job": asdict(job),
    }
    (folder / "refused.json").write_text(json.dumps(content, indent=2) + "\n")


def load_refused(folder: Path) -> tuple[tuple[ScoredGroup, ...], LearnerConfig, LearnerJob]:
    """The groups, and how a learner does the step again: on one rank, with the policy as it was.

    Open only folders of your own runs: pickle runs what it reads.
    """
    content = json.loads((folder / "refused.json").read_text())
    config = LearnerConfig.model_validate(content["learner"] | {"ranks": 1, "lora_rank": 0})  # it was saved merged
    job = LearnerJob(**content["job"] | {"model": str(folder / "model"), "folder": str(folder)})
    return pickle.loads((folder / "groups.pickle").read_bytes()), config, job
