"""README and docs: links lead somewhere, the tree is the tree, commands are commands."""

import re
from pathlib import Path

import pytest
import typer.main

from orchestrator.commands.cli import app
from tests.test_architecture import PACKAGES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "deploy").rglob("*.md"))]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
DEEPEST = 8
"""Spaces before a name in the tree; a text that goes on in the next line stands behind more."""


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere(name: str) -> None:
    page = ROOT / name
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_command_is_one(name: str) -> None:
    """`star-r1 data make ...` in code, inline or in blocks."""
    group = typer.main.get_command(app)
    unknown = []
    for words in re.findall(r"(?:^|`|-- |\$ )star-r1 ([a-z][a-z0-9 -]*)", (ROOT / name).read_text(), re.MULTILINE):
        first, *rest = words.split()
        command = group.commands.get(first)  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        if command is None or (inner is not None and rest and rest[0] not in inner):
            unknown.append(words)
    assert unknown == []


def test_the_tree_is_the_tree() -> None:
    """What lines of it begin with is there, in the folders above it, and no module is left out."""
    tree = (ROOT / "docs" / "code.md").read_text().split("## The tree")[1].split("```")[1]
    above: list[str] = []
    for line in tree.splitlines():
        indent, names = re.match(r"( *)([\w-]+(?:/|\.\w+)(?:  [\w-]+\.\w+)*)?", line).groups("")  # type: ignore[union-attr]
        for name in names.split() if len(indent) <= DEEPEST else ():
            depth = len(indent) // 2
            assert (ROOT / "/".join([*above[:depth], name])).exists(), line
            if name.endswith("/"):
                above[depth:] = [name.rstrip("/")]
    modules = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py") if file.name != "__init__.py"]
    assert [file.relative_to(ROOT).as_posix() for file in modules if file.name not in tree] == []
