"""`star-r1 doctor`: what a maintainer would ask for, in one file."""

import base64
import shlex
import tempfile
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from orchestrator.commands.manage import Address, Run
from orchestrator.config import ConfigError
from orchestrator.display import say

if TYPE_CHECKING:
    from orchestrator.run.doctor import Files
    from orchestrator.run.find import Elsewhere

BEGIN, END = "-----BEGIN STAR-R1 DOCTOR-----", "-----END STAR-R1 DOCTOR-----"


def doctor(
    run: Run = None,
    address: Address = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.zip", help="Where to write it (default: doctor-RUN-<time>.zip).")
    ] = None,
) -> None:
    """Gather what a maintainer would ask for into one file: versions, settings, stacks and last lines of every worker.

    Of a run that goes on or has ended. Secrets of the environment are left out; look through it before you send it.
    """
    from orchestrator.run.doctor import examine, write
    from orchestrator.run.find import find_run

    found = find_run(run, address)
    name = found.resolve().name if isinstance(found, Path) else found.job.id
    files = examine(found) if isinstance(found, Path) else _elsewhere(found)
    path = out or Path(f"doctor-{name}-{datetime.now():%Y%m%d-%H%M%S}.zip")
    try:
        missing = write(files, path)
    except OSError as error:
        raise ConfigError(f"--out {path}: cannot be written ({error.strerror}); name another file") from error
    say(Console(), f"wrote {path}, {len(files)} files in {path.stat().st_size / 1024:.0f} KiB")
    for part in missing:
        say(Console(), f"  {part}: {files[part].splitlines()[0]}")


def _elsewhere(run: "Elsewhere") -> "Files":
    """What is found on the cluster, brought here by the log of a job, and what the head tells of the run's own."""
    from orchestrator.run.doctor import MISSING, read

    job = run.job
    files = {
        "job.txt": f"{job.id}: {job.status}: {job.message}\n{job.entrypoint}\n",
        "job-log.txt": run.cluster.log(job.id),
    }
    if run.folder is None:
        return files | {"run.txt": f"{MISSING}the job has not said where its run directory is\n"}
    said: list[str] = []
    status = run.cluster.do_there(job, _bringing_it(run.folder), "doctor", said.append)
    text = "".join(said)
    if status or END not in text:
        return files | {"run.txt": f"{MISSING}star-r1 doctor failed there: {text.strip()[-2000:]}\n"}
    with tempfile.NamedTemporaryFile(suffix=".zip") as brought:
        brought.write(base64.b64decode(text.partition(BEGIN)[2].partition(END)[0]))
        brought.flush()
        return read(Path(brought.name)) | files


def _bringing_it(folder: Path) -> str:
    """The command there, which prints the file."""
    steps = [
        'made="$(mktemp -d)/doctor.zip"',
        f'star-r1 doctor {shlex.quote(str(folder))} --out "$made"',
        f"echo {shlex.quote(BEGIN)}",
        'base64 "$made"',
        f"echo {shlex.quote(END)}",
        'rm -r "$(dirname "$made")"',
    ]
    return " && ".join(steps)
