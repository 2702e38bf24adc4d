"""A tiny Qwen2.5-VL: the real architecture at about a million parameters, with a word-level tokenizer of its own.

It makes the whole job run on a laptop. Nothing else in the project knows it: the folder that `make_tiny_policy` writes
is loaded by `AutoModelForImageTextToText`, `AutoProcessor` and vLLM like any other. Its chat template leaves out the
system turn, whose instructions a model of this size cannot use.
"""

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from tasks.tvr.language.scene import ATTRIBUTES

PATCH = 12
MERGE = 2
WIDTH = 128
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
PROMPT_WORDS = ("user", "assistant", "initial", "final", "objects", "what", "changed")
PUNCTUATION = (".", ",", ":", ";", "?")

CHAT_TEMPLATE = (
    "{%- for message in messages if message.role != 'system' -%}<|im_start|>{{ message.role + ' ' }}"
    "{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>"
    "{%- else -%}{{ part.text }} {%- endif -%}{%- endfor -%}<|im_end|>{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant{%- endif -%}"
)


def make_tiny_policy(folder: Path, seed: int) -> int:
    """Write a freshly initialised tiny policy to *folder*; returns its number of parameters."""
    torch.manual_seed(seed)
    processor = build_processor()
    model = Qwen2_5_VLForConditionalGeneration(build_config(processor.tokenizer))
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model.num_parameters()


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, lower case; tags are ordinary tokens, so that they stay in the decoded text."""
    values = [value for values in ATTRIBUTES.values() for value in values]
    words = ["<unk>", *SPECIAL, *TAGS, *PROMPT_WORDS, *PUNCTUATION, *map(str, range(10)), *ATTRIBUTES, *values]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(), pre_tokenizers.Digits(individual_digits=True)]
    )
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIAL])
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=list(SPECIAL),
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def build_processor() -> Qwen2_5_VLProcessor:
    """Pictures from 48x48 to 320x240 keep their size, rounded to 24 pixels."""
    pixels = {"shortest_edge": 48 * 48, "longest_edge": 320 * 240}
    vision = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": 2, "size": pixels}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**vision),
        tokenizer=build_tokenizer(),
        video_processor=Qwen2VLVideoProcessor(**vision),
        chat_template=CHAT_TEMPLATE,
    )


def build_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLConfig:
    """128 wide, 4 vision layers (each attends to the whole picture), 3 language layers, heads of 32."""
    token_ids = {word: tokenizer.convert_tokens_to_ids(word) for word in SPECIAL}
    text = {
        "vocab_size": 128,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
        "bos_token_id": None,
        "eos_token_id": token_ids["<|im_end|>"],
        "pad_token_id": token_ids["<|endoftext|>"],
        "tie_word_embeddings": True,
    }
    vision = {
        "depth": 4,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_heads": 4,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        "out_hidden_size": WIDTH,
        "window_size": 480,
        "fullatt_block_indexes": [0, 1, 2, 3],
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token_ids["<|image_pad|>"],
        video_token_id=token_ids["<|video_pad|>"],
        vision_start_token_id=token_ids["<|vision_start|>"],
        vision_end_token_id=token_ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
