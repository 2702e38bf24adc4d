"""In which order prompts are learned from."""

import pytest

from records.order import PromptOrder
from records.samples import Prompt
from tests.fakes import make_prompt


@pytest.fixture
def train() -> list[Prompt]:
    return [make_prompt(f"{number}/basic/center") for number in range(6)]


def test_each_epoch_has_every_prompt_once_in_another_order(train):
    order = PromptOrder(train, seed=0)
    epochs = [[order.next().id for _ in train] for _ in range(3)]
    assert all(sorted(epoch) == sorted(prompt.id for prompt in train) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert order.cursor == 18


def test_an_order_goes_on_from_a_saved_cursor(train):
    first = PromptOrder(train, seed=4)
    for _ in range(8):
        first.next()
    second = PromptOrder(train, seed=4)
    second.seek(first.cursor)
    assert [first.next().id for _ in range(10)] == [second.next().id for _ in range(10)]


def test_an_empty_split_has_no_order():
    with pytest.raises(ValueError, match="no prompts"):
        PromptOrder([], seed=0)
