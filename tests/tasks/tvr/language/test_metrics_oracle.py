"""The 11 metrics against a second implementation, written from the definitions, on 10,000 random replies.

The oracle knows nothing of `tasks.tvr.language`: its objects are dicts, its places whole numbers of TRANCE's
unit of 0.15, its vocabulary and its directions are restated here. `tvr` gets the same samples as scenes and text.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import pytest

from tasks.tvr.language.answer import parse
from tasks.tvr.language.gold import Gold
from tasks.tvr.language.metrics import judge, summarise
from tasks.tvr.language.scene import SceneObject, Transformation

Triplet = tuple[int, str, str]

NUM_SAMPLES = 10_000
UNIT = 0.15  # scene units
STEP_UNITS = 10  # a step is 1.5
SIGHT_UNITS = 20  # in sight is within +-3
VALUES = {
    "color": ["gray", "red", "blue", "green", "brown", "purple", "cyan", "yellow"],
    "shape": ["cube", "sphere", "cylinder"],
    "size": ["small", "medium", "large"],
    "material": ["rubber", "metal", "glass"],
}
WAYS = {
    "behind": (1, 0),
    "front": (-1, 0),
    "right": (0, 1),
    "left": (0, -1),
    "behind-right": (1, 1),
    "behind-left": (1, -1),
    "front-right": (-1, 1),
    "front-left": (-1, -1),
}
MOVES = {f"{way}-{steps}": (x * steps, y * steps) for way, (x, y) in WAYS.items() for steps in (1, 2)}
BANDS = {"1-3": (1, 3), "4-6": (4, 6), "7-8": (7, 8), "9-10": (9, 10)}
UNKNOWN = [("colour", "red"), ("weight", "heavy"), ("position", "front"), ("position", "up-1"), ("color", "large")]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One sample and one reply to it. *predicted* is None for a malformed reply; *kind* is how the reply was made."""

    setting: str
    view: str
    objects: list[dict]
    truth: list[Triplet]
    kind: str
    predicted: list[Triplet] | None
    reply: str
    num_tokens: int


# The oracle.


def is_possible(triplet: Triplet, num_objects: int) -> bool:
    index, attribute, value = triplet
    if not 0 <= index < num_objects:
        return False
    return value in MOVES if attribute == "position" else value in VALUES.get(attribute, [])


def state_after(objects: list[dict], triplets: list[Triplet]) -> list[dict]:
    state = [dict(item) for item in objects]
    for index, attribute, value in triplets:
        if attribute == "position":
            x, y = state[index]["place"]
            along, across = MOVES[value]
            state[index]["place"] = (x + STEP_UNITS * along, y + STEP_UNITS * across)
        else:
            state[index][attribute] = value
    return state


def seen(item: dict) -> bool:
    return max(abs(item["place"][0]), abs(item["place"][1])) <= SIGHT_UNITS


def num_wrong_cells(reached: list[dict], true: list[dict]) -> int:
    wrong = 0
    for mine, theirs in zip(reached, true, strict=True):
        for attribute in VALUES:
            wrong += mine[attribute] != theirs[attribute]
        wrong += mine["place"] != theirs["place"] and (seen(mine) or seen(theirs))
    return wrong


def expected_numbers(case: Case) -> dict:
    """Every number of one judgement, by the definitions."""
    predicted = case.predicted or []
    possible = [triplet for triplet in predicted if is_possible(triplet, len(case.objects))]
    diff = num_wrong_cells(state_after(case.objects, possible), state_after(case.objects, case.truth))
    diff += len(predicted) - len(possible)
    numbers = {
        "setting": case.setting,
        "view": case.view,
        "num_objects": len([item for item in case.objects if seen(item)]),
        "num_changes": len(case.truth),
        "num_tokens": case.num_tokens,
        "well_formed": case.predicted is not None,
        "acc": diff == 0,
        "diff": diff,
        "ndiff": diff / len(case.truth),
    }
    return {**numbers, **basic_numbers(predicted, case.truth)}


