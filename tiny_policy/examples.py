"""Batches to teach a language model from, on what a vision tower has seen already.

Three kinds. *pair*: the task's own prompt, with a reply to learn. *name*: one picture, the reply lists its objects.
*compare*: a pair without pictures, which costs next to nothing: the reasoning is given, the answer is learnt from it.
Pictures are used as they are and mirrored; a mirrored scene numbers its objects from the other side.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tasks.tvr.data.scene_states import StatePicture
from tasks.tvr.language.answer import format_answer
from tasks.tvr.language.prompt import build_messages
from tasks.tvr.language.reasoning import careful_reply, list_objects
from tasks.tvr.language.scene import Scene
from tiny_policy.behaviours import careful

NEARBY = ((0, 1), (1, 0), (2, 3), (3, 2))  # states that a few changes lead between, see tasks/tvr/data/scene_states.py

Reply = Callable[[random.Random, Scene, Scene], str]
"""What to answer to a pair of scenes."""
Row = tuple[str, str, list[tuple[bool, int]]]
"""Prompt, reply, and the pictures used: whether mirrored, and their number."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Right-padded: *input_ids* and *labels* `[B, L]` int64, -100 where nothing is to be learnt.

    *seen* `[tokens, W]` are the visual tokens of all pictures of the batch, in order; None where there are none.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    seen: torch.Tensor | None


class ExampleSource:
    """Examples from rendered *states*, and their visual tokens *seen* `[2, pictures, T, W]`: as they are, mirrored."""

    def __init__(self, states: list[StatePicture], seen: torch.Tensor, processor: Any) -> None:
        self.processor = processor
        self.states = states
        self.seen = seen
        self.scenes: dict[int, dict[int, list[int]]] = {}
        for index, item in enumerate(states):
            self.scenes.setdefault(item.scene_id, {}).setdefault(item.state_id, []).append(index)

    def pairs(
        self,
        rng: random.Random,
        scene_ids: list[int],
        count: int,
        nearby_share: float,
        reply: Reply = careful,
        begun: str = "",
    ) -> Examples:
        """Pairs of states of a scene, *nearby_share* of them a few changes apart, the others many.

        Every reply begins with *begun*, which is given and not to be learnt.
        """
        rows = []
        for _ in range(count):
            states = self.scenes[rng.choice(scene_ids)]
            first, last = self._draw_pair(rng, states, nearby_share)
            mirrored = rng.random() < 0.5
            old, new = (self._scene(index, mirrored) for index in (first, last))
            text = self._prompt(list(build_messages(old)))
            rows.append((text + begun, reply(rng, old, new).removeprefix(begun), [(mirrored, first), (mirrored, last)]))
        return self._batch(rows)

    def names(self, rng: random.Random, scene_ids: list[int], count: int) -> Examples:
        content = [{"type": "text", "text": "final :"}, {"type": "image"}, {"type": "text", "text": "objects ?"}]
        text = self._prompt([{"role": "user", "content": content}])
        rows = []
        for _ in range(count):
            index = rng.choice(rng.choice(list(self.scenes[rng.choice(scene_ids)].values())))
            mirrored = rng.random() < 0.5
            reply = format_answer((), list_objects(self._scene(index, mirrored)))
            rows.append((text, reply, [(mirrored, index)]))
        return self._batch(rows)

    def comparisons(self, rng: random.Random, scene_ids: list[int], count: int, nearby_share: float) -> Examples:
        rows: list[Row] = []
        for _ in range(count):
            first, last = self._draw_pair(rng, self.scenes[rng.choice(scene_ids)], nearby_share)
            old, new = self.states[first].scene, self.states[last].scene
            (_, user) = build_messages(old)
            words = [part for part in user["content"] if part["type"] == "text"]
            reasoning, tag, answer = careful_reply(old, new).partition("<answer>")
            rows.append((self._prompt([{"role": "user", "content": words}]) + reasoning, tag + answer, []))
        return self._batch(rows)

    def _draw_pair(self, rng: random.Random, states: dict[int, list[int]], nearby_share: float) -> tuple[int, int]:
        """The initial picture, which is a state's first and from the centre, and any picture of another state."""
        nearby = rng.random() < nearby_share
        before, after = rng.choice(NEARBY) if nearby else rng.sample(sorted(states), 2)
        return states[before][0], rng.choice(states[after])

    def _scene(self, index: int, mirrored: bool) -> Scene:
        scene = self.states[index].scene
        return scene[::-1] if mirrored else scene

    def _batch(self, rows: list[Row]) -> Examples:
        tokenizer = self.processor.tokenizer
        tokens = [(self._tokens(prompt), self._tokens(reply + tokenizer.eos_token)) for prompt, reply, _ in rows]
        length = max(len(prompt) + len(reply) for prompt, reply in tokens)
        input_ids = torch.full((len(rows), length), tokenizer.pad_token_id)
        labels = torch.full((len(rows), length), -100)
        for row, (asked, wanted) in enumerate(tokens):
            end = len(asked) + len(wanted)
            input_ids[row, :end] = torch.tensor(asked + wanted)
            labels[row, len(asked) : end] = torch.tensor(wanted)
        used = [place for *_, pictures in rows for place in pictures]
        seen = None
        if used:
            mirrored, indices = zip(*used, strict=True)
            seen = self.seen[torch.tensor(mirrored).int(), torch.tensor(indices)].flatten(0, 1)
        return Examples(input_ids=input_ids, labels=labels, seen=seen)

    def _prompt(self, messages: list[dict[str, Any]]) -> str:
        text = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return text.replace(self.processor.image_token, self.processor.image_token * self.seen.shape[2])

    def _tokens(self, text: str) -> list[int]:
        return self.processor.tokenizer(text)["input_ids"]
