"""Policies of several sizes, freshly initialised: speed does not depend on the weights."""

from pathlib import Path
from typing import Any

from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tiny_policy.make import build_config, build_processor

ROPE = {"mrope_section": [8, 12, 12]}
SIZES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tiny": ({}, {}),
    "30M": (
        {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "heads": 8},
        {"hidden_size": 256, "intermediate_size": 512, "depth": 6, "out_hidden_size": 512},
    ),
    "100M": (
        {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 13, "heads": 12},
        {"hidden_size": 256, "intermediate_size": 512, "depth": 6, "out_hidden_size": 768},
    ),
}
"""Of the language model and of the vision tower, beside what the tiny policy has."""


def make_policy(policy: str, folder: Path) -> int:
    """Write it to *folder*. Returns the number of parameters."""
    processor = build_processor()
    config = build_config(processor.tokenizer)
    text, vision = SIZES[policy]
    if text:
        content = config.to_dict()
        heads = {"num_attention_heads": text["heads"], "num_key_value_heads": text["heads"], "layer_types": None}
        content["text_config"] |= {key: size for key, size in text.items() if key != "heads"} | heads
        content["text_config"]["rope_parameters"] |= ROPE
        content["vision_config"] |= vision | {"fullatt_block_indexes": list(range(vision["depth"]))}
        config = Qwen2_5_VLConfig(**{key: content[key] for key in content if key not in ("architectures", "dtype")})
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model.num_parameters()
