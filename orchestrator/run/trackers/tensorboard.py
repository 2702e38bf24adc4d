"""TensorBoard: event files in the run directory, `tensorboard --logdir RUN/tensorboard`."""

from collections.abc import Mapping, Sequence

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from orchestrator.run.trackers.samples import ShownSample
from orchestrator.run.trackers.tracker import Opening


def check() -> None:
    """There is nothing that could be missing."""


def open_run(opening: Opening) -> "TensorBoardRun":
    return TensorBoardRun(opening)


class TensorBoardRun:
    """Flushed with every call: what is said to be logged survives the process."""

    def __init__(self, opening: Opening) -> None:
        self.id = "tensorboard"
        self._writer = SummaryWriter(str(opening.folder / self.id))
        if opening.id is None:
            lines = [f"| {key} | {value} |" for key, value in opening.settings.items()]
            self._writer.add_text("settings", "\n".join(["| key | value |", "| --- | --- |", *lines]))

    def log(self, step: int, row: Mapping[str, float]) -> None:
        for name, value in row.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def log_samples(self, step: int, samples: Sequence[ShownSample]) -> None:
        for number, sample in enumerate(samples):
            if sample.picture is not None:
                self._writer.add_image(f"samples/{number}", np.asarray(sample.picture), step, dataformats="HWC")
            self._writer.add_text(f"samples/{number}", _as_code(f"{sample.caption}\n\n{sample.reply}"), step)
        self._writer.flush()

    def finish(self, ok: bool) -> None:
        self._writer.close()


def _as_code(text: str) -> str:
    """Markdown that shows *text* as it is."""
    return "\n".join(f"    {line}" for line in text.splitlines())
