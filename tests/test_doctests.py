"""The examples in docstrings say what is so."""

import doctest
import importlib
from pathlib import Path

import pytest

from tests.test_architecture import ROOT, sources

WITH_EXAMPLES = [file for file in sources() if ">>> " in file.read_text()]


@pytest.mark.parametrize("file", WITH_EXAMPLES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_examples(file: Path) -> None:
    name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried > 0
    assert failed == 0


def test_there_are_examples() -> None:
    assert len(WITH_EXAMPLES) > 5
