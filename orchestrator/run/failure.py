"""How a run that failed ends: one message that says what failed, what was kept and what to do; all of it in a file."""

import errno
import shlex
import traceback
from datetime import datetime
from pathlib import Path

from learner.checkpoint import find_newest
from learner.config import CHECKPOINTS
from orchestrator.cluster.calls import cause_of
from orchestrator.run.journal import JOURNAL
from orchestrator.run.ledger import read_ledger

SHOWN_LINES = 40
REMEDIES = {
    errno.ENOSPC: "the disk is full: make room there, and go on",
    errno.EDQUOT: "your share of the disk is full: make room there, and go on",
    errno.EROFS: "the file system is read-only there: have it mounted for writing, and go on",
    errno.EACCES: "you may not write there: change the folder's owner or mode, and go on",
}


def explain(error: BaseException, kind: str, folder: Path, command: list[str]) -> str:
    """The message for a run of *kind* in *folder* that *command* started; its traceback goes to a file there."""
    root = root_of(error)
    lines = str(root).strip().splitlines() or ["(it says nothing)"]
    cut = [*lines[:SHOWN_LINES], *(["..."] if len(lines) > SHOWN_LINES else [])]
    said = [f"{kind} failed: {type(root).__name__}: {cut[0]}", *cut[1:]]
    if isinstance(root, OSError) and root.errno in REMEDIES:
        said.append(REMEDIES[root.errno])
    if not (folder / "config.toml").exists():
        return "\n".join([*said, "nothing had begun; the traceback: the same command with --debug"])
    path = folder / f"failure-{datetime.now():%Y%m%d-%H%M%S}.txt"
    try:
        path.write_text("".join(traceback.format_exception(error)))
        where = f"the whole text: {path}"
    except OSError as problem:
        where = f"the whole text could not be written ({problem}); it comes with --debug"
    return "\n".join([*said, f"kept: {kept(folder)}", f"to go on: {command_that_goes_on(folder, command)}", where])


def root_of(error: BaseException) -> BaseException:
    """The first error of parallel tasks, and what a worker itself raised."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return cause_of(error)


def kept(folder: Path) -> str:
    """What there is to go on from."""
    checkpoint, _ = find_newest(folder / CHECKPOINTS)
    said = f"the checkpoint of step {checkpoint.version}" if checkpoint else "no checkpoint yet"
    if (folder / JOURNAL).exists():
        steps = set(read_ledger(folder).trained.values())
        behind = [step for step in steps if step > (checkpoint.version if checkpoint else 0)]
        if behind:
            said += f", and the groups of {len(behind)} steps behind it, which are not sampled again"
    return said


def command_that_goes_on(folder: Path, command: list[str]) -> str:
    """*command* with the folder and `--resume`."""
    words = [word for word in command if word != "--resume"]
    if "--out" not in words and not any(word.startswith("--out=") for word in words):
        words += ["--out", str(folder)]
    return shlex.join(["star-r1", *words, "--resume"])
