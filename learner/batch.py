"""Groups of samples laid out for the model, and the log-probs of their answers.

Two layouts with the same result: *shared rows*, `prompt | answer 1 | ... | answer G`, in which each answer sees the
prompt and itself and has its own positions, so that prompt and pictures go through the model once; and *per sample*,
the plain `prompt | answer`, the reference that tests and benchmarks compare with. Both list the answer tokens in the
same order: row by row, answer by answer. Rows of a pass are packed one after the other, without padding.

Shapes: T tokens of a pass, M answer tokens of it, Lp prompt tokens, La answer tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from learner.attention import Span, make_span
from learner.encode import EncodedPictures
from learner.windows import picture_features
from records.samples import SampleGroup

RopeIndex = Callable[..., tuple[torch.Tensor, torch.Tensor]]
"""`get_rope_index` of a transformers model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompted:
    """A prompt as the model takes it: *prompt* `[Lp]`, *is_picture* `[Lp]` bool, *positions* `[3, Lp]` int64."""

    prompt: torch.Tensor
    is_picture: torch.Tensor
    positions: torch.Tensor
    pictures: EncodedPictures


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchRow:
    """One row of a pass: a prompt and some of its answers, arrays `[La]` int32."""

    prompted: Prompted
    answers: tuple[np.ndarray, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """The model's inputs of one pass.

    *input_ids* `[1, T]`; *position_ids* `[3, 1, T]` (time, height, width); *spans*, where each row stands;
    *picture_places* `[K]`, the places in `[T]` that the pictures fill, none if there is but a blank one (`_blank`);
    *predictors* `[M]`, the places whose output predicts an answer token; *targets* `[M]`, those tokens.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    pixel_values: torch.Tensor
    image_grid_thw: torch.Tensor
    picture_places: torch.Tensor
    predictors: torch.Tensor
    targets: torch.Tensor
    spans: tuple[Span, ...]

    def to(self, device: torch.device) -> "Batch":
        fields = {name: getattr(self, name) for name in self.__slots__ if name != "spans"}
        moved = {name: tensor.to(device) for name, tensor in fields.items()}
        return replace(self, **moved, spans=tuple(span.to(device) for span in self.spans))


def shared_prompt(group: SampleGroup) -> np.ndarray:
    """`[Lp]` int32, the prompt tokens of all samples. Raises ValueError if the samples were given different ones."""
    first = group.samples[0].trace.prompt_token_ids
    for sample in group.samples:
        if not np.array_equal(sample.trace.prompt_token_ids, first):
            raise ValueError(f"sample {sample.id} has other prompt tokens than its siblings in group {group.prompt.id}")
    return first


def lay_out_prompt(
    group: SampleGroup, pictures: EncodedPictures, image_token_id: int, get_rope_index: RopeIndex
) -> Prompted:
    prompt = torch.from_numpy(shared_prompt(group).astype(np.int64))
    is_picture = prompt == image_token_id
    positions, _ = get_rope_index(prompt[None], is_picture.int()[None], image_grid_thw=pictures.grid_thw)
    return Prompted(prompt=prompt, is_picture=is_picture, positions=positions[:, 0], pictures=pictures)


def collate(rows: Sequence[BatchRow]) -> Batch:
    """*rows* one after the other."""
    input_ids, positions, picture_places, predictors, spans = [], [], [], [], []
    start = 0
    seen = [row.prompted.pictures for row in rows]
    if not any(len(pictures.grid_thw) for pictures in seen):
        seen = [_blank(seen[0])]
    for row in rows:
        prompted, lengths = row.prompted, [len(answer) for answer in row.answers]
        span = make_span(start, len(prompted.prompt), lengths)
        next_position = int(prompted.positions.max()) + 1
        input_ids += [prompted.prompt, *(torch.from_numpy(answer.astype(np.int64)) for answer in row.answers)]
        positions += [prompted.positions, *(next_position + torch.arange(n).expand(3, n) for n in lengths)]
        picture_places.append(start + prompted.is_picture.nonzero()[:, 0])
        for first, length in zip(span.answers[:, 0].tolist(), lengths, strict=True):
            before = torch.arange(first - 1, first - 1 + length)
            before[0] = start + len(prompted.prompt) - 1  # the prompt's end predicts the first token of every answer
            predictors.append(before)
        spans.append(span)
        start += len(prompted.prompt) + sum(lengths)
    return Batch(
        input_ids=torch.cat(input_ids)[None],
        position_ids=torch.cat(positions, dim=1)[:, None],
        pixel_values=torch.cat([pictures.pixel_values for pictures in seen]),
        image_grid_thw=torch.cat([pictures.grid_thw for pictures in seen]),
        picture_places=torch.cat(picture_places),
        predictors=torch.cat(predictors),
        targets=torch.cat([torch.from_numpy(answer.astype(np.int64)) for row in rows for answer in row.answers]),
        spans=tuple(spans),
    )


def _blank(pictures: EncodedPictures) -> EncodedPictures:
    """One picture of 2 by 2 patches, which stands nowhere: a pass without pictures calls the vision tower too, for
    ranks that share weights or gradients must call the same modules."""
    return EncodedPictures(
        pixel_values=torch.zeros(4, pictures.pixel_values.shape[1]), grid_thw=torch.tensor([[1, 2, 2]])
    )


def one_sample_a_row(rows: Sequence[BatchRow]) -> list[BatchRow]:
    """The reference layout: prompt and pictures repeated for every sample."""
    return [replace(row, answers=(answer,)) for row in rows for answer in row.answers]


def answer_logprobs(model: Any, batch: Batch, temperature: float) -> torch.Tensor:
    """`[M]` float32, nats, of each answer token under *model* (of `load_model`) at *temperature*.

    Logits are made only where an answer token is predicted. The pictures go to the prompt's places and nowhere else: a
    policy may sample the picture placeholder too, which is then a token like any other, as it is to the engine.
    """
    inner = model.model
    pictures = picture_features(inner, batch.pixel_values, batch.image_grid_thw)
    words = model.get_input_embeddings()(batch.input_ids)
    shown, blank = pictures.to(words.dtype).split([num_shown := len(batch.picture_places), len(pictures) - num_shown])
    embeddings = words[0].index_copy(0, batch.picture_places, shown)[None]
    if len(blank):
        embeddings = embeddings + 0 * blank.sum()
    output = inner.language_model(
        inputs_embeds=embeddings,
        attention_mask={"full_attention": batch.spans},
        position_ids=batch.position_ids,
        use_cache=False,
    )
    return model.lm_head(output.last_hidden_state[0, batch.predictors], batch.targets, temperature)
