"""Debian's Prometheus, which some tests ask: is it there?"""

import os
import shutil

import pytest


def tool(name: str) -> str:
    """The path of `prometheus` or `promtool`. Without it the test is skipped, or fails in continuous integration."""
    if path := shutil.which(name):
        return path
    missing = f"no {name} here; apt-get install -y --no-install-recommends prometheus brings it"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)
