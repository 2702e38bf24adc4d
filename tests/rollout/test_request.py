from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoProcessor

from rollout.engine import build_request, engine_seed
from tvr.records import ImagePair, Prompt


@pytest.fixture(scope="module")
def processor(policy_folder: Path) -> Any:
    return AutoProcessor.from_pretrained(policy_folder)


def test_a_request_has_one_placeholder_per_picture(processor: Any, make_prompt: Callable[[int], Prompt]) -> None:
    request = build_request(make_prompt(0), processor)
    placeholder = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert request["prompt_token_ids"].count(placeholder) == 2
    pictures = request["multi_modal_data"]["image"]
    assert [(picture.size, picture.mode) for picture in pictures] == [((112, 80), "RGB")] * 2


def test_too_many_placeholders_are_refused_by_prompt_id(processor: Any, make_prompt: Callable[[int], Prompt]) -> None:
    prompt = make_prompt(17)
    user = prompt.messages[1]
    extra = {**user, "content": [*user["content"], {"type": "image"}]}
    with pytest.raises(ValueError, match="prompt 17/basic/center has 3 image placeholders for 2 pictures"):
        build_request(replace(prompt, messages=(prompt.messages[0], extra)), processor)


def test_a_picture_that_is_none_is_refused_by_prompt_id(processor: Any, make_prompt: Callable[[int], Prompt]) -> None:
    prompt = make_prompt(17)
    broken = ImagePair(initial=prompt.pair.initial, final=b"no picture", view="center")
    with pytest.raises(ValueError, match="prompt 17/basic/center: its final picture"):
        build_request(replace(prompt, pair=broken), processor)


def test_siblings_of_neighbouring_seeds_do_not_share_an_engine_seed() -> None:
    # The engine gives sibling i the seed of its group plus i.
    used = [engine_seed("17/basic/center", seed) + sibling for seed in range(100) for sibling in range(8)]
    assert len(set(used)) == len(used)
    assert max(used) < 2**63
