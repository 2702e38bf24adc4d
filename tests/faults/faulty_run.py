"""A real run whose workers are killed, stopped and broken at stages of one's choice, with a witness for each fault.

The driver writes where it is to the journal. When it has just come to a stage it is stopped (SIGSTOP) and the journal
is read again: if it is still there, the fault is made while nothing can move, and seen to have happened in the
processes; then the driver goes on. If it had passed on, the fault waits for the stage of the next step.
"""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from orchestrator.run.journal import JOURNAL, Event, parse
from orchestrator.run.ledger import read_ledger
from tests.orchestrator.small_runs import TINY, command

POLL_S = 0.001
LONGEST_S = 240.0
TIMES = ("_s", "scoring_full", "tokens_per_s", "samples_per_s")
"""What the columns of a row that depend on the clock end with."""

STAGES: dict[str, tuple[str, float]] = {
    "admit": ("admitted", 0.0),
    "sample": ("admitted", 0.1),
    "score": ("admitted", 0.25),
    "take": ("taken", 0.0),
    "step": ("taken", 0.1),
    "export": ("trained", 0.0),
    "load": ("sent", 0.0),
    "after load": ("served", 0.0),
    "checkpoint": ("checkpointing", 0.0),
    "after checkpoint": ("checkpoint begun", 0.0),
}
"""The last of the loop's events when a stage has begun, and seconds into it."""
LOOP = frozenset(event for event, _ in STAGES.values())

KINDS = ("rollout", "reward", "learner", "driver")
FAULTS = ("kill", "stop", "break")


@dataclass(frozen=True, slots=True)
class Fault:
    """`kill` and `stop` are SIGKILL and SIGSTOP to a process of *kind*, `break` raises in the thread of an engine, and
    `node` ends all processes of the node that the process of *kind* is on, Ray's own first.
    """

    how: str
    kind: str
    stage: str

    def __str__(self) -> str:
        return f"{self.how} {self.kind} at {self.stage}"


@dataclass(slots=True)
class Witness:
    """That *fault* was made to *worker* when the journal's last event of the loop was *during*, at *at*."""

    fault: Fault
    worker: str
    during: Event
    at: float
    lines: int
    recovered_s: float = 0.0
    asked_again: int = 0


