"""Mutation testing: breaks one thing at a time in the learner and the loop, and says what no test noticed.

    make mutants                                      (half an hour on 2 cores)
    make mutants ARGS=orchestrator/loop/window.py          (one file of them)

A mutant is a file with one operator, number, condition or statement changed. The tests of that file run on it in a
forked process, which has the large libraries imported already. A mutant that no test fails on is printed, unless
tests/mutants.toml says why it does the same as the original; exit status 1 then, and where mutants.toml tells of
a mutant that is killed or is not there. Tests in other processes (ranks, whole runs) do not count: they are slow.
"""

import argparse
import ast
import contextlib
import copy
import importlib.abc
import importlib.machinery
import os
import signal
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

TESTS = {
    "learner/advantages.py": ("learner/test_advantages.py", "learner/test_loss.py"),
    "learner/batch.py": ("learner/test_layouts.py",),
    "learner/config.py": ("learner/test_config.py",),
    "learner/loss.py": ("learner/test_loss.py",),
    "learner/loss_config.py": ("learner/test_loss_config.py", "learner/test_loss.py"),
    "learner/packing.py": ("learner/test_packing.py",),
    "orchestrator/loop/loop.py": ("orchestrator/loop/test_loop.py",),
    "orchestrator/run/metrics.py": ("orchestrator/run/test_metrics.py",),
    "orchestrator/cluster/publish.py": ("orchestrator/cluster/test_publish.py",),
    "orchestrator/loop/window.py": ("orchestrator/loop/test_window.py", "orchestrator/loop/test_loop.py"),
}
EQUIVALENT = Path("tests/mutants.toml")
PASSED, KILLED = 0, 1
SLOWER = 2.0
"""A mutant may take so many times as long as the file that it was made of, and MORE_S seconds; then it hangs."""
MORE_S = 5.0

OTHER: dict[type, type] = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult, ast.Mod: ast.Mult},
    **{ast.FloorDiv: ast.Mult, ast.MatMult: ast.Mult},
}
OTHER_FUNCTION = {"min": "max", "max": "min", "any": "all", "all": "any"}
# What is only said (messages), or only read by people and type checkers.
SILENT = (ast.Raise, ast.JoinedStr, ast.AnnAssign)
SILENT_FIELDS = ("annotation", "returns", "decorator_list", "msg", "bases")


@dataclass(frozen=True)
class Mutant:
    """In *file*, *field* of *parent* (at *index*, if it is a list) is *new*. Told by its *line* and its *change*."""

    file: str
    line: int
    change: str
    parent: ast.AST
    field: str
    index: int | None
    new: ast.AST

    def put_in(self) -> None:
        if self.index is None:
            setattr(self.parent, self.field, self.new)
        else:
            getattr(self.parent, self.field)[self.index] = self.new


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="FILE", help="of these only")
    parser.add_argument("--at-once", type=int, default=os.cpu_count() or 1, help="processes (default: %(default)s)")
    options = parser.parse_args()
    if unknown := set(options.files) - set(TESTS):
        parser.error(f"no tests are named for {', '.join(sorted(unknown))}; there are {', '.join(TESTS)}")
    excused = {(one["file"], one["change"]): one["why"] for one in tomllib.loads(EQUIVALENT.read_text())["equivalent"]}
    import_libraries()
    failures = [try_file(file, options.at_once, excused) for file in options.files or TESTS]
    sys.exit(1 if any(failures) else 0)


def import_libraries() -> None:
    """Once, for all forked processes. None of ours: they are imported anew, one of them broken."""
    import numpy  # noqa: F401
    import pydantic  # noqa: F401
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(1)


def try_file(file: str, at_once: int, excused: dict[tuple[str, str], str]) -> bool:
    """Whether something is to be done about *file*."""
    tree = ast.parse(Path(file).read_text())
    mutants = list(make_mutants(file, tree))
    began = time.monotonic()
    if run_tests(file, tree, None, 600.0) != PASSED:
        sys.exit(f"{file}: its tests fail as it is: pytest {' '.join(paths(file))}")
    limit_s = SLOWER * (time.monotonic() - began) + MORE_S
    with ThreadPoolExecutor(at_once) as pool:
        results = list(pool.map(lambda mutant: run_tests(file, tree, mutant, limit_s), mutants))
    survivors = [mutant for mutant, result in zip(mutants, results, strict=True) if result == PASSED]
    found = [mutant for mutant in survivors if (file, mutant.change) not in excused]
    names = {mutant.change for mutant in survivors}
    stale = [change for at, change in excused if at == file and change not in names]
    print(  # noqa: T201
        f"{file}: {len(mutants)} mutants, {len(mutants) - len(survivors)} killed, "
        f"{len(survivors) - len(found)} equivalent, {len(found)} survived, {time.monotonic() - began:.0f} s"
    )
    for mutant in found:
        print(f"  survived: {file}:{mutant.line}: {mutant.change}")  # noqa: T201
    for change in stale:
        print(f"  mutants.toml says that this is equivalent, but it is killed or not there: {change}")  # noqa: T201
    sys.stdout.flush()
    return bool(found or stale)


