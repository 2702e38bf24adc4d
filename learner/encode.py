"""The pictures of a prompt, as the vision tower wants them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoProcessor

from records.pictures import all_sizes, check_placeholders, decode_all
from records.samples import Prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedPictures:
    """Of one prompt: *pixel_values* `[patches of all pictures, patch size]` float32; *grid_thw* `[pictures, 3]` int64,
    in patches.
    """

    pixel_values: torch.Tensor
    grid_thw: torch.Tensor


class PictureEncoder:
    """Turns a prompt's pictures into model inputs, with the processor that stands beside the model."""

    def __init__(self, model: str | Path) -> None:
        self.processor = AutoProcessor.from_pretrained(model)
        self.image_token_id: int = self.processor.image_token_id

    def encode(self, prompt: Prompt, prompt_token_ids: np.ndarray) -> EncodedPictures:
        """Raises ValueError if a picture cannot be read, or if the prompt holds another number of image tokens than
        its pictures need: then engine and learner saw different pictures, or use different processors.
        """
        images, pictures = self.processor.image_processor, decode_all(prompt)
        if pictures:
            inputs = images(images=pictures, return_tensors="pt")
            pixel_values, grid_thw = inputs["pixel_values"], inputs["image_grid_thw"]
        else:
            pixel_values = torch.zeros(0, 3 * images.temporal_patch_size * images.patch_size**2)
            grid_thw = torch.zeros(0, 3, dtype=torch.int64)
        need = int(grid_thw.prod(-1).sum()) // images.merge_size**2
        have = int((prompt_token_ids == self.image_token_id).sum())
        if have != need:
            raise ValueError(
                f"prompt {prompt.id} holds {have} image tokens and its pictures need {need}; the engine and the "
                "learner must use the same processor"
            )
        return EncodedPictures(pixel_values=pixel_values, grid_thw=grid_thw)

    def tokenise(self, prompt: Prompt) -> np.ndarray:
        """`[Lp]` int32, as the engine makes them: the chat template, with every image token repeated as its picture
        needs. Raises ValueError if a picture cannot be read, or has no placeholder.
        """
        text = self.processor.apply_chat_template(list(prompt.messages), tokenize=False, add_generation_prompt=True)
        images = self.processor.image_processor
        parts = text.split(self.processor.image_token)
        check_placeholders(prompt, len(parts) - 1)
        for number, (width, height) in enumerate(all_sizes(prompt), 1):
            patches = images.get_number_of_image_patches(height, width, {})
            parts[number] = self.processor.image_token * (patches // images.merge_size**2) + parts[number]
        return np.array(self.processor.tokenizer("".join(parts), add_special_tokens=False)["input_ids"], np.int32)
