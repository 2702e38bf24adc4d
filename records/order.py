"""In which order prompts are learned from."""

import random
from collections.abc import Sequence

from records.samples import Prompt


class PromptOrder:
    """All prompts in a shuffled order, again and again, each time in another; a cursor says how many were given out.

    The order depends on the seed and the number of prompts alone, so that `seek` to the cursor of another run goes on
    exactly where that run stopped.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int) -> None:
        if not prompts:
            raise ValueError("there are no prompts to order; the split is empty")
        self._prompts = prompts
        self._seed = seed
        self._cursor = 0
        self._shuffled: tuple[int, list[int]] = (-1, [])  # epoch, its order

    @property
    def cursor(self) -> int:
        return self._cursor

    def seek(self, cursor: int) -> None:
        """Go to the place where *cursor* prompts have been given out."""
        if cursor < 0:
            raise ValueError(f"the cursor is {cursor}; it counts prompts and cannot be negative")
        self._cursor = cursor

    def next(self) -> Prompt:
        prompt = self.at(self._cursor)
        self._cursor += 1
        return prompt

    def at(self, cursor: int) -> Prompt:
        """The prompt that `next` gives, or gave, when *cursor* prompts have been given out."""
        epoch, place = divmod(cursor, len(self._prompts))
        if self._shuffled[0] != epoch:
            order = list(range(len(self._prompts)))
            random.Random(f"{self._seed}/order/{epoch}").shuffle(order)
            self._shuffled = (epoch, order)
        return self._prompts[self._shuffled[1][place]]
