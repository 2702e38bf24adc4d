"""Groups of samples laid out for the model, and the log-probs of their answers.

Two layouts with the same result: *shared rows*, one row a group, `prompt | answer 1 | ... | answer G`, in which each
answer sees the prompt and itself and has its own positions, so that prompt and pictures go through the model once; and
*per sample*, the plain `prompt | answer`, the reference that tests compare with. Both list the answer tokens in the
same order: row by row, answer by answer.

Shapes: B rows of a pass, L tokens of its longest row, M answer tokens of the pass, Lp prompt tokens, La answer tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from learner.encode import EncodedPair
from tvr.records import SampleGroup

RopeIndex = Callable[..., tuple[torch.Tensor, torch.Tensor]]
"""`get_rope_index` of a transformers model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One group before padding: *prompt* `[Lp]`, *is_picture* `[Lp]` bool, *positions* `[3, Lp]` int64, *answers* G
    arrays `[La]` int32.
    """

    prompt: torch.Tensor
    is_picture: torch.Tensor
    positions: torch.Tensor
    answers: tuple[np.ndarray, ...]
    pictures: EncodedPair


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """The model's inputs of one pass.

    *input_ids* `[B, L]`; *attention_mask* `[B, 1, L, L]`, 0 or the lowest number, added to the scores; *position_ids*
    `[3, B, L]` (time, height, width); *picture_places* `[K]`, the flat places (in `[B * L]`) that the pictures fill;
    *predictors* `[M]`, the flat places whose output predicts an answer token; *targets* `[M]`, those tokens.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    pixel_values: torch.Tensor
    image_grid_thw: torch.Tensor
    picture_places: torch.Tensor
    predictors: torch.Tensor
    targets: torch.Tensor

    def to(self, device: torch.device) -> "Batch":
        fields = {name: getattr(self, name) for name in self.__slots__}
        return replace(self, **{name: tensor.to(device) for name, tensor in fields.items()})


def shared_prompt(group: SampleGroup) -> np.ndarray:
    """`[Lp]` int32, the prompt tokens of all samples. Raises ValueError if the samples were given different ones."""
    first = group.samples[0].trace.prompt_token_ids
    for sample in group.samples:
        if not np.array_equal(sample.trace.prompt_token_ids, first):
            raise ValueError(f"sample {sample.id} has other prompt tokens than its siblings in group {group.prompt.id}")
    return first


def row_length(group: SampleGroup) -> int:
    """Tokens of the group's shared row. Raises ValueError as `shared_prompt` does."""
    return len(shared_prompt(group)) + sum(len(sample.trace.token_ids) for sample in group.samples)


def build_row(group: SampleGroup, pictures: EncodedPair, image_token_id: int, get_rope_index: RopeIndex) -> Row:
    prompt = torch.from_numpy(shared_prompt(group).astype(np.int64))
    is_picture = prompt == image_token_id
    positions, _ = get_rope_index(prompt[None], is_picture.int()[None], image_grid_thw=pictures.grid_thw)
    answers = tuple(sample.trace.token_ids for sample in group.samples)
    return Row(prompt=prompt, is_picture=is_picture, positions=positions[:, 0], answers=answers, pictures=pictures)


def collate_shared(rows: Sequence[Row], dtype: torch.dtype) -> Batch:
    """One row a group; *dtype* is the model's, for the mask."""
    longest = max(len(row.prompt) + sum(map(len, row.answers)) for row in rows)
    input_ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    position_ids = torch.zeros(3, len(rows), longest, dtype=torch.int64)
    # 0 the prompt, 1..G the answers, -1 padding. Padding sees the prompt and itself, so that no softmax is empty.
    segments = torch.full((len(rows), longest), -1, dtype=torch.int64)
    picture_places, predictors, targets = [], [], []
    for index, row in enumerate(rows):
        prompt_length = len(row.prompt)
        input_ids[index, :prompt_length] = row.prompt
        position_ids[:, index, :prompt_length] = row.positions
        segments[index, :prompt_length] = 0
        picture_places.append(index * longest + row.is_picture.nonzero()[:, 0])
        next_position = int(row.positions.max()) + 1
        start = prompt_length
        for number, answer in enumerate(row.answers, 1):
            tokens = torch.from_numpy(answer.astype(np.int64))
            end = start + len(tokens)
            input_ids[index, start:end] = tokens
            position_ids[:, index, start:end] = next_position + torch.arange(len(tokens))
            segments[index, start:end] = number
            before = torch.arange(start - 1, end - 1)
            before[0] = prompt_length - 1  # the last prompt token predicts the first token of every answer
            predictors.append(index * longest + before)
            targets.append(tokens)
            start = end
    own = segments[:, :, None] == segments[:, None, :]
    seen = (own | (segments == 0)[:, None, :]) & torch.ones(longest, longest, dtype=torch.bool).tril()
    attention_mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
    return Batch(
        input_ids=input_ids,
        attention_mask=attention_mask[:, None],
        position_ids=position_ids,
        pixel_values=torch.cat([row.pictures.pixel_values for row in rows]),
        image_grid_thw=torch.cat([row.pictures.grid_thw for row in rows]),
        picture_places=torch.cat(picture_places),
        predictors=torch.cat(predictors),
        targets=torch.cat(targets),
    )


def collate_per_sample(rows: Sequence[Row], dtype: torch.dtype) -> Batch:
    """The reference layout: prompt and pictures repeated for every sample."""
    return collate_shared([replace(row, answers=(answer,)) for row in rows for answer in row.answers], dtype)


def answer_logprobs(model: Any, batch: Batch, temperature: float) -> torch.Tensor:
    """`[M]` float32, nats, of each answer token under *model* (an image-text-to-text model) at *temperature*.

    Logits are made only where an answer token is predicted. The pictures go to the prompt's places and nowhere else: a
    policy may sample the picture placeholder too, which is then a token like any other, as it is to the engine.
    """
    inner = model.model
    pictures = torch.cat(inner.get_image_features(batch.pixel_values, batch.image_grid_thw).pooler_output)
    words = model.get_input_embeddings()(batch.input_ids)
    embeddings = words.flatten(0, 1).index_copy(0, batch.picture_places, pictures.to(words.dtype)).view_as(words)
    output = inner.language_model(
        inputs_embeds=embeddings,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
    )
    hidden = output.last_hidden_state.flatten(0, 1)[batch.predictors]
    logits = model.lm_head(hidden).float() / temperature
    return logits.gather(-1, batch.targets[:, None])[:, 0] - logits.logsumexp(-1)