def basic_numbers(predicted: list[Triplet], truth: list[Triplet]) -> dict:
    if len(truth) != 1:
        return {"object_acc": None, "attribute_acc": None, "value_acc": None}
    index, attribute, value = truth[0]
    numbers = {"object_acc": bool(predicted), "attribute_acc": bool(predicted), "value_acc": bool(predicted)}
    for my_index, my_attribute, my_value in predicted:
        if my_index != index:
            numbers["object_acc"] = False
        if my_attribute != attribute:
            numbers["attribute_acc"] = False
        if my_attribute != attribute or my_value != value:
            numbers["value_acc"] = False
    return numbers


def mean(rows: list[dict], name: str) -> float | None:
    return sum(row[name] for row in rows) / len(rows) if rows else None


def expected_summary(rows: list[dict]) -> dict:
    basic, event, view = ([row for row in rows if row["setting"] == name] for name in ("basic", "event", "view"))
    bands = {
        name: [row for row in rows if row["num_objects"] in range(low, high + 1)] for name, (low, high) in BANDS.items()
    }
    changes = {str(row["num_changes"]): [] for row in rows}
    for row in rows:
        changes[str(row["num_changes"])].append(row)
    return {
        "metrics": {
            "Basic/ObjAcc": mean(basic, "object_acc"),
            "Basic/AttrAcc": mean(basic, "attribute_acc"),
            "Basic/ValAcc": mean(basic, "value_acc"),
            "Basic/Acc": mean(basic, "acc"),
            "Event/Diff": mean(event, "diff"),
            "Event/NDiff": mean(event, "ndiff"),
            "Event/Acc": mean(event, "acc"),
            "View/Diff": mean(view, "diff"),
            "View/NDiff": mean(view, "ndiff"),
            "View/Acc": mean(view, "acc"),
            "TAcc": mean(rows, "acc"),
        },
        "by_view": {
            name: mean([row for row in rows if row["view"] == name], "acc") for name in ("center", "left", "right")
        },
        "by_objects": {name: mean(band, "acc") for name, band in bands.items()},
        "by_changes": {name: mean(group, "acc") for name, group in changes.items()},
        "well_formed": mean(rows, "well_formed"),
        "mean_tokens": mean(rows, "num_tokens"),
        "num_samples": len(rows),
    }


# The samples.


def random_objects(rng: random.Random) -> list[dict]:
    """1 to 10 objects; in every other scene, up to all of them may stand out of sight."""
    reach = rng.choice([SIGHT_UNITS, 40])
    return [
        {attribute: rng.choice(values) for attribute, values in VALUES.items()}
        | {"place": (rng.randint(-reach, reach), rng.randint(-reach, reach))}
        for _ in range(rng.randint(1, 10))
    ]


def random_triplet(rng: random.Random, objects: list[dict]) -> Triplet:
    """A possible one; one in five is a move."""
    index = rng.randrange(len(objects))
    if rng.random() < 0.2:
        return index, "position", rng.choice(list(MOVES))
    attribute = rng.choice(list(VALUES))
    return index, attribute, rng.choice(VALUES[attribute])


def random_truth(rng: random.Random, objects: list[dict], count: int) -> list[Triplet]:
    """Changes of different cells as a rule; now and then one cell changes twice, as in TRANCE."""
    twice = rng.random() < 0.1
    truth: list[Triplet] = []
    while len(truth) < count:
        index, attribute, value = random_triplet(rng, objects)
        changes = objects[index].get(attribute) != value
        known = any((index, attribute) == other[:2] for other in truth)
        if changes and (twice or not known):
            truth.append((index, attribute, value))
    return truth


Maker = Callable[[random.Random, list[dict], list[Triplet]], list[Triplet]]
"""Makes predicted triplets from the objects and (a copy of) the truth."""


def permuted(rng, objects, truth):
    return rng.sample(truth, len(truth))


def some_missing(rng, objects, truth):
    return rng.sample(truth, rng.randrange(len(truth)))


def some_extra(rng, objects, truth):
    return truth + [random_triplet(rng, objects) for _ in range(rng.randint(1, 3))]


def wrong_value(rng, objects, truth):
    at = rng.randrange(len(truth))
    index, attribute, _ = truth[at]
    truth[at] = (index, attribute, rng.choice(VALUES.get(attribute) or list(MOVES)))
    return truth


