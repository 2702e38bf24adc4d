"""The two pictures of a prompt, as the vision tower wants them."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor

from tvr.records import Prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedPair:
    """*pixel_values* `[patches of both pictures, patch size]` float32; *grid_thw* `[2, 3]` int64, in patches."""

    pixel_values: torch.Tensor
    grid_thw: torch.Tensor


class PairEncoder:
    """Turns a prompt's pictures into model inputs, with the processor that stands beside the model."""

    def __init__(self, model: str | Path) -> None:
        self.processor = AutoProcessor.from_pretrained(model)
        self.image_token_id: int = self.processor.image_token_id

    def encode(self, prompt: Prompt, prompt_token_ids: np.ndarray) -> EncodedPair:
        """Raises ValueError if the prompt holds another number of image tokens than its pictures need.

        That means that the engine and the learner saw different pictures, or use different processors.
        """
        pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data in (prompt.pair.initial, prompt.pair.final)]
        inputs = self.processor.image_processor(images=pictures, return_tensors="pt")
        grid_thw = inputs["image_grid_thw"]
        need = int(grid_thw.prod(-1).sum()) // self.processor.image_processor.merge_size**2
        have = int((prompt_token_ids == self.image_token_id).sum())
        if have != need:
            raise ValueError(
                f"prompt {prompt.id} holds {have} image tokens and its pictures need {need}; the engine and the "
                "learner must use the same processor"
            )
        return EncodedPair(pixel_values=inputs["pixel_values"], grid_thw=grid_thw)