@dataclass(slots=True)
class FaultyRun:
    """`star-r1 train` with *settings* in *out*; entering starts it."""

    out: Path
    settings: Sequence[str]
    environment: dict[str, str] = field(default_factory=dict)
    witnesses: list[Witness] = field(default_factory=list)
    _process: subprocess.Popen[bytes] | None = None
    _events: list[Event] = field(default_factory=list)
    _read: int = 0

    @property
    def log(self) -> Path:
        return self.out.with_suffix(".log")

    def start(self, *flags: str) -> None:
        inside = os.pathsep.join([str(Path(__file__).parent / "inside"), os.getcwd()])
        with self.log.open("a") as log:
            self._process = subprocess.Popen(
                command("train", TINY, self.out, self.settings, *flags),
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | {"PYTHONPATH": inside} | self.environment,
            )

    @property
    def driver(self) -> psutil.Process:
        assert self._process is not None
        return psutil.Process(self._process.pid)

    def events(self) -> list[Event]:
        """All lines of the journal so far."""
        path = self.out / JOURNAL
        size = path.stat().st_size if path.exists() else 0
        if size < self._read:  # a later driver has cut off a line that was not whole
            self._events, self._read = [], 0
        if size > self._read:
            with path.open("rb") as file:
                file.seek(self._read)
                whole = file.read().rpartition(b"\n")[0] + b"\n"
            found = [parse(line) for line in whole.splitlines()]
            if None not in found:
                self._events += [event for event in found if event is not None]
                self._read += len(whole)
        return self._events

    def processes(self, kind: str) -> dict[str, int]:
        """Pid of each worker of *kind* that runs, by name, those that serve longest first."""
        found: dict[str, int] = {}
        serving: list[str] = []
        for event in self.events():
            name = event.facts.get("worker", "")
            if event.name == "runs" and name.startswith(kind):
                found[name] = event.facts["pid"]
            elif event.name == "serving" and name.startswith(kind):
                serving.append(name)
            elif event.name in ("ended", "gone", "leaving"):
                serving = [it for it in serving if it != name]
            elif event.name == "began":
                found, serving = {}, []
        return {name: pid for name, pid in found.items() if any(name.startswith(it) for it in serving)}

    def strike(self, fault: Fault, after: int = 0, pick: Callable[[list[str]], str] = min) -> Witness:
        """Make *fault* when the run comes to its stage, behind version *after*; which worker, *pick* says."""
        deadline = time.monotonic() + LONGEST_S
        while time.monotonic() < deadline:
            self._check_alive()
            if (during := self._at(fault.stage, after)) is None:
                time.sleep(POLL_S)
                continue
            time.sleep(STAGES[fault.stage][1])
            with self._stopped():
                if self._at(fault.stage, after) != during:
                    continue
                names = self.processes(fault.kind) if fault.kind != "driver" else {"driver": self.driver.pid}
                if not names:
                    continue
                worker = pick(sorted(names))
                lines = len(self.events())
                self._make(fault, names[worker])
                witness = Witness(fault, worker, during, time.time(), lines)
            self.witnesses.append(witness)
            if fault.kind == "driver":
                self._go_on()
            return witness
        raise AssertionError(f"{fault} could not be made in {LONGEST_S:g} s: {self.events()[-3:]}")

    def await_recovery(self, witness: Witness) -> None:
        """Until the supervisor has seen the fault, there is another worker, and a step was made and served since."""
        deadline = time.monotonic() + LONGEST_S
        while time.monotonic() < deadline and not self.is_over():
            since = self.events()[witness.lines :]
            if (seen := self._seen(witness, since)) is not None:
                back = since[seen] if witness.fault.kind == "driver" else _serving(since[seen:], witness.fault.kind)
                if back is not None and any(event.name == "served" for event in since[seen:]):
                    witness.recovered_s = back.facts["at"] - witness.at
                    witness.asked_again = sum(event.name == "asked again" for event in since)
                    return
            time.sleep(0.05)
        said = self.log.read_text()[-3000:]
        raise AssertionError(f"{witness.fault} of {witness.worker} was not recovered from: {said}")

    def await_event(self, witness: Witness, name: str) -> None:
        """Until such an event stands in the journal behind the fault."""
        deadline = time.monotonic() + LONGEST_S
        while not any(event.name == name for event in self.events()[witness.lines :]):
            self._check_alive()
            assert time.monotonic() < deadline, f"{name} never came after {witness.fault}"
            time.sleep(0.05)

    def _seen(self, witness: Witness, since: Sequence[Event]) -> int | None:
        """Where in the journal it stands that the fault was noticed."""
        name = "began" if witness.fault.kind == "driver" else "ended"
        unit = None if witness.fault.kind == "driver" else witness.worker.split(" rank ")[0]
        places = [place for place, it in enumerate(since) if it.name == name and it.facts.get("worker") == unit]
        return places[0] if places else None

    def is_over(self) -> bool:
        assert self._process is not None
        return self._process.poll() is not None

    def served(self) -> int:
        """The newest version that the rollout workers have served; 0 at first."""
        return max((event.facts["version"] for event in self.events() if event.name == "served"), default=0)

    def wait(self) -> int:
        """With which status the run ends."""
        assert self._process is not None
        return self._process.wait(LONGEST_S)

    def finish(self) -> None:
        """Until the run has ended, and well."""
        assert self.wait() == 0, self.log.read_text()[-5000:]

    def end(self) -> None:
        """Whatever is left of it."""
        if self._process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            family = [self.driver, *self.driver.children(recursive=True)]
            for member in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
            psutil.wait_procs(family, timeout=30)
        self._process.wait(30)

    def _at(self, stage: str, after: int) -> Event | None:
        """The loop's last event, if it begins *stage*."""
        loop = [event for event in self.events() if event.name in LOOP]
        versions = [event.facts["version"] for event in loop if event.name == "served"]
        last = loop[-1] if loop else None
        wanted = last is not None and last.name == STAGES[stage][0] and max(versions, default=0) >= after
        return last if wanted else None

    @contextlib.contextmanager
    def _stopped(self) -> Any:
        driver = self.driver
        driver.suspend()
        while driver.status() != psutil.STATUS_STOPPED:
            time.sleep(POLL_S)
        try:
            yield
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                driver.resume()

    def _make(self, fault: Fault, pid: int) -> None:
        process = psutil.Process(pid)
        if fault.how == "break":
            order = Path(os.environ.get("TMPDIR", "/tmp")) / f"star-r1-break-{pid}"
            order.touch()
            return
        if fault.how == "node":
            end_node(process)
            return
        process.send_signal({"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[fault.how])
        if fault.how == "kill" and fault.kind != "driver":
            psutil.wait_procs([process], timeout=10)
        deadline = time.monotonic() + 10
        ended = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        wanted = ended if fault.how == "kill" else (psutil.STATUS_STOPPED,)
        while process.is_running() and process.status() not in wanted:
            assert time.monotonic() < deadline, f"{fault}: process {pid} is {process.status()}"
            time.sleep(POLL_S)

    def _go_on(self) -> None:
        """As the job's own retry does: the same command, on what the killed driver has left."""
        assert self._process is not None
        self._process.wait(10)
        self.start("--resume")

    def _check_alive(self) -> None:
        assert self._process is not None
        code = self._process.poll()
        assert code is None, f"the run has ended with {code}: {self.log.read_text()[-5000:]}"


def end_node(process: psutil.Process) -> None:
    """The Ray node that a worker's *process* is on: its raylet, which is the parent, then whatever it has started."""
    raylet = process.parent()
    assert raylet is not None, process
    assert raylet.name() == "raylet", raylet
    family = [raylet, *raylet.children(recursive=True)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family, timeout=10)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run must come out with, whatever happened to it."""

    parameters: str
    prompts: Counter[str]
    rows: list[dict[str, float]]

    @classmethod
    def of(cls, out: Path) -> "Outcome":
        """Raises AssertionError if its ledger does not balance."""
        ledger = read_ledger(out)
        assert not ledger.faults, ledger.faults
        assert not ledger.open, ledger.open
        digest = hashlib.sha256((out / "model" / "model.safetensors").read_bytes()).hexdigest()
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        kept = [{key: value for key, value in row.items() if not key.endswith(TIMES)} for row in rows]
        return cls(digest, ledger.prompts_trained, kept)


def run_undisturbed(out: Path, settings: Sequence[str]) -> Outcome:
    ended = subprocess.run(command("train", TINY, out, settings), capture_output=True, text=True, timeout=LONGEST_S)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return Outcome.of(out)


def _serving(events: Sequence[Event], kind: str) -> Event | None:
    """When a worker of *kind* served next."""
    found = (event for event in events if event.name == "serving" and event.facts["worker"].startswith(kind))
    return next(found, None)