def wrong_attribute(rng, objects, truth):
    at = rng.randrange(len(truth))
    truth[at] = (truth[at][0], *random_triplet(rng, objects)[1:])
    return truth


def wrong_object(rng, objects, truth):
    at = rng.randrange(len(truth))
    truth[at] = (rng.randrange(len(objects)), *truth[at][1:])
    return truth


def repeated(rng, objects, truth):
    return permuted(rng, objects, truth + rng.choices(truth, k=rng.randint(1, 3)))


def overridden(rng, objects, truth):
    """A first thought about a cell, then the true one; or the other way round."""
    index, attribute, _ = truth[0]
    thought = (index, attribute, rng.choice(VALUES.get(attribute) or list(MOVES)))
    return [thought, *truth] if rng.random() < 0.7 else [*truth, thought]


def with_no_ops(rng, objects, truth):
    """Values that the objects have already, and moves there and back."""
    index = rng.randrange(len(objects))
    changed = {change[:2] for change in truth}
    kept = [(index, attribute, objects[index][attribute]) for attribute in VALUES if (index, attribute) not in changed]
    return [(index, "position", "behind-left-2"), *truth, *kept, (index, "position", "front-right-2")]


def impossible_objects(rng, objects, truth):
    other = rng.choice([len(objects), len(objects) + 1, 99, 10**9, 10**30])
    return [*truth, (other, *rng.choice(truth)[1:])]


def impossible_values(rng, objects, truth):
    return permuted(rng, objects, [*truth, (rng.randrange(len(objects)), *rng.choice(UNKNOWN))])


def anything(rng, objects, truth):
    pool = [*truth, *some_extra(rng, objects, []), *impossible_objects(rng, objects, truth)]
    return rng.choices(pool, k=rng.randint(0, 8))


MAKERS: dict[str, Maker] = {
    "exact": lambda rng, objects, truth: truth,
    "empty": lambda rng, objects, truth: [],
    "malformed": lambda rng, objects, truth: truth,
    **{
        maker.__name__: maker
        for maker in (
            permuted,
            some_missing,
            some_extra,
            wrong_value,
            wrong_attribute,
            wrong_object,
            repeated,
            overridden,
            with_no_ops,
            impossible_objects,
            impossible_values,
            anything,
        )
    },
}
DAMAGES: list[Callable[[str], str]] = [
    lambda reply: reply + " done",
    lambda reply: reply.rstrip()[:-1],
    lambda reply: reply.replace("</answer>", ",</answer>"),
    lambda reply: reply.replace("</answer>", "1.color</answer>"),
    lambda reply: reply.replace("<answer>", "<answer>-1.color.red,"),
    lambda reply: reply.replace("</think>", ""),
    lambda reply: reply + reply,
    lambda reply: "",
]


def written(rng: random.Random, triplets: list[Triplet]) -> str:
    """A reply with these triplets, in any case and with white space between the tokens."""
    gap = rng.choice(["", "", " ", "\n ", "\t"])
    text = f"{gap},{gap}".join(
        f"{index}{gap}.{attribute}.{gap}{value}{rng.choice(['', gap])}" for index, attribute, value in triplets
    )
    text = rng.choice([str, str, str.upper, str.title])(text)
    return f"{gap}<think>{gap}Which ones changed?{gap}</think>{gap}<answer>{gap}{text}{gap}</answer>{gap}"


def random_case(rng: random.Random) -> Case:
    setting = rng.choice(["basic", "event", "view"])
    objects = random_objects(rng)
    truth = random_truth(rng, objects, 1 if setting == "basic" else rng.randint(1, 4))
    kind = rng.choice(list(MAKERS))
    predicted = MAKERS[kind](rng, objects, list(truth))
    reply = written(rng, predicted)
    if kind == "malformed":
        reply = rng.choice(DAMAGES)(reply)
    return Case(
        setting=setting,
        view=rng.choice(["center", "left", "right"]) if setting == "view" else "center",
        objects=objects,
        truth=truth,
        kind=kind,
        predicted=None if kind == "malformed" else predicted,
        reply=reply,
        num_tokens=rng.randint(1, 500),
    )


