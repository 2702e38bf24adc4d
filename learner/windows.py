"""Attention of the vision tower, in which a patch sees its window alone, or in some layers all of its picture.

transformers cuts a pass at every window and calls the attention for each, over a hundred times a layer. Here windows of
one length go in one call: a picture has four lengths at most, that of the windows inside, at two edges and in the
corner. Padding them all to the longest would take one call, and a mask, which only slower kernels have; and among
pictures of different sizes there would be more padding than patches.

Shapes: N patches of a pass, H heads, D their size, K visual tokens, W the language model's width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_window_index

NAME = "windows"


@dataclass(frozen=True, kw_only=True, slots=True)
class Segments:
    """Parts of a pass whose patches see each other and no others.

    *order* `[N]` brings the patches of a part together, and parts of the same length, and *back* `[N]` undoes it; None
    where they stand so already. *groups* is how many there are of each length, in that order: `(count, length)`.
    """

    order: torch.Tensor | None
    back: torch.Tensor | None
    groups: tuple[tuple[int, int], ...]


def make_segments(part: torch.Tensor, device: torch.device) -> Segments:
    """*part* `[N]`, on the host, is the number of each patch's part.

    >>> segments = make_segments(torch.tensor([0, 0, 1, 2, 2]), torch.device("cpu"))
    >>> segments.order.tolist(), segments.back.tolist(), segments.groups
    ([2, 0, 1, 3, 4], [1, 2, 0, 3, 4], ((1, 1), (2, 2)))
    """
    lengths = part.bincount()
    order = (lengths[part] * len(lengths) + part).argsort(stable=True)
    of_length, counts = lengths.unique(return_counts=True)
    groups = tuple(zip(counts.tolist(), of_length.tolist(), strict=True))
    if torch.equal(order, torch.arange(len(part))):
        return Segments(order=None, back=None, groups=groups)
    return Segments(order=order.to(device), back=order.argsort().to(device), groups=groups)


def picture_features(model: Any, pixel_values: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
    """`[K, W]`, all visual tokens of a pass under *model* (the inner one of `load_model`).

    Where windows lie is worked out here, once, and not by each layer, which would wait for the device to say it. The
    tower is given them sorted by length, so that only the layers of whole pictures have to bring patches together.
    """
    tower, grid, device = model.visual, grid_thw.cpu(), grid_thw.device
    unit = tower.spatial_merge_unit  # patches of a token, which stay together
    places, ends = get_vision_window_index(grid, tower.spatial_merge_size, tower.window_size, tower.patch_size)
    by_length = sorted(places.split((ends.diff() // unit).tolist()), key=len)
    order = torch.cat(by_length)
    in_window = torch.repeat_interleave(torch.tensor([len(window) for window in by_length]))
    in_picture = torch.repeat_interleave(get_vision_cu_seqlens(grid).diff() // unit)[order]
    windows, pictures = (make_segments(part.repeat_interleave(unit), device) for part in (in_window, in_picture))
    uncut = torch.tensor([0, len(pixel_values)])  # else each layer cuts the pass itself
    output = model.get_image_features(
        pixel_values,
        grid_thw,
        window_index=order.to(device),
        cu_window_seqlens=uncut,
        cu_seqlens=uncut,
        segments={
            block.attn: pictures if number in tower.fullatt_block_indexes else windows
            for number, block in enumerate(tower.blocks)
        },
    )
    return torch.cat(output.pooler_output)


def window_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    segments: Mapping[torch.nn.Module, Segments],
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers calls its attention functions: *query*, *key* and *value* `[1, H, N, D]`; *segments* is that of
    `picture_features`, by layer. Returns `[1, N, H, D]`.
    """
    own = segments[module]
    tokens = [part[0].transpose(0, 1) for part in (query, key, value)]  # [N, H, D]
    if own.order is not None:
        tokens = [part.index_select(0, own.order) for part in tokens]
    sizes = [count * length for count, length in own.groups]
    outputs = []
    for shape, *parts in zip(own.groups, *(part.split(sizes) for part in tokens), strict=True):
        asked, keys, values = (part.unflatten(0, shape).transpose(1, 2) for part in parts)  # [count, H, length, D]
        attended = F.scaled_dot_product_attention(asked, keys, values, scale=scaling)
        outputs.append(attended.transpose(1, 2).flatten(0, 1))
    together = torch.cat(outputs)
    return (together if own.back is None else together.index_select(0, own.back))[None], None


AttentionInterface.register(NAME, window_attention)
