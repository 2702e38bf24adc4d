"""What a person sees meanwhile, where the output is no terminal."""

import io

import pytest
from rich.console import Console

from orchestrator import display
from orchestrator.display import counting


def said(check: bool) -> list[str]:
    text = io.StringIO()
    with counting(Console(file=text, width=80), "reading", check=check) as counter:
        for done in (1, 2, 3):
            counter(done, 3)
    return text.getvalue().splitlines()


def test_work_says_its_end_and_a_check_that_is_soon_done_says_nothing():
    assert said(check=False) == ["reading: 3 of 3"]
    assert said(check=True) == []


def test_what_takes_long_says_so_now_and_then(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(display, "PLAIN_EVERY_S", 0.0)
    assert said(check=True) == ["reading: 1 of 3", "reading: 2 of 3", "reading: 3 of 3"]