def as_scene(objects: list[dict]) -> tuple[SceneObject, ...]:
    return tuple(
        SceneObject(
            color=item["color"],
            shape=item["shape"],
            size=item["size"],
            material=item["material"],
            position=(round(item["place"][0] * UNIT, 6), round(item["place"][1] * UNIT, 6)),
        )
        for item in objects
    )


def judged(case: Case):
    truth = tuple(Transformation(*change) for change in case.truth)
    gold = Gold(setting=case.setting, scene=as_scene(case.objects), transformations=truth, view=case.view)
    return judge(parse(case.reply), gold, num_tokens=case.num_tokens)


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    rng = random.Random("metrics oracle")
    return [random_case(rng) for _ in range(NUM_SAMPLES)]


@pytest.fixture(scope="module")
def numbers(cases) -> list[dict]:
    return [expected_numbers(case) for case in cases]


@pytest.fixture(scope="module")
def judgements(cases) -> list:
    return [judged(case) for case in cases]


def test_every_number_of_every_reply_is_the_oracles(cases, numbers, judgements):
    for case, expected, judgement in zip(cases, numbers, judgements, strict=True):
        found = {name: getattr(judgement, name) for name in expected}
        assert found == expected, case


def is_close(found, expected) -> bool:
    """Numbers to 1e-12, None and keys exactly."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(is_close(found[name], expected[name]) for name in expected)
    return found is None if expected is None else found is not None and abs(found - expected) <= 1e-12


def assert_same_summary(judgements: list, numbers: list[dict]) -> None:
    report = summarise(judgements)
    for name, expected in expected_summary(numbers).items():
        assert is_close(getattr(report, name), expected), (name, getattr(report, name), expected)


def test_the_summary_of_all_replies_is_the_oracles(numbers, judgements):
    assert_same_summary(judgements, numbers)


def test_the_summary_of_a_few_replies_is_the_oracles(numbers, judgements):
    # From 0 to 40 replies at a time: most of these lack a setting, a view, a band or a number of changes.
    starts = [0, 0, *(sum(range(size)) for size in range(2, 41))]
    for start, end in pairwise(starts):
        assert_same_summary(judgements[start:end], numbers[start:end])


def test_the_summary_of_one_kind_of_reply_is_the_oracles(cases, numbers, judgements):
    for kind in MAKERS:
        places = [at for at, case in enumerate(cases) if case.kind == kind]
        assert_same_summary([judgements[at] for at in places], [numbers[at] for at in places])


def test_the_samples_are_of_every_sort(cases, numbers):
    """Otherwise agreement would say little. By chance each count is far above its bound."""
    kinds = Counter(case.kind for case in cases)
    assert set(kinds) == set(MAKERS)
    assert min(kinds.values()) > 500
    for name in ("acc", "well_formed", "object_acc", "attribute_acc", "value_acc"):
        assert min(Counter(row[name] for row in numbers)[value] for value in (False, True)) > 500, name
    in_bands = Counter(name for row in numbers for name, (a, b) in BANDS.items() if a <= row["num_objects"] <= b)
    assert min(in_bands[name] for name in BANDS) > 300
    assert sum(row["num_objects"] == 0 for row in numbers) > 100
    assert sum(not all(map(seen, case.objects)) for case in cases) > 2000
    assert sum(any(change[1] == "position" for change in case.truth) for case in cases) > 2000
    assert max(row["diff"] for row in numbers) > 4


@pytest.mark.parametrize("place", [(0.0, 0.0), (0.15, -2.85), (0.1234567, -1.0000001), (1 / 3, 2 / 3)])
def test_a_move_there_and_back_is_harmless_wherever_the_object_stands(place):
    scene = (SceneObject(color="red", shape="cube", size="large", material="metal", position=place),)
    gold = Gold(setting="event", scene=scene, transformations=(Transformation(0, "color", "gray"),))
    reply = "<think></think><answer>0.color.gray, 0.position.behind-1, 0.position.front-1</answer>"
    assert judge(parse(reply), gold, num_tokens=None).diff == 0
