"""Whether a reasoning goes through the objects, case by case. The scene has three objects unless a case says more."""

import doctest
import time
from dataclasses import replace

import pytest

import tasks.tvr.language.behaviour
from tasks.tvr.language.answer import Answer, Malformed, parse
from tasks.tvr.language.behaviour import count_triplets, goes_through_objects, is_careful
from tasks.tvr.language.scene import Scene, SceneObject

CUBE = SceneObject(color="red", shape="cube", size="large", material="metal")
THREE: Scene = (CUBE, CUBE, CUBE)


@pytest.mark.parametrize(
    "reasoning",
    [
        "0 large large red blue metal metal cube cube 1 small small 2 medium medium",  # as the tiny policy is taught
        "0 large large red blue 0.color.blue metal metal 1 small small 2 medium large 2.size.large",
        "0 large large red blue 0 . color . blue metal metal 1 small small 2 medium large 2 . size . large",
        "0: same. 1: same. 2: same.",
        "Object 0 is red, object 1 too (as 0 is), and object 2.",  # named again: the first time counts
        "0\n1\n2",
        "(0) [1] #2",
        "0 1.color.blue 1 0.size.large 2",  # triplets between
        "1.color.blue so: 0 1 2",
        "0 of 7 looks at 9, 1 and 2",  # numbers that are no objects
    ],
)
def test_a_reasoning_that_names_every_object_in_order_goes_through_them(reasoning):
    assert goes_through_objects(reasoning, THREE)


@pytest.mark.parametrize(
    "reasoning",
    [
        "",
        "something turned blue",
        "0.color.blue, 1.size.large, 2.shape.cube",  # guesses
        "0 . color . blue , 1 . size . large , 2 . shape . cube",  # the same, a token a word
        "0 .color. BLUE 1. Size .large 2.shape.cube",
        "0 turned blue",  # one of three
        "0 red 1 blue",
        "0 red 2 blue 1 gray",
        "2 1 0",
        "0 1 x2",  # no words of their own
        "0 1 2nd",
        "0 1 12",
        "0 1 0.2",
        "0 1 2.5",
        "0 1 2.color.blue",
        "0 1 02",
    ],
)
def test_any_other_does_not(reasoning):
    assert not goes_through_objects(reasoning, THREE)


def test_an_object_out_of_sight_keeps_its_index_and_need_not_be_named():
    scene = (CUBE, replace(CUBE, position=(9.0, 0.0)), CUBE)
    assert goes_through_objects("0 red 2 blue", scene)
    assert goes_through_objects("0 red 2 blue 1 gone", scene)
    assert not goes_through_objects("0 red 1 gone", scene)


def test_the_examples_of_the_module_are_true():
    assert doctest.testmod(tasks.tvr.language.behaviour) == (0, 7)


@pytest.mark.parametrize("piece", ["1", "1.", "1 . a ", "1 ", "1.aa", "1.a.", " ", "a"])
def test_a_long_reasoning_is_read_in_linear_time(piece):
    began = time.process_time()
    goes_through_objects("1" + piece * 200_000, THREE)
    assert time.process_time() - began < 5  # tens of milliseconds; a quadratic scan takes minutes


def test_only_a_well_formed_reply_is_careful():
    answer = parse("<think> 0 1 2 </think> <answer> 0.color.blue </answer>")
    assert isinstance(answer, Answer)
    assert is_careful(answer, THREE)
    assert not is_careful(replace(answer, reasoning="0 1"), THREE)
    assert not is_careful(Malformed(reason="0 1 2"), THREE)


def test_triplets_are_counted_as_written_and_a_malformed_reply_has_none():
    assert count_triplets(parse("<think></think><answer>0.color.red, 0.color.red, 9.a.b</answer>")) == 3
    assert count_triplets(parse("<think></think><answer></answer>")) == 0
    assert count_triplets(parse("0.color.red")) == 0
