"""A small tiny policy."""

import pytest

from tests.learner import ranks


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny_policy")
    ranks.write_policy(folder)
    return str(folder)
