"""A reply beside the true changes."""

from records.task import Claim
from tasks.tvr.language.gold import Gold
from tasks.tvr.language.reading import read_reply, true_changes
from tasks.tvr.language.scene import Transformation
from tasks.tvr.task import TASK
from tests.fakes import SCENE

BLUE, SMALL = Transformation(0, "color", "blue"), Transformation(0, "size", "small")
GOLD = Gold(setting="event", scene=SCENE, transformations=(BLUE, SMALL))


def test_each_triplet_is_right_or_wrong_and_what_is_left_out_is_missing():
    read = read_reply("<think> a look </think> <answer> 1.color.red, 0.color.blue </answer>", GOLD)
    assert read.claims == (Claim("1.color.red", False), Claim("0.color.blue", True))
    assert read.missing == ("0.size.small",)
    assert (read.reasoning, read.malformed, read.answer) == ("a look", None, "1.color.red, 0.color.blue")


def test_a_change_that_is_named_twice_is_right_once():
    read = read_reply("<think></think><answer>0.color.blue, 0.color.blue</answer>", GOLD)
    assert [claim.right for claim in read.claims] == [True, False]


def test_a_malformed_reply_has_no_answer_and_misses_everything():
    read = read_reply("0.color.blue", GOLD)
    assert (read.answer, read.claims, read.missing) == (None, (), ("0.color.blue", "0.size.small"))
    assert read.malformed is not None


def test_an_empty_answer_is_an_answer():
    assert read_reply("<think></think><answer></answer>", GOLD).answer == ""


def test_the_truth_is_said_in_words():
    assert true_changes(GOLD) == "0.color.blue, 0.size.small"
    assert true_changes(Gold(setting="event", scene=SCENE, transformations=())) == "no change"


def test_behaviour_is_what_a_reply_goes_through_names_and_claims():
    careful = "<think> 0 turned blue 1 stayed </think> <answer> 0.color.blue </answer>"
    assert TASK.behaviour(careful, GOLD) == {
        "goes through the objects": 1.0,
        "objects named": 2.0,
        "triplets predicted": 1.0,
    }
    guess = TASK.behaviour("<think> 1 </think> <answer> 0.color.blue, 1.size.large </answer>", GOLD)
    assert list(guess.values()) == [0.0, 1.0, 2.0]
    assert list(TASK.behaviour("1 and 0", GOLD).values()) == [0.0, 0.0, 0.0]
