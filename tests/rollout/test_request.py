import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import AutoProcessor

from records.samples import Prompt
from rollout.engine import answer_room, build_request, engine_seed


@pytest.fixture(scope="module")
def processor(policy_folder: Path) -> Any:
    return AutoProcessor.from_pretrained(policy_folder)


def test_a_request_has_one_placeholder_per_picture(processor: Any, make_prompt: Callable[[int], Prompt]) -> None:
    request = build_request(make_prompt(0), processor, "a#1")
    placeholder = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert request["prompt_token_ids"].count(placeholder) == 2
    pictures = request["multi_modal_data"]["image"]
    assert request["multi_modal_uuids"] == {"image": ["a#1/0", "a#1/1"]}
    assert [(picture.size, picture.mode) for picture in pictures] == [((112, 80), "RGB")] * 2


def test_too_many_placeholders_are_refused_by_prompt_id(processor: Any, make_prompt: Callable[[int], Prompt]) -> None:
    prompt = make_prompt(17)
    user = prompt.messages[1]
    extra = {**user, "content": [*user["content"], {"type": "image"}]}
    with pytest.raises(ValueError, match="prompt 17/basic/center has 3 image placeholders for 2 pictures"):
        build_request(replace(prompt, messages=(prompt.messages[0], extra)), processor, "a#1")


def as_bitmap(picture: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(picture)).save(buffer, format="BMP")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda _: b"no picture", "is no picture"),
        (lambda picture: picture[:-1000], "cannot be decoded"),
        (as_bitmap, "is no picture; it must be a PNG or JPEG file"),
    ],
)
def test_a_picture_that_cannot_be_read_is_refused_by_prompt_id(
    spoil: Callable[[bytes], bytes], reason: str, processor: Any, make_prompt: Callable[[int], Prompt]
) -> None:
    prompt = make_prompt(17)
    broken = (prompt.pictures[0], spoil(prompt.pictures[1]))
    with pytest.raises(ValueError, match=f"prompt 17/basic/center: its picture 2 {reason}"):
        build_request(replace(prompt, images=broken), processor, "a#1")


def test_a_prompt_that_leaves_no_room_for_an_answer_is_refused_by_prompt_id() -> None:
    assert answer_room("17/basic/center", 104, 105) == 1
    for num_tokens in (105, 109):
        said = f"prompt 17/basic/center has {num_tokens} tokens with its pictures, and max_model_len 105 .*; raise it"
        with pytest.raises(ValueError, match=said):
            answer_room("17/basic/center", num_tokens, 105)


def test_siblings_of_neighbouring_seeds_do_not_share_an_engine_seed() -> None:
    # The engine gives sibling i the seed of its group plus i.
    used = [engine_seed("17/basic/center", seed) + sibling for seed in range(100) for sibling in range(8)]
    assert len(set(used)) == len(used)
    assert max(used) < 2**63
