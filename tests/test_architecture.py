"""Who may import whom (design): read off the syntax trees, imports inside functions included."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("records", "tasks", "tiny_policy", "rollout", "learner", "reward_service", "orchestrator")
MAY_IMPORT = {
    "records": {"records"},
    "tasks": {"records", "tasks"},
    "tiny_policy": {"records", "tasks", "tiny_policy"},
    "rollout": {"records", "rollout"},
    "learner": {"records", "learner"},
    "reward_service": {"records", "reward_service"},
    "orchestrator": set(PACKAGES),
}
WINGS = {
    "orchestrator": {
        "commands": {"study", "run", "evaluation", "config", "display"},
        "study": {"run", "config", "display"},
        "run": {"cluster", "loop", "report", "config", "display"},
        "cluster": {"loop", "supervision", "config"},
        "evaluation": {"loop", "config", "display"},
        "loop": set(),
        "supervision": set(),
        "report": set(),
        "display": set(),
        "config": set(),
    },
    "records": {
        "task": {"pictures", "samples"},
        "order": {"samples"},
        "pictures": {"samples"},
        "manifest": {"samples"},
        "packed": {"samples"},
        "samples": set(),
    },
    "tasks": {"tvr": set(), "questions": set(), "counting": {"questions", "tvr"}},
    "tasks.tvr": {
        "task": {"data", "pictures", "language", "rules", "show"},
        "data": {"pictures", "language"},
        "pictures": {"language"},
        "rules": {"language"},
        "show": {"language"},
        "language": set(),
    },
    "tasks.questions": {
        "task": {"check", "page", "dataset", "config", "rules", "truth"},
        "check": {"dataset", "config", "truth"},
        "page": {"dataset", "config", "truth"},
        "dataset": {"config", "truth"},
        "config": {"truth"},
        "rules": {"truth"},
        "truth": set(),
    },
}
"""Folders and modules inside a package, and which others of it each may import: no arrow runs back up."""
ONLY_IMPORTERS = {
    "ray": ("orchestrator/cluster/",),
    "deepspeed": ("learner/engine.py", "learner/zero_state.py"),
    "vllm": ("rollout/engine.py", "rollout/inprocess.py", "rollout/weights.py", "learner/nccl.py"),
    **dict.fromkeys(("wandb", "mlflow", "trackio"), ("orchestrator/run/trackers/",)),
    "tasks": ("tasks/", "tiny_policy/", "orchestrator/study/", "orchestrator/commands/data.py"),
    "tiny_policy": ("tiny_policy/", "orchestrator/commands/policy.py"),
}
"""Beside those that teach a tiny policy to see, and study and render TVR, nobody knows a task."""
NEVER_IN = {package: {"torch", "ray"} for package in ("records", "tasks")}


def imports(source: str) -> Iterator[str]:
    """The name of every absolute import, also of `importlib.import_module("...")` with a plain string."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            yield from (str(arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant))


def _inside(house: str, module: str) -> str | None:
    """The wing of *house* in which *module* stands."""
    return module.removeprefix(f"{house}.").split(".")[0] if module.startswith(f"{house}.") else None


def violations(path: str, source: str) -> list[str]:
    """What *source*, standing at *path* (from the root), may not import."""
    package, *inside = path.removesuffix(".py").split("/")
    found = []
    for full_name in imports(source):
        name, *_ = full_name.split(".")
        if name in PACKAGES and name not in MAY_IMPORT[package]:
            found.append(f"{path} imports {name}; {package} may import only {sorted(MAY_IMPORT[package])} of ours")
        for house, wings in WINGS.items():
            wing, other = (_inside(house, where) for where in (".".join([package, *inside]), full_name))
            if wing and other and other not in {wing, *wings[wing]}:
                found.append(f"{path} imports {full_name}; {wing} may import only {sorted(wings[wing])}")
        if name in ONLY_IMPORTERS and not path.startswith(ONLY_IMPORTERS[name]):
            found.append(f"{path} imports {name}; only {sorted(ONLY_IMPORTERS[name])} may")
        if name in NEVER_IN.get(package, ()):
            found.append(f"{path} imports {name}; nothing in {package} may")
    return found


def sources() -> list[Path]:
    return sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))


def test_every_import_points_the_allowed_way():
    files = sources()
    assert {file.relative_to(ROOT).parts[0] for file in files} == set(PACKAGES)
    found = [line for file in files for line in violations(file.relative_to(ROOT).as_posix(), file.read_text())]
    assert not found, "\n".join(found)


BACKWARD = [
    (f"{house.replace('.', '/')}/{wing}/some.py", f"from {house}.{other}.some import it")
    for house, wings in WINGS.items()
    for wing in wings
    for other in wings
    if wing != other and other not in wings[wing]
]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("tasks/tvr/language/scene.py", "import torch"),
        ("tasks/tvr/language/scene.py", "from torch.nn import functional"),
        ("tasks/tvr/language/scene.py", "from learner.config import LearnerConfig"),
        ("tasks/tvr/language/scene.py", "def f():\n    import ray"),
        ("rollout/engine.py", "from tasks.tvr.language.gold import Gold"),
        ("learner/encode.py", "from tasks.tvr.task import TASK"),
        ("orchestrator/run/session.py", "from tasks.tvr.task import TASK"),
        ("orchestrator/loop/loop.py", "def f():\n    import tasks.tvr.task"),
        ("orchestrator/cluster/start.py", "import tasks"),
        ("learner/actor.py", "from tiny_policy.make import build_tokenizer"),
        ("records/samples.py", "from tasks.tvr.language.gold import Gold"),
        ("rollout/actor.py", "import learner.batch"),
        ("reward_service/actor.py", "import ray"),
        ("learner/actor.py", "import deepspeed"),
        ("learner/loss.py", "from orchestrator.loop import window"),
        ("rollout/actor.py", "from vllm import LLM"),
        ("orchestrator/loop/loop.py", "import ray.util.metrics"),
        ("orchestrator/run/session.py", "import wandb"),
        ("orchestrator/loop/loop.py", "ray = importlib.import_module('ray')"),
        *BACKWARD,
        ("orchestrator/loop/loop.py", "from orchestrator import config"),
        ("orchestrator/config.py", "def f():\n    import orchestrator.loop.window"),
    ],
)
def test_a_forbidden_import_is_found(path, source):
    assert violations(path, source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("orchestrator/cluster/start.py", "import ray"),
        ("orchestrator/cluster/start.py", "from orchestrator.loop.roles import Publisher"),
        ("orchestrator/commands/cli.py", "from orchestrator.commands.data import add_data_commands"),
        ("orchestrator/run/session.py", "from orchestrator import config"),
        ("orchestrator/config.py", "from learner.config import LearnerConfig"),
        ("learner/engine.py", "import deepspeed"),
        ("rollout/actor.py", "from records.samples import Prompt"),
        ("learner/loss.py", "import torch"),
    ],
)
def test_an_allowed_import_is_not(path, source):
    assert not violations(path, source)


def test_the_wings_have_no_circle_between_them():
    graphlib.TopologicalSorter(WINGS["orchestrator"]).prepare()


def test_package_init_files_are_empty():
    assert all(file.read_text() == "" for file in sources() if file.name == "__init__.py")


def test_importing_any_config_loads_no_engine():
    configs = [file.relative_to(ROOT).with_suffix("") for file in sources() if file.name == "config.py"]
    assert len(configs) >= 6
    modules = [".".join(config.parts) for config in configs]
    code = (
        f"import sys, {', '.join(modules)}\n"
        "loaded = {'torch', 'ray', 'vllm', 'deepspeed', 'transformers', 'mitsuba'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
