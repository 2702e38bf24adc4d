"""The tiny policy is a Qwen2.5-VL like any other, and its tokenizer keeps replies readable."""

import numpy as np
import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from tasks.tvr.language.answer import Answer, format_answer, parse
from tasks.tvr.language.prompt import build_messages
from tasks.tvr.language.scene import ATTRIBUTES, MAX_OBJECTS, SceneObject, Transformation
from tiny_policy.make import make_tiny_policy

SHIPPED = "deploy/models/tiny"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    assert 1_000_000 < make_tiny_policy(folder, seed=0) < 3_000_000
    return folder


def test_it_loads_by_the_auto_classes(folder):
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert AutoProcessor.from_pretrained(folder).tokenizer.eos_token == "<|im_end|>"


def test_every_answer_survives_the_tokenizer(folder):
    tokenizer = AutoProcessor.from_pretrained(folder).tokenizer
    for index in range(MAX_OBJECTS):
        for attribute, values in ATTRIBUTES.items():
            changes = tuple(Transformation(index=index, attribute=attribute, value=value) for value in values)
            ids = tokenizer(format_answer(changes, "0 small red metal cube"))["input_ids"]
            assert tokenizer.unk_token_id not in ids
            answer = parse(tokenizer.decode(ids, skip_special_tokens=True))
            assert isinstance(answer, Answer)
            assert answer.triplets == changes


def test_the_prompt_has_no_unknown_word_and_48_tokens_a_picture(folder):
    processor = AutoProcessor.from_pretrained(folder)
    scene = tuple(
        SceneObject(color=color, shape="cube", size="large", material="glass") for color in ATTRIBUTES["color"]
    )
    text = processor.apply_chat_template(list(build_messages(scene)), tokenize=False, add_generation_prompt=True)
    picture = np.zeros((144, 192, 3), dtype=np.uint8)
    ids = processor(text=[text], images=[picture, picture], return_tensors="np")["input_ids"][0]
    assert processor.tokenizer.unk_token_id not in ids
    assert (ids == processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")).sum() == 2 * 48  # (192/24) * (144/24)
    assert "<|im_start|> user initial :" in processor.tokenizer.decode(ids)


def test_the_shipped_policy_was_made_by_this_code(folder):
    fresh = AutoProcessor.from_pretrained(folder)
    shipped = AutoProcessor.from_pretrained(SHIPPED)
    assert shipped.tokenizer.get_vocab() == fresh.tokenizer.get_vocab()
    assert shipped.chat_template == fresh.chat_template
    assert (
        AutoModelForImageTextToText.from_pretrained(SHIPPED).num_parameters()
        == AutoModelForImageTextToText.from_pretrained(folder).num_parameters()
    )
