"""The data of whole runs."""

from tests.orchestrator.conftest import data

__all__ = ["data"]
