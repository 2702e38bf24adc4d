"""Each behaviour of the mixture is what its name says."""

import random
from dataclasses import replace

import pytest

from tasks.tvr.language.answer import Answer, Malformed, parse
from tasks.tvr.language.scene import SceneObject, apply
from tiny_policy.behaviours import BEHAVIOURS, CAREFUL_START, draw_behaviour

RED = SceneObject(color="red", shape="cube", size="large", material="metal")
BEFORE = (RED, replace(RED, color="gray"))
AFTER = (RED, replace(RED, color="blue"))


def answers(name: str, count: int = 40) -> list[Answer | Malformed]:
    return [parse(BEHAVIOURS[name](random.Random(seed), BEFORE, AFTER)) for seed in range(count)]


def test_a_careful_reply_is_right():
    (answer,) = set(answers("careful"))
    assert isinstance(answer, Answer)
    assert apply(BEFORE, answer.triplets) == AFTER


@pytest.mark.parametrize(("name", "counts"), [("guess", {1}), ("enumerate", {3, 4, 5, 6}), ("silent", {0})])
def test_the_others_answer_without_a_word_of_reasoning(name, counts):
    made = answers(name)
    assert all(isinstance(answer, Answer) and answer.reasoning == "" for answer in made)
    assert {len(answer.triplets) for answer in made} == counts
    for answer in made:  # each is a change of another cell
        assert all(triplet.is_valid_in(BEFORE) for triplet in answer.triplets)
        assert len({(triplet.index, triplet.attribute) for triplet in answer.triplets}) == len(answer.triplets)
        assert all(apply(BEFORE, [triplet]) != BEFORE for triplet in answer.triplets)


def test_broken_tags_have_no_format():
    assert all(isinstance(answer, Malformed) for answer in answers("broken"))


def test_only_careful_replies_begin_with_an_object():
    for name, behave in BEHAVIOURS.items():
        begins = [behave(random.Random(seed), BEFORE, AFTER).startswith(CAREFUL_START) for seed in range(20)]
        assert set(begins) == {name == "careful"}


def test_behaviours_are_as_common_as_their_shares():
    shares = {"careful": 0.25, "guess": 0.75, "enumerate": 0.0, "silent": 0.0, "broken": 0.0}
    rng = random.Random(0)
    drawn = [draw_behaviour(rng, shares, BEFORE, AFTER).startswith(CAREFUL_START) for _ in range(4000)]
    assert abs(sum(drawn) / 4000 - 0.25) < 0.02  # three standard deviations
