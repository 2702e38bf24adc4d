"""A step that was not finite: which groups are the cause, kept so that it can be done again.

    refused/step-000012/
      model/                the policy that the step would have changed, a plain Hugging Face folder
      groups.json           all groups of the step, ScoredGroup records, but for their arrays and pictures, and for the
                            truth and what the task found in each reply, which no learner reads
      groups.safetensors    these, by the names that stand in their places
      refused.json          the causes, and the learner's section of the run file

`star-r1 replay` does the step again from this folder, group by group, without an update. The folder may come from
anybody: nothing in it is run, and its records are checked as they were when they were made.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import safetensors.numpy

from learner.config import LearnerConfig, LearnerJob
from learner.device import missing_cuda
from records.packed import pack, unpack
from records.samples import ScoredGroup

REFUSED, GROUPS, ARRAYS, PICKLED = "refused.json", "groups.json", "groups.safetensors", "groups.pickle"


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
    text, arrays = pack([_without_truth(group) for group in groups])
    safetensors.numpy.save_file(arrays, folder / ARRAYS)
    (folder / GROUPS).write_text(text + "\n")
    content = {
        "causes": [str(group) for group in examined if not group.is_finite],
        "learner": config.model_dump(mode="json"),
        "job": asdict(job),
    }
    (folder / REFUSED).write_text(json.dumps(content, indent=2) + "\n")


def load_refused(folder: Path) -> tuple[tuple[ScoredGroup, ...], LearnerConfig, LearnerJob]:
    """The groups, and how a learner does the step again: on one rank, on a GPU if there is one here, with the policy as
    it was.

    Raises ValueError, a sentence for the user, when they cannot be read.
    """
    if (folder / PICKLED).exists() and not (folder / GROUPS).exists():
        raise ValueError(
            f"{folder}: its groups are in {PICKLED}, which could run anything when it is read, and is not; let this "
            "version train to the step again, which keeps them in another way"
        )
    try:
        content = json.loads((folder / REFUSED).read_text())
        config = LearnerConfig.model_validate(content["learner"] | {"ranks": 1, "lora_rank": 0})  # it was saved merged
        here = {"model": str(folder / "model"), "folder": str(folder), "device": "cpu" if missing_cuda() else "gpu"}
        job = LearnerJob(**content["job"] | here)
        return unpack((folder / GROUPS).read_text(), safetensors.numpy.load_file(folder / ARRAYS)), config, job
    except Exception as error:  # files can be damaged in any way, and none of it is taken
        cause = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"{folder}: the refused step in it cannot be read ({cause}); give a folder as `train` left it in refused/"
        ) from error


def _without_truth(scored: ScoredGroup) -> ScoredGroup:
    group = replace(scored.group, prompt=replace(scored.group.prompt, gold=None))
    return replace(scored, group=group, scores=tuple(replace(score, judgement=None) for score in scored.scores))
