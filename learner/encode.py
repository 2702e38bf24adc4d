"""The two pictures of a prompt, as the vision tower wants them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoProcessor

from tvr.pictures.encoded import decode_pair
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
        """Raises ValueError if a picture cannot be read, or if the prompt holds another number of image tokens than
        its pictures need: then engine and learner saw different pictures, or use different processors.
        """
        inputs = self.processor.image_processor(images=decode_pair(prompt), return_tensors="pt")
        grid_thw = inputs["image_grid_thw"]
        need = int(grid_thw.prod(-1).sum()) // self.processor.image_processor.merge_size**2
        have = int((prompt_token_ids == self.image_token_id).sum())
        if have != need:
            raise ValueError(
                f"prompt {prompt.id} holds {have} image tokens and its pictures need {need}; the engine and the "
                "learner must use the same processor"
            )
        return EncodedPair(pixel_values=inputs["pixel_values"], grid_thw=grid_thw)

    def tokenise(self, prompt: Prompt) -> np.ndarray:
        """`[Lp]` int32, as the engine makes them: the chat template, with every image token repeated as its picture
        needs.
        """
        text = self.processor.apply_chat_template(list(prompt.messages), tokenize=False, add_generation_prompt=True)
        images = self.processor.image_processor
        parts = text.split(self.processor.image_token)
        for number, picture in enumerate(decode_pair(prompt), 1):
            patches = images.get_number_of_image_patches(picture.height, picture.width, {})
            parts[number] = self.processor.image_token * (patches // images.merge_size**2) + parts[number]
        return np.array(self.processor.tokenizer("".join(parts), add_special_tokens=False)["input_ids"], np.int32)
