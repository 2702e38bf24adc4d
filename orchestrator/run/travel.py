"""What a run takes along to a cluster that holds the image alone: its run file, and the modules of the user's folder.

Model and data do not travel: they are paths on the cluster.
"""

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

import tomli_w

from orchestrator.config import ConfigError, RunConfig

MOST_MIB = 20
"""Ray keeps what travels in the memory of the head, and every node gets a copy."""
NOT_TAKEN = ("__pycache__", ".git", "*.pyc")


def pack(config: RunConfig, name: str, here: Path, folder: Path) -> list[str]:
    """Put into the empty *folder* what the run takes along; returns what that is.

    The run file is called *name*; modules are taken from *here*, which the run imports from. Raises ConfigError.
    """
    check_paths(config)
    (folder / name).write_text(tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)))
    named = [text.partition(":")[0] for text in (config.task, config.reward_service.rule) if ":" in text]
    modules = sorted(needed(named, here))
    for path in modules:
        if path.is_dir():
            shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns(*NOT_TAKEN))
        else:
            shutil.copy(path, folder / path.name)
    _check_size(folder)
    return [name, *(path.name for path in modules)]


def check_paths(config: RunConfig) -> None:
    """Raise ConfigError for a model or data that the cluster could not find."""
    for key, path in (("model", config.model), ("data.path", getattr(config.data, "path", None))):
        if isinstance(path, Path) and not path.is_absolute():
            raise ConfigError(
                f"{key} = {str(path)!r}: is a path on the cluster, which has nothing of this folder; give it as every "
                f"node sees it, --set {key}=/..."
            )


def needed(modules: list[str], here: Path) -> set[Path]:
    """The files and folders of *here* that *modules* are, and those that they import in turn."""
    found: set[Path] = set()
    left = list(modules)
    while left:
        top = left.pop().partition(".")[0]
        path = here / top if (here / top).is_dir() else here / f"{top}.py"
        if top and path.exists() and path not in found:
            found.add(path)
            files = path.rglob("*.py") if path.is_dir() else [path]
            left += [name for file in files for name in _imports(file)]
    return found


def _imports(file: Path) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_text())
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: travels with the run, and is not Python: {error}; mend it") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


def _check_size(folder: Path) -> None:
    sizes = {child.name: _size(child) for child in folder.iterdir()}
    total = sum(sizes.values()) / 2**20
    if total > MOST_MIB:
        largest = max(sizes, key=lambda name: sizes[name])
        raise ConfigError(
            f"what travels with the run has {total:.0f} MiB, {largest} most of them, and {MOST_MIB} MiB may; put data "
            "where the cluster sees them, or the package into its image"
        )


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
