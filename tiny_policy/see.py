"""The vision tower learns to see: every visual token says what it shows.

A linear head on each token names the attributes of the object that owns it, the object's number from left to right and
its place in the centre picture; another the view. The labels come from the renderer's index map, and the heads are
thrown away afterwards. Every object weighs the same, however many tokens show it: else small ones are never learnt.

`B` pictures, `O` objects at most, `N` patches and `T` visual tokens a picture (`N = 4 T`), `W` the tower's width.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tasks.tvr.data.scene_states import StatePicture
from tasks.tvr.language.scene import ATTRIBUTES, VIEWS
from tasks.tvr.pictures.render import project

MAX_OBJECTS = 4
OWNED_SHARE = 0.06
"""Of a token's pixels: with fewer, no object owns it."""
SHIFT_PX = 10
ZOOM = 0.12
ROTATION_DEG = 3.4
WEIGHTS = {"color": 1.0, "size": 1.0, "material": 1.0, "shape": 2.0, "index": 1.5, "place": 3.0, "view": 0.3}
NO_OBJECT_WEIGHT = 0.3


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Pictures of one size with what they show.

    *pixels* `[B, 3, H, W]` uint8, *index_maps* `[B, H, W]` int8 (-1: ground), *cells* `[B, O, 4]` int64, the number of
    each attribute's value in the order of `ATTRIBUTES` (-1: no such object), *places* `[B, O, 2]` float32 in the centre
    picture, in half picture widths, *num_objects* and *views* `[B]` int64.
    """

    pixels: torch.Tensor
    index_maps: torch.Tensor
    cells: torch.Tensor
    places: torch.Tensor
    num_objects: torch.Tensor
    views: torch.Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, indices: torch.Tensor | list[int]) -> "Pictures":
        return Pictures(**{name: value[indices] for name, value in vars(self).items()})


def gather_pictures(states: list[StatePicture], field_of_view: float) -> Pictures:
    """Raises ValueError when a scene has more than `MAX_OBJECTS` objects."""
    cells = torch.full((len(states), MAX_OBJECTS, len(ATTRIBUTES)), -1)
    places = torch.zeros(len(states), MAX_OBJECTS, 2)
    for row, state in enumerate(states):
        if len(state.scene) > MAX_OBJECTS:
            raise ValueError(f"scene {state.scene_id} has {len(state.scene)} objects; {MAX_OBJECTS} can be taught")
        for index, item in enumerate(state.scene):
            values = [known.index(getattr(item, attribute)) for attribute, known in ATTRIBUTES.items()]
            cells[row, index] = torch.tensor(values)
            places[row, index] = torch.tensor(project(item.position, 0.0, "center", field_of_view)[:2])
    return Pictures(
        pixels=torch.from_numpy(np.stack([state.picture for state in states])).permute(0, 3, 1, 2).contiguous(),
        index_maps=torch.from_numpy(np.stack([state.index_map for state in states])),
        cells=cells,
        places=places,
        num_objects=torch.tensor([len(state.scene) for state in states]),
        views=torch.tensor([VIEWS.index(state.view) for state in states]),
    )


def mirror(pictures: Pictures, chosen: torch.Tensor) -> Pictures:
    """Turn the *chosen* (`[B]` bool) left to right, and with them what they show."""
    count = pictures.num_objects[:, None]
    numbers = torch.arange(MAX_OBJECTS).expand(len(pictures), -1)
    turned = torch.where(numbers < count, count - 1 - numbers, numbers)
    order = torch.where(chosen[:, None], turned, numbers)
    maps = pictures.index_maps
    turned_maps = torch.where(maps >= 0, count[..., None] - 1 - maps, maps).to(maps.dtype).flip(-1)
    flip = torch.where(chosen, -1.0, 1.0)[:, None, None] * torch.tensor([1.0, 0.0]) + torch.tensor([0.0, 1.0])
    other_view = torch.tensor([VIEWS.index(view) for view in ("center", "right", "left")])
    return Pictures(
        pixels=torch.where(chosen[:, None, None, None], pictures.pixels.flip(-1), pictures.pixels),
        index_maps=torch.where(chosen[:, None, None], turned_maps, maps),
        cells=pictures.cells.gather(1, order[..., None].expand(-1, -1, len(ATTRIBUTES))),
        places=pictures.places.gather(1, order[..., None].expand(-1, -1, 2)) * flip,
        num_objects=pictures.num_objects,
        views=torch.where(chosen, other_view[pictures.views], pictures.views),
    )


def augment(pictures: Pictures, random: torch.Generator) -> Pictures:
    """Half are mirrored, all are shifted by whole pixels, half zoomed and turned a little. *pixels* become float."""
    batch = len(pictures)
    height, width = pictures.pixels.shape[-2:]
    pictures = mirror(pictures, torch.rand(batch, generator=random) < 0.5)
    draw = torch.rand(4, batch, generator=random) * 2 - 1
    loose = (torch.rand(batch, generator=random) < 0.5).float()
    angle = draw[0] * loose * math.radians(ROTATION_DEG)
    zoom = 1 + draw[1] * loose * ZOOM
    shift = (draw[2:] * SHIFT_PX).round() * 2 / torch.tensor([[width], [height]])
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    rows = [[cos, -sin * height / width, shift[0]], [sin * width / height, cos, shift[1]]]
    grid = F.affine_grid(
        torch.stack([torch.stack(row, 1) for row in rows], 1), [batch, 1, height, width], align_corners=False
    )
    pixels = F.grid_sample(pictures.pixels.float(), grid, "bilinear", "border", align_corners=False)
    maps = F.grid_sample(pictures.index_maps[:, None].float(), grid, "nearest", "border", align_corners=False)[:, 0]
    return Pictures(**{**vars(pictures), "pixels": pixels, "index_maps": maps.to(torch.int8)})


def to_patches(pixels: torch.Tensor, image_processor: Any) -> torch.Tensor:
    """`[B, 3, H, W]` of 0 to 255 to `[B, N, 3 patch patch]`, normalised, in the order of *image_processor*; one frame.

    The processor repeats a picture as two frames; `tower_tokens` adds up the two frames' weights instead.
    """
    patch, merge = image_processor.patch_size, image_processor.merge_size
    mean, std = (
        torch.tensor(value)[:, None, None] for value in (image_processor.image_mean, image_processor.image_std)
    )
    batch, channels, height, width = pixels.shape
    blocks = ((pixels / 255 - mean) / std).view(
        batch, channels, height // patch // merge, merge, patch, width // patch // merge, merge, patch
    )
    return blocks.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(batch, -1, channels * patch * patch)


def tower_tokens(visual: Any, patches: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """What the Qwen2.5-VL tower *visual* makes of *patches* `[B, N, ...]`: `[B, T, W]`.

    The same numbers as its own forward, which walks through the pictures one by one. *grid* is rows and columns of
    patches; each picture must fit in one window.
    """
    merge = visual.spatial_merge_size
    config = visual.config
    weight = visual.patch_embed.proj.weight.sum(2).flatten(1)
    hidden = patches @ weight.T
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    places = torch.stack([rows, columns]).view(2, grid[0] // merge, merge, grid[1] // merge, merge)
    cos, sin = visual.rotary_pos_emb(hidden, places.transpose(2, 3).flatten(1).T)
    for block in visual.blocks:
        attention = block.attn
        qkv = attention.qkv(_norm(block.norm1, hidden)).unflatten(-1, (3, config.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = (_rotate(part, cos, sin) for part in qkv[:2])
        scores = (query * attention.scaling) @ key.transpose(-1, -2)
        seen = scores.softmax(-1) @ qkv[2]
        hidden = hidden + attention.proj(seen.transpose(1, 2).flatten(2))
        hidden = hidden + block.mlp(_norm(block.norm2, hidden))
    merged = _norm(visual.merger.ln_q, hidden).unflatten(1, (-1, merge * merge)).flatten(2)
    return visual.merger.mlp(merged)


def _norm(norm: Any, hidden: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(hidden.float(), norm.weight.shape, norm.weight, norm.variance_epsilon)


def _rotate(part: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = part.float().chunk(2, -1)
    return (part * cos + torch.cat((-second, first), -1) * sin).to(part.dtype)


class Heads(nn.Module):
    """What is asked of every visual token, and of the picture as a whole; used for teaching only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        outputs = {attribute: len(values) for attribute, values in ATTRIBUTES.items()}
        outputs |= {"index": MAX_OBJECTS + 1, "place": 2, "view": len(VIEWS)}
        self.linear = nn.ModuleDict({name: nn.Linear(width, count) for name, count in outputs.items()})

    def forward(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        """*tokens* `[B, T, W]` to the logits of each head, `[B, T, classes]` float32; *view*'s are `[B, classes]`."""
        asked = {name: tokens.mean(1) if name == "view" else tokens for name in self.linear}
        return {name: head(asked[name].float()) for name, head in self.linear.items()}


def count_pixels(pictures: Pictures, token_px: int) -> torch.Tensor:
    """`[B, O, T]`: how many of each token's pixels, a square of *token_px*, show each object."""
    shown = pictures.index_maps[:, None] == torch.arange(MAX_OBJECTS)[:, None, None]
    batch, objects, height, width = shown.shape
    squares = shown.view(batch, objects, height // token_px, token_px, width // token_px, token_px)
    return squares.sum((3, 5)).flatten(2)


def owners(counts: torch.Tensor, token_px: int) -> torch.Tensor:
    """`[B, T]`: 1 + the object that each token shows most, 0 for none. Each visible object owns one token at least."""
    most, owner = counts.max(1)
    owner = torch.where(most >= OWNED_SHARE * token_px**2, owner + 1, 0)
    seen, best = counts.max(2)
    for index in range(MAX_OBJECTS):
        rows = torch.nonzero(seen[:, index])[:, 0]
        owner[rows, best[rows, index]] = index + 1
    return owner


def dense_loss(said: dict[str, torch.Tensor], pictures: Pictures, token_px: int) -> torch.Tensor:
    """The weighted sum of what the heads *said* wrong; every object weighs the same."""
    owner = owners(count_pixels(pictures, token_px), token_px)
    mine = F.one_hot(owner, MAX_OBJECTS + 1)
    share = (1.0 / mine.sum(1).clamp(min=1)).gather(1, owner)  # of a token in its object
    owned = owner > 0
    weight = torch.where(owned, share, 0.0)
    weight = weight / weight.sum()
    of_owner = (owner - 1).clamp(min=0)[..., None]
    cells = pictures.cells.gather(1, of_owner.expand(-1, -1, len(ATTRIBUTES)))
    losses = {
        attribute: (_cross_entropy(said[attribute], cells[..., column].clamp(min=0)) * weight).sum()
        for column, attribute in enumerate(ATTRIBUTES)
    }
    by_token = _cross_entropy(said["index"], owner)
    losses["index"] = (by_token * weight).sum() + NO_OBJECT_WEIGHT * by_token[~owned].mean()
    places = pictures.places.gather(1, of_owner.expand(-1, -1, 2))
    off = F.smooth_l1_loss(said["place"], places, reduction="none", beta=0.1).sum(-1)
    losses["place"] = (off * weight).sum()
    losses["view"] = F.cross_entropy(said["view"], pictures.views)
    return torch.stack([WEIGHTS[name] * loss for name, loss in losses.items()]).sum()


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")


def name_objects(said: dict[str, torch.Tensor], pictures: Pictures, token_px: int) -> dict[str, torch.Tensor]:
    """What the heads make of each object: the sum of its tokens' log-probabilities, by their pixels. `[B, O]` each.

    *index* is the object's number itself. Objects that are not there, or not seen, have -1.
    """
    counts = count_pixels(pictures, token_px).float()
    names = {}
    for name in (*ATTRIBUTES, "index"):
        classes = said[name][..., 1:] if name == "index" else said[name]
        names[name] = (counts @ classes.log_softmax(-1)).argmax(-1).where(counts.sum(2) > 0, -1)
    return names