def make_mutants(file: str, tree: ast.Module) -> Iterator[Mutant]:
    """In the order of the source. A change that a function has twice is numbered."""
    seen: Counter[str] = Counter()
    for where, parent, field, index, node in places(tree, ""):
        for new in replacements(node):
            change = f"{where}: {shown(node)} -> {shown(new)}"
            seen[change] += 1
            numbered = change if seen[change] == 1 else f"{change} ({seen[change]})"
            yield Mutant(file, getattr(node, "lineno", 0), numbered, parent, field, index, new)


def places(parent: ast.AST, where: str) -> Iterator[tuple[str, ast.AST, str, int | None, ast.AST]]:
    """Every node that something depends on, with the function it is *where* and its place in its parent."""
    if isinstance(parent, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        where = f"{where}.{parent.name}".lstrip(".")
    for field, value in ast.iter_fields(parent):
        if field in SILENT_FIELDS:
            continue
        children = enumerate(value) if isinstance(value, list) else [(None, value)]
        for index, node in children:
            if not isinstance(node, ast.AST) or is_silent(node) or is_guard(node):
                continue
            if where:  # what stands outside of functions and classes is names and tables
                yield where, parent, field, index, node
            yield from places(node, where)


def is_silent(node: ast.AST) -> bool:
    is_logging = isinstance(node, ast.Call) and ast.unparse(node.func).startswith("logger.")
    return isinstance(node, SILENT) or is_logging


def is_guard(node: ast.AST) -> bool:
    """`strict=True` finds mistakes of others, made elsewhere."""
    return isinstance(node, ast.keyword) and node.arg == "strict"


def replacements(node: ast.AST) -> Iterator[ast.AST]:
    """Each differs from *node* in one thing."""
    match node:
        case ast.Constant(value=bool()):
            yield ast.Constant(not node.value)
        case ast.Constant(value=int() | float()):
            yield ast.Constant(node.value + 1)
        case ast.Compare(ops=[operator]):
            yield changed(node, ops=[OTHER[type(operator)]()])
        case ast.Compare(ops=[one, other]):
            yield changed(node, ops=[OTHER[type(one)](), other])
            yield changed(node, ops=[one, OTHER[type(other)]()])
        case ast.BinOp(op=operator) if type(operator) in OTHER:
            yield changed(node, op=OTHER[type(operator)]())
        case ast.BoolOp(op=operator):
            yield changed(node, op=OTHER[type(operator)]())
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield node.operand
        case ast.IfExp():
            yield changed(node, body=node.orelse, orelse=node.body)
        case ast.If():
            yield changed(node, test=ast.UnaryOp(ast.Not(), node.test))
        case ast.Call(func=ast.Name(id=name)) if name in OTHER_FUNCTION:
            yield changed(node, func=ast.Name(OTHER_FUNCTION[name], ast.Load()))
        case ast.AugAssign() | ast.Continue() | ast.Expr(value=ast.Call() | ast.Await()):
            yield ast.Pass()


def changed(node: ast.AST, **fields: Any) -> ast.AST:
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


def shown(node: ast.AST) -> str:
    """The first line of it."""
    return ast.unparse(ast.fix_missing_locations(copy.deepcopy(node))).partition("\n")[0]


def paths(file: str) -> list[str]:
    return [f"tests/{name}" for name in TESTS[file]]


def run_tests(file: str, tree: ast.Module, mutant: Mutant | None, limit_s: float) -> int:
    """`PASSED`, or anything else; after *limit_s* the process is killed."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        os._exit(run_here(file, tree, mutant))
    ends = time.monotonic() + limit_s
    while time.monotonic() < ends:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return KILLED


def run_here(file: str, tree: ast.Module, mutant: Mutant | None) -> int:
    if mutant is not None:
        mutant.put_in()
    sys.meta_path.insert(0, _Finder(file, ast.fix_missing_locations(tree)))
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow"]
    return int(pytest.main([*options, *paths(file)]))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the module of *file*, made of *tree*."""

    def __init__(self, file: str, tree: ast.Module) -> None:
        self._name = file.removesuffix(".py").replace("/", ".")
        self._path = str(Path(file).resolve())
        self._tree = tree

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        return importlib.machinery.ModuleSpec(fullname, _Loader(fullname, self._path, self._tree), origin=self._path)


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, fullname: str, path: str, tree: ast.Module) -> None:
        super().__init__(fullname, path)
        self._tree = tree

    def get_code(self, fullname: str) -> Any:
        return compile(self._tree, self.path, "exec")


if __name__ == "__main__":
    main()
