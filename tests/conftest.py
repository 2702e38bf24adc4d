"""Settings that every test runs under, and the device that tests are about: the CPU, or with `--device gpu` a GPU.

On a GPU nothing is skipped in silence: without one the run ends with an error, and what needs two GPUs where there is
one is named at the end.
"""

import os
import secrets
from pathlib import Path

import pytest

# Before torch or vLLM is imported. One thread: spin-waiting ones starve each other on two cores. Offline: nothing is
# looked up on a hub.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
# Ray asks for a token in every new cluster; without one here it would make one in the user's home.
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))

TWO_GPUS = "needs 2 GPUs"
LONGEST = ("test_resume_run.py", "test_learner_rank.py", "test_learning.py", "test_whole_study.py", "test_resume.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=["cpu", "gpu"], default="cpu", help="what engines and learners run on")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--device") == "cpu":
        # Dynamo would compile vLLM's sampler for seconds at the first request.
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """What only a GPU can show is no part of the tests on a CPU."""
    return True if collection_path.name == "gpu" and config.getoption("--device") == "cpu" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: at the end one of two processes would have nothing to do for minutes."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_sessionstart(session: pytest.Session) -> None:
    if session.config.getoption("--device") == "gpu":
        from learner.device import missing_cuda

        if missing := missing_cuda():
            pytest.exit(f"--device gpu: {missing}", returncode=1)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    if config.getoption("--device") == "gpu" and skipped:
        terminalreporter.section("NOT CHECKED on this machine")
        for report in skipped:
            terminalreporter.line(f"{report.nodeid}: {report.longrepr[2]}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A skipped check is no passed one, but for those that this machine has too few GPUs for."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if session.config.getoption("--device") == "gpu" and reporter is not None:
        skipped = reporter.stats.get("skipped", [])
        if any(TWO_GPUS not in report.longrepr[2] for report in skipped) and session.exitstatus == 0:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """`cpu` or `gpu`."""
    return str(request.config.getoption("--device"))
