"""Attention over packed rows, in which an answer sees its prompt and itself.

Rows stand one after the other without padding: `prompt | answer 1 | ... | answer G | prompt | ...`. A mask over all of
it would be quadratic in the whole pass and mostly false. Here each row is two calls of PyTorch's own attention instead:
the prompt over itself, and all answers at once, each over the prompt and itself. `load_policy` in `engine.py` hands
this function to the language model as its attention; the vision tower has that of `windows.py`.

Shapes: T tokens of a pass, H query heads, D their size, Lp prompt tokens and G answers of a row, A its longest answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

NAME = "shared_prompt"


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """Where one row stands in the pass: the prompt at `[start, start + Lp)`, its answers after it.

    *answers* `[G, A]`, the place of each answer token, and of some token where an answer has ended; *is_token*, which
    of the `G * A` are tokens; *seen* `[A, Lp + A]` bool, which of prompt and itself an answer token sees.
    """

    start: int
    prompt_length: int
    answers: torch.Tensor
    is_token: torch.Tensor
    seen: torch.Tensor

    def to(self, device: torch.device) -> "Span":
        moved = {name: getattr(self, name).to(device) for name in ("answers", "is_token", "seen")}
        return replace(self, **moved)


def make_span(start: int, prompt_length: int, answer_lengths: Sequence[int]) -> Span:
    """The span of a row that begins at token *start* of its pass.

    >>> span = make_span(10, 3, [2, 1])
    >>> span.answers.tolist(), span.is_token.tolist()
    ([[13, 14], [15, 15]], [0, 1, 2])
    """
    lengths = torch.tensor(answer_lengths)
    longest = max(answer_lengths)
    offsets = torch.arange(longest)
    begins = start + prompt_length + lengths.cumsum(0) - lengths
    is_token = offsets < lengths[:, None]
    own = torch.ones(longest, longest, dtype=torch.bool).tril()
    return Span(
        start=start,
        prompt_length=prompt_length,
        answers=begins[:, None] + torch.minimum(offsets, lengths[:, None] - 1),
        is_token=is_token.flatten().nonzero()[:, 0],
        seen=torch.cat([torch.ones(longest, prompt_length, dtype=torch.bool), own], dim=1),
    )


def shared_prompt_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Sequence[Span],
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers calls its attention functions: *query* `[1, H, T, D]`, *key* and *value* with as many or fewer
    heads; *attention_mask* is the spans of all rows, in order. Returns `[1, T, H, D]`.
    """
    groups = query.shape[1] // key.shape[1]
    tokens = [part[0].transpose(0, 1) for part in (query, key, value)]  # [T, H, D]
    query, key, value = tokens if groups == 1 else [tokens[0], *(t.repeat_interleave(groups, 1) for t in tokens[1:])]
    outputs = []
    for span in attention_mask:
        prompt = slice(span.start, span.start + span.prompt_length)
        asked, keys, values = (part[prompt].transpose(0, 1)[None] for part in (query, key, value))
        attended = F.scaled_dot_product_attention(asked, keys, values, is_causal=True, scale=scaling)
        outputs.append(attended[0].transpose(0, 1))
        num_answers = len(span.answers)
        places = span.answers.flatten()
        own = (part.index_select(0, places).unflatten(0, span.answers.shape) for part in (query, key, value))
        asked, own_keys, own_values = (part.transpose(1, 2) for part in own)  # [G, H, A, D]
        attended = F.scaled_dot_product_attention(
            asked,
            torch.cat([keys.expand(num_answers, -1, -1, -1), own_keys], dim=2),
            torch.cat([values.expand(num_answers, -1, -1, -1), own_values], dim=2),
            attn_mask=span.seen,
            scale=scaling,
        )
        outputs.append(attended.transpose(1, 2).flatten(0, 1).index_select(0, span.is_token))
    return torch.cat(outputs)[None], None


AttentionInterface.register(NAME, shared_prompt_attention)
