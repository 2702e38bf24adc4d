"""A run that cannot keep its workers says so in one message, and the command in it goes on to the same end."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.faulty_run import Fault, FaultyRun, Outcome
from tests.faults.settings import settings

pytestmark = pytest.mark.slow


def test_failures_in_a_row_end_the_run_with_one_message_and_its_command_goes_on(data: Path, tmp_path: Path):
    run = FaultyRun(tmp_path / "faulty", settings(data, 6, "supervision.failures=0"))
    try:
        run.start()
        run.strike(Fault("kill", "rollout", "sample"), after=2)
        assert run.wait() == 1
    finally:
        run.end()
    said = run.log.read_text()
    assert "Traceback" not in said
    message = said[said.index("star-r1: ") :].splitlines()
    assert message[0].startswith(
        "star-r1: train failed: FleetLost: rollout: 1 failures in a row, the last of rollout-0: "
    )
    assert any(line.startswith("the last lines of ") for line in message)
    kept, goes_on, where = message[-3:]
    assert kept.startswith("kept: ")
    assert "Traceback" in Path(where.removeprefix("the whole text: ")).read_text()
    words = shlex.split(goes_on.removeprefix("to go on: star-r1 "))
    went_on = subprocess.run(
        [sys.executable, "-m", "orchestrator.commands.cli", *words], capture_output=True, text=True
    )
    assert went_on.returncode == 0, went_on.stdout + went_on.stderr
    assert len(Outcome.of(run.out).rows) == 6
