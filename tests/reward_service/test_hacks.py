"""What the reward is worth to a policy that does not look: nothing less than the truth may earn as much.

Exhaustive over scenes of 1 to 5 objects with 1 to 4 true changes. The rules only ask whether triplets are equal, so
renaming objects, values, or the three attributes of three values changes no reward: one scene of each such class is
enough, with every old value the first and every new value the second of its attribute. N is the number of objects, n
that of true changes; all V = 8 + 3 + 3 + 3 = 17 triplets of each object can be said. By the rule, in full:

    total = 1 + 5 x right + 1.5 x attributes + 0.5 x objects - (predicted - right) - max(0, n - predicted)

The true answer earns 1 + 5 n, silence 1 - n, a malformed reply -n.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache
from itertools import chain, combinations, combinations_with_replacement, pairwise, permutations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_service.rules import load_rule, score
from tasks.tvr.language.answer import format_answer
from tasks.tvr.language.gold import Gold
from tasks.tvr.language.scene import ATTRIBUTES, SceneObject, Transformation
from tasks.tvr.rules import StarOptions
from tasks.tvr.task import TASK

Triplets = tuple[Transformation, ...]
Cell = tuple[int, str]

NAMES = tuple(ATTRIBUTES)
NUM_VALUES = sum(map(len, ATTRIBUTES.values()))
SUBSETS = [frozenset(names) for size in range(5) for names in combinations(NAMES, size)]
FIRST = SceneObject(**{name: values[0] for name, values in ATTRIBUTES.items()})


# Scenes, truths and replies.


@cache
def true_cells() -> tuple[tuple[int, tuple[Cell, ...]], ...]:
    """(N, changed cells) of every class: up to the order of objects, and of shape, size and material."""
    found = {}
    for num_objects in range(1, 6):
        for changed in combinations_with_replacement(SUBSETS, num_objects):
            if 1 <= sum(map(len, changed)) <= 4:
                found.setdefault((num_objects, _class_of(changed)), changed)
    return tuple(
        (num_objects, tuple((index, name) for index, names in enumerate(changed) for name in NAMES if name in names))
        for (num_objects, _), changed in found.items()
    )


def _class_of(changed: tuple[frozenset[str], ...]) -> tuple:
    """Equal for scenes that differ in names only."""
    renamings = [dict(zip(NAMES, ("color", *order), strict=True)) for order in permutations(NAMES[1:])]
    return min(tuple(sorted(tuple(sorted(map(names.get, item))) for item in changed)) for names in renamings)


def make_gold(num_objects: int, cells: tuple[Cell, ...]) -> Gold:
    changes = tuple(Transformation(index, name, ATTRIBUTES[name][1]) for index, name in cells)
    return Gold(setting="event", scene=(FIRST,) * num_objects, transformations=changes)


GOLDS = [make_gold(num_objects, cells) for num_objects, cells in true_cells()]


def size(gold: Gold) -> tuple[int, int]:
    """(N, n)"""
    return len(gold.scene), len(gold.transformations)


def rule(rule="star", **switches):
    return load_rule(TASK, rule, StarOptions(**switches))


STAR = rule()


def reward(triplets: Triplets, gold: Gold, by=STAR) -> float:
    return sum(by(format_answer(triplets, "so"), gold).values())


def is_the_truth(triplets: Triplets, gold: Gold) -> bool:
    return Counter(triplets) == Counter(gold.transformations)


@cache
def everything(num_objects: int, names: tuple[str, ...] = NAMES) -> Triplets:
    return tuple(
        Transformation(index, name, value)
        for index in range(num_objects)
        for name in names
        for value in ATTRIBUTES[name]
    )


def subsets(items) -> Iterator[tuple]:
    items = tuple(items)
    return chain.from_iterable(combinations(items, count) for count in range(1, len(items) + 1))


def some_objects(gold: Gold) -> list[tuple[int, ...]]:
    """Every choice of objects, one of those that differ only in which of two objects with equal changes they hold."""
    changed = [tuple(name for at, name, _ in gold.transformations if at == index) for index in range(len(gold.scene))]
    chosen = {tuple(sorted(changed[index] for index in indices)): indices for indices in subsets(range(len(changed)))}
    return list(chosen.values())


def all_values_of_some(gold: Gold) -> Iterator[Triplets]:
    """Every value of some attributes of some objects, for all choices of these; one attribute of each object, too."""
    for indices, names in product(some_objects(gold), subsets(NAMES)):
        yield tuple(triplet for triplet in everything(len(gold.scene), names) if triplet.index in indices)


def the_first_few(gold: Gold) -> Iterator[Triplets]:
    """Every number of guesses: object by object from the last, which changed most, and value by value."""
    by_object = everything(len(gold.scene))[::-1]
    by_value = sorted(by_object, key=lambda triplet: ATTRIBUTES[triplet.attribute].index(triplet.value))
    for guesses in (by_object, tuple(by_value)):
        yield from (guesses[:count] for count in range(1, len(guesses) + 1))


def indices_only(gold: Gold) -> Iterator[Triplets]:
    """For some objects one triplet about a cell that did not change, in each choice of value, up to three times."""
    changed = {triplet[:2] for triplet in gold.transformations}
    unchanged = {
        index: [name for name in NAMES if (index, name) not in changed] or ["weight"]
        for index in range(len(gold.scene))
    }
    for indices, at, value_at, times in product(some_objects(gold), (0, -1), range(3), (1, 2, 3)):
        names = [(index, unchanged[index][at]) for index in indices]
        guesses = (Transformation(index, name, ATTRIBUTES.get(name, NAMES)[value_at]) for index, name in names)
        yield tuple(guesses) * times


def every_wrong_attribute(gold: Gold) -> Iterator[Triplets]:
    """For some objects, one triplet about each cell that did not change."""
    changed = {triplet[:2] for triplet in gold.transformations}
    unchanged = [triplet for triplet in everything(len(gold.scene)) if triplet[:2] not in changed]
    for indices in some_objects(gold):
        last = {triplet[:2]: triplet for triplet in unchanged if triplet.index in indices}
        yield tuple(last.values())


HACKS: list[Callable[[Gold], Iterator[Triplets]]] = [
    all_values_of_some,
    the_first_few,
    indices_only,
    every_wrong_attribute,
]


# The default rule.


def test_the_classes_cover_every_number_of_objects_and_changes():
    assert {size(gold) for gold in GOLDS} == set(product(range(1, 6), range(1, 5)))
    # N = 1: the changed attributes are color or not, with 0 to 3 of the other three: 2 x 4 - 1 (nothing changed).
    assert sum(size(gold)[0] == 1 for gold in GOLDS) == 7


def renamed(triplet: Transformation, num_objects: int) -> Transformation:
    """Objects backwards, shape, size and material in a circle, and each value one further."""
    name = dict(zip(NAMES, ("color", "size", "material", "shape"), strict=True))[triplet.attribute]
    values, old = ATTRIBUTES[name], ATTRIBUTES[triplet.attribute].index(triplet.value)
    return Transformation(num_objects - 1 - triplet.index, name, values[(old + 1) % len(values)])


def test_no_reward_depends_on_the_names():
    second = SceneObject(**{name: values[1] for name, values in ATTRIBUTES.items()})
    for gold in GOLDS[::8]:
        count = len(gold.scene)
        changes = tuple(renamed(triplet, count) for triplet in gold.transformations)
        other = Gold(setting="event", scene=(second,) * count, transformations=changes)
        for reply in the_first_few(gold):
            assert reward(tuple(renamed(triplet, count) for triplet in reply), other) == reward(reply, gold)


def test_the_true_answer_earns_five_for_each_change_and_one():
    for gold in GOLDS:
        assert reward(gold.transformations, gold) == 1 + 5 * size(gold)[1]


@pytest.mark.parametrize("hack", HACKS)
def test_no_hack_earns_as_much_as_the_true_answer(hack):
    for gold in GOLDS:
        true = reward(gold.transformations, gold)
        for reply in hack(gold):
            assert reward(reply, gold) < true or is_the_truth(reply, gold), (gold.transformations, reply)


def test_saying_nothing_earns_less_than_the_true_answer():
    for gold in GOLDS:
        num_changes = size(gold)[1]
        assert reward((), gold) == 1 - num_changes < reward(gold.transformations, gold)


@pytest.mark.parametrize(
    "reply", ["", "no change", "<think></think>", "<answer></answer>", "<think></think><answer>?</answer>"]
)
def test_a_malformed_reply_earns_less_than_silence(reply):
    for gold in GOLDS:
        assert score(TASK, STAR, reply, gold).total == -size(gold)[1] == reward((), gold) - 1


@pytest.mark.parametrize(("num_objects", "longest"), [(1, 3), (2, 2)])
def test_no_short_reply_at_all_earns_as_much_as_the_true_answer(num_objects, longest):
    for gold in GOLDS:
        if size(gold)[0] == num_objects:
            true = reward(gold.transformations, gold)
            for length in range(longest + 1):
                for reply in product(everything(num_objects), repeat=length):
                    assert reward(reply, gold) < true or is_the_truth(reply, gold), reply


def test_only_indices_never_earn_more_than_the_format():
    # k triplets, m <= k of them hit an object: 1 + 0.5 m - k - (inaction) <= 1 - 0.5 k.
    for gold in GOLDS:
        for reply in chain(indices_only(gold), every_wrong_attribute(gold)):
            assert reward(reply, gold) <= 1 - 0.5 * len(reply), reply


def test_one_triplet_earns_the_more_the_more_of_it_is_right():
    # Above the 1 for the format and the -(n - 1) for the missing ones: nothing -1, object 0.5 - 1, attribute 1.5 - 1.
    for gold in GOLDS:
        for triplet in everything(len(gold.scene)):
            earned = {"value": 5, "attribute": 0.5, "object": -0.5, "nothing": -1}[tier(triplet, gold)]
            assert reward((triplet,), gold) == 1 - (size(gold)[1] - 1) + earned


def tier(triplet: Transformation, gold: Gold) -> str:
    """What is right in a triplet that is the only one."""
    for name, length in (("value", 3), ("attribute", 2), ("object", 1)):
        if triplet[:length] in {true[:length] for true in gold.transformations}:
            return name
    return "nothing"


def test_a_blind_guess_beside_the_right_answer_costs_one_whatever_it_is():
    for gold in GOLDS:
        true = reward(gold.transformations, gold)
        for guess in everything(len(gold.scene)):
            assert reward((*gold.transformations, guess), gold) == true - 1


def test_a_blind_guess_in_place_of_a_missing_change_costs_nothing():
    # -1 for the wrong one, but one less is missing.
    for gold in GOLDS:
        known = gold.transformations[:-1]
        for guess in everything(len(gold.scene)):
            assert reward((*known, guess), gold) >= reward(known, gold)


def test_enumerating_everything_earns_less_than_silence_unless_one_object_changed_three_times():
    for gold in GOLDS:
        num_objects, n = size(gold)
        total = reward(everything(num_objects), gold)
        assert total == 1 + 5 * n - (NUM_VALUES * num_objects - n)
        # 1 + 6 n - 17 N < 1 - n if 7 n < 17 N: not for N = 1 and n = 3 or 4.
        assert (total < reward((), gold)) == ((num_objects, n) not in {(1, 3), (1, 4)})


def test_naming_one_index_per_object_beats_silence_only_where_few_objects_are_unchanged():
    # m objects changed: 0.5 each; N guesses are wrong, but as many changes fewer are missing: 0.5 m - max(0, N - n).
    for gold in GOLDS:
        num_objects, n = size(gold)
        expected = 0.5 * num_changed_objects(gold) - max(0, num_objects - n)
        assert reward(one_index_per_object(gold), gold) - reward((), gold) == expected


def one_index_per_object(gold: Gold) -> Triplets:
    return tuple(Transformation(index, "weight", "heavy") for index in range(len(gold.scene)))


def num_changed_objects(gold: Gold) -> int:
    return len({triplet.index for triplet in gold.transformations})


# Expectations: over guesses and truths that are all equally likely, exact.


def mean(values) -> Fraction:
    values = [Fraction(value) for value in values]
    return sum(values) / len(values)


def gain_of_a_blind_guess(gold: Gold, by) -> Fraction:
    """Over silence, on average over all triplets that can be said."""
    silence = reward((), gold, by)
    return mean(reward((guess,), gold, by) - silence for guess in everything(len(gold.scene)))


def blind_tiers(gold: Gold) -> Fraction:
    """The mean tier reward of a blind guess, counted: *n* of the 17 N are right, and so on."""
    tiers = Counter(tier(guess, gold) for guess in everything(len(gold.scene)))
    return Fraction(10 * tiers["value"] + 3 * tiers["attribute"] + tiers["object"], 2 * tiers.total())


def share_right(gold: Gold) -> Fraction:
    num_objects, n = size(gold)
    return Fraction(n, NUM_VALUES * num_objects)


def test_a_blind_guess_is_worth_more_than_silence():
    # One less is missing (+1), and it is wrong (-1) unless right.
    for gold in GOLDS:
        assert gain_of_a_blind_guess(gold, STAR) == blind_tiers(gold) + share_right(gold) > 0


@pytest.mark.parametrize("count", range(2, 8))
def test_listing_the_values_that_a_changed_cell_may_have_pays_up_to_four_of_them(count):
    # Of c values, j are listed: 1 + 5 j/c + 1.5 (1 - j/c) - (j - j/c); each further one adds 4.5/c - 1.
    truths = tuple(Transformation(0, "color", value) for value in ATTRIBUTES["color"][1 : 1 + count])
    gains = gains_of_listing_more(truths, num_objects=1)
    assert set(gains) == {Fraction(9, 2 * count) - 1}
    assert (gains[0] > 0) == (count <= 4)


@pytest.mark.parametrize("count", range(2, 6))
def test_listing_the_objects_that_may_have_made_a_known_change_pays_in_scenes_of_up_to_five(count):
    # Of c objects, j are listed: 1 + 5 j/c - (j - j/c); each further one adds 6/c - 1.
    truths = tuple(Transformation(index, "size", "large") for index in range(count))
    gains = gains_of_listing_more(truths, num_objects=count)
    assert set(gains) == {Fraction(6, count) - 1}
    assert gains[0] > 0


def gains_of_listing_more(truths: Triplets, num_objects: int) -> list[Fraction]:
    """What the second, third, ... candidate adds to the mean reward when any one of *truths* is the only change."""
    golds = [Gold(setting="basic", scene=(FIRST,) * num_objects, transformations=(true,)) for true in truths]
    means = [mean(reward(truths[:count], gold) for gold in golds) for count in range(1, len(truths) + 1)]
    return [after - before for before, after in pairwise(means)]


# With a switch off, the hack that it stands against pays.


NO_WRONG_PENALTY = rule(rule="no_wrong_penalty")
NO_INACTION_PENALTY = rule(rule="no_inaction_penalty")
NO_OBJECT_TIER = rule(rule="no_object_tier")
NO_ATTRIBUTE_TIER = rule(rule="no_attribute_tier")
PARTIAL_IS_RIGHT = rule(partial_is_wrong=False)
DUPLICATES_ARE_FREE = rule(duplicate_is_wrong=False)
VARIANTS = [
    NO_WRONG_PENALTY,
    NO_INACTION_PENALTY,
    NO_OBJECT_TIER,
    NO_ATTRIBUTE_TIER,
    PARTIAL_IS_RIGHT,
    DUPLICATES_ARE_FREE,
]


def test_without_the_wrong_penalty_enumerating_everything_earns_what_the_truth_does():
    for gold in GOLDS:
        assert reward(everything(len(gold.scene)), gold, NO_WRONG_PENALTY) == 1 + 5 * size(gold)[1]
        assert reward(gold.transformations, gold, NO_WRONG_PENALTY) == 1 + 5 * size(gold)[1]


def test_without_the_wrong_penalty_enumerating_everything_beats_an_honest_answer_with_one_wrong_value():
    for gold in GOLDS:
        all_triplets = everything(len(gold.scene))
        last = gold.transformations[-1]
        honest = (*gold.transformations[:-1], last._replace(value=ATTRIBUTES[last.attribute][2]))
        assert reward(all_triplets, gold, NO_WRONG_PENALTY) > reward(honest, gold, NO_WRONG_PENALTY)
        assert reward(all_triplets, gold) < reward(honest, gold)  # with it, the other way round


def test_without_the_wrong_penalty_no_guess_ever_costs_anything():
    for gold in GOLDS:
        for known in (gold.transformations, gold.transformations[:-1], ()):
            before = reward(known, gold, NO_WRONG_PENALTY)
            for guess in everything(len(gold.scene)):
                assert reward((*known, guess), gold, NO_WRONG_PENALTY) >= before


def test_without_the_inaction_penalty_silence_beats_every_guess_without_the_right_attribute():
    for gold in GOLDS:
        silence = reward((), gold, NO_INACTION_PENALTY)
        assert silence == 1
        for guess in everything(len(gold.scene)):
            beaten = reward((guess,), gold, NO_INACTION_PENALTY) < silence
            assert beaten == (tier(guess, gold) in ("object", "nothing"))


def test_with_the_inaction_penalty_silence_beats_no_guess_and_loses_to_every_changed_object():
    for gold in GOLDS:
        for guess in everything(len(gold.scene)):
            if tier(guess, gold) == "nothing":
                assert reward((guess,), gold) == reward((), gold)
            else:
                assert reward((guess,), gold) > reward((), gold)


def test_without_the_inaction_penalty_a_blind_guess_is_worth_one_less_so_in_most_scenes_less_than_silence():
    for gold in GOLDS:
        gain = gain_of_a_blind_guess(gold, NO_INACTION_PENALTY)
        assert gain == gain_of_a_blind_guess(gold, STAR) - 1
        num_objects, n = size(gold)
        if num_objects == 5 or (n == 1 and num_objects > 1):
            assert gain < 0


def test_where_partial_matches_are_not_wrong_naming_one_index_per_object_earns_one_more_for_each_that_changed():
    for gold in GOLDS:
        num_objects, n = size(gold)
        gain = reward(one_index_per_object(gold), gold, PARTIAL_IS_RIGHT) - reward((), gold, PARTIAL_IS_RIGHT)
        assert gain == 1.5 * num_changed_objects(gold) - max(0, num_objects - n)


def test_where_partial_matches_are_not_wrong_guessing_the_changed_indices_beats_the_format_alone():
    for gold in GOLDS:
        guesses = tuple(Transformation(index, "weight", "heavy") for index, _, _ in gold.transformations)
        once = tuple(dict.fromkeys(guesses))
        if len(once) == len(guesses):  # every change in another object
            assert reward(once, gold, PARTIAL_IS_RIGHT) == 1 + 0.5 * len(once)
            assert reward(once, gold) == 1 - 0.5 * len(once)


def test_one_more_index_earns_a_half_where_partial_matches_are_not_wrong_and_else_costs_a_half():
    for gold in GOLDS:
        noise = tuple(Transformation(9, "color", value) for value in ATTRIBUTES["color"][: size(gold)[1]])
        guess = Transformation(gold.transformations[0].index, "weight", "heavy")
        for by, gain in ((PARTIAL_IS_RIGHT, 0.5), (STAR, -0.5)):
            assert reward((*noise, guess), gold, by) - reward(noise, gold, by) == gain


def test_without_the_object_tier_a_changed_object_is_worth_no_more_than_another():
    earned = {"value": 5, "attribute": 0.5, "object": -1, "nothing": -1}
    for gold in GOLDS:
        for guess in everything(len(gold.scene)):
            assert reward((guess,), gold, NO_OBJECT_TIER) == 1 - (size(gold)[1] - 1) + earned[tier(guess, gold)]


def test_without_the_attribute_tier_the_right_attribute_is_worth_no_more_than_another():
    earned = {"value": 5, "attribute": -0.5, "object": -0.5, "nothing": -1}
    for gold in GOLDS:
        for guess in everything(len(gold.scene)):
            assert reward((guess,), gold, NO_ATTRIBUTE_TIER) == 1 - (size(gold)[1] - 1) + earned[tier(guess, gold)]


def test_a_repeated_triplet_earns_nothing_whatever_else_changed_about_its_object():
    # It is wrong (-1), and one fewer is missing (+1) if more than one changed.
    for gold in GOLDS:
        for guess in everything(len(gold.scene)):
            gain = reward((guess, guess), gold) - reward((guess,), gold)
            assert gain == (-1 if size(gold)[1] == 1 else 0)


@pytest.mark.parametrize("times", [1, 2, 5])
def test_saying_the_true_answer_again_costs_one_for_each_triplet_unless_duplicates_are_free(times):
    for gold in GOLDS:
        reply, n = gold.transformations * times, size(gold)[1]
        assert reward(reply, gold) == 1 + 5 * n - (times - 1) * n
        assert reward(reply, gold, DUPLICATES_ARE_FREE) == 1 + 5 * n


@pytest.mark.parametrize("hack", HACKS)
def test_no_switch_lets_a_hack_earn_more_than_the_true_answer(hack):
    for gold in GOLDS[::20]:
        for by, reply in product(VARIANTS, hack(gold)):
            assert reward(reply, gold, by) <= 1 + 5 * size(gold)[1]


@pytest.mark.parametrize("hack", HACKS)
def test_under_the_naive_rule_every_hack_earns_the_format_alone(hack):
    naive = rule(rule="naive")
    for gold in GOLDS[::8]:
        for reply in hack(gold):
            assert reward(reply, gold, naive) == (6 if is_the_truth(reply, gold) else 1)


# Any scene, any reply.


cells = st.sampled_from([(name, value) for name, values in ATTRIBUTES.items() for value in values])
triplets = st.builds(lambda index, cell: Transformation(index, *cell), st.integers(0, 6), cells)
odd_triplets = st.builds(Transformation, st.integers(0, 6), st.sampled_from([*NAMES, "weight"]), st.just("cube"))
objects = st.builds(SceneObject, **{name: st.sampled_from(values) for name, values in ATTRIBUTES.items()})


@st.composite
def golds_and_replies(draw) -> tuple[Gold, Triplets]:
    """The reply takes some of the true changes and some others, in any order, possibly more than once."""
    scene = tuple(draw(st.lists(objects, min_size=1, max_size=5)))
    places = st.tuples(st.integers(0, len(scene) - 1), st.sampled_from(NAMES))
    changes = []
    for index, name in draw(st.lists(places, max_size=4, unique=True)):
        others = [value for value in ATTRIBUTES[name] if value != getattr(scene[index], name)]
        changes.append(Transformation(index, name, draw(st.sampled_from(others))))
    kept = draw(st.permutations(changes))[: draw(st.integers(0, 4))]
    added = draw(
        st.lists(triplets | odd_triplets | st.sampled_from(changes or [Transformation(0, "a", "b")]), max_size=3)
    )
    reply = draw(st.permutations([*kept, *added]))
    return Gold(setting="event", scene=scene, transformations=tuple(changes)), tuple(reply)


@settings(max_examples=300, deadline=None)
@given(golds_and_replies())
def test_any_reply_earns_less_than_the_true_answer_unless_it_is_that_in_another_order(gold_and_reply):
    gold, reply = gold_and_reply
    true = reward(gold.transformations, gold)
    assert true == 1 + 5 * len(gold.transformations)
    earned = reward(reply, gold)
    assert earned == true if is_the_truth(reply, gold) else earned < true
