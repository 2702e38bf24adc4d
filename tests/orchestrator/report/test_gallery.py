"""What the gallery is given: each prompt and picture once, tokens a byte each."""

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from orchestrator.report.gallery import UNKNOWN, Shelf, choose_groups, gallery, quantise, shrink
from tests.fakes import make_prompt
from tests.orchestrator.report.runs_by_hand import made_up, sample


def png(color: str, size: tuple[int, int] = (6, 4)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, color).save(out, "PNG")
    return out.getvalue()


def differences(found: dict) -> list[int]:
    return np.frombuffer(base64.b64decode(found["differences"]), np.int8).tolist()


def test_prompts_and_pictures_are_there_once_whoever_sampled_them():
    prompt = replace(make_prompt(), images=(png("red"), png("blue")))
    other = replace(make_prompt("1/basic/center"), images=(png("red"), png("green")))
    run = made_up(
        samples=[sample(1, 0, 0), sample(1, 1, 0), sample(2, 2, 0)], prompts={it.id: it for it in (prompt, other)}
    )
    shelf = Shelf()
    first, second = gallery(run, shelf), gallery(replace(run, name="again"), shelf)
    assert [group["prompt"] for group in first["groups"]] == [0, 1, 0]
    assert [group["prompt"] for group in second["groups"]] == [0, 1, 0]
    assert [it["pictures"] for it in shelf.prompts] == [[0, 1], [0, 2]]
    assert len(shelf.pictures) == 3


def test_a_prompt_of_other_data_is_another_whatever_its_name():
    shelf = Shelf()
    for identity in ("one", "two"):
        gallery(made_up(samples=[sample(1, 0, 0)], data_identity=identity), shelf)
    assert len(shelf.prompts) == 2


def test_a_reply_is_read_beside_the_truth():
    samples = [
        sample(1, 0, 0, reply="<think>so</think><answer>0.color.blue, 1.size.large</answer>"),
        sample(1, 0, 1, reply="nothing", malformed="old words", terms=[{"name": "format", "value": -1.0}]),
    ]
    first, second = gallery(made_up(samples=samples), shelf := Shelf())["samples"]
    assert shelf.prompts[0]["truth"] == "0.color.blue"
    assert (first["n"], first["c"], first["g"]) == ("so", [["0.color.blue", True], ["1.size.large", False]], [])
    assert "x" not in first
    assert (second["x"], second["g"]) == ("nothing", ["0.color.blue"])
    assert second["m"].startswith("the tags are none")
    assert (first["t"], second["t"]) == ([1.0, 5.0], [-1.0, 0.0])
    assert first["s"] == [1.0, 3.0, 4.0]


def test_without_its_prompt_a_reply_stands_as_it_is():
    (found,) = gallery(made_up(samples=[sample(1, 0, 0)], prompts={}), shelf := Shelf())["samples"]
    assert found["x"].startswith("<think>")
    assert (shelf.prompts[0]["truth"], shelf.prompts[0]["pictures"]) == (None, [])


def test_tokens_have_text_version_and_difference():
    samples = [sample(1, 0, 0), sample(2, 1, 0, learner_logprobs=None, versions=[0, 1, 1])]
    found = gallery(made_up(samples=samples), Shelf())
    assert found["lengths"] == [3, 3]
    assert found["vocabulary"] == ["five", "six", "#7"]
    assert np.frombuffer(base64.b64decode(found["tokens"]), np.uint16).tolist() == [0, 1, 2] * 2
    assert [it["v"] for it in found["samples"]] == [[[0, 3]], [[0, 1], [1, 2]]]
    # learner - sampler: 0, +0.25 and -1 nats; arcsinh(250) / arcsinh(10000) = 6.2146 / 9.9035, times 127 is 79.7
    assert differences(found) == [0, 80, -97, *[UNKNOWN] * 3]


def test_differences_keep_their_sign_and_never_mean_unknown():
    assert quantise(np.array([-1e9, -0.002, 0.0, 0.002, 1e9])).tolist() == [-127, -19, 0, 19, 127]


def test_a_page_holds_whole_groups_evenly_over_the_steps():
    tickets = [ticket for ticket in range(100) for _ in range(8)]
    chosen = choose_groups(tickets, most=80)
    assert chosen == list(range(9, 100, 10))
    assert choose_groups(tickets) == list(range(100))


def test_pictures_are_no_larger_than_they_are_shown():
    with Image.open(io.BytesIO(base64.b64decode(shrink(png("red", (960, 600)))))) as image:
        assert (image.size, image.format) == ((480, 300), "WEBP")


@pytest.mark.parametrize("picture", [b"", b"no picture", png("red")[:40]])
def test_a_damaged_picture_is_none(picture):
    assert shrink(picture) == ""
