"""Scenes, sampling and rendering."""

import math
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from tasks.tvr.data.scene_states import sample_states
from tasks.tvr.language.scene import (
    ATTRIBUTES,
    RADIUS,
    SceneObject,
    Transformation,
    apply,
    count_differences,
    difference,
    net_changes,
)
from tasks.tvr.pictures.render import FIELD_OF_VIEW_DEG, index_map, project, render, render_with_index
from tasks.tvr.pictures.sample_scenes import GAP, MIN_PIXELS, all_visible, sample_pair

CUBE = SceneObject(color="red", shape="cube", size="large", material="metal", position=(1.0, 0.0))
BALL = SceneObject(color="blue", shape="sphere", size="small", material="glass", position=(-1.0, 0.0))


def change(text: str) -> Transformation:
    index, attribute, value = text.split(".")
    return Transformation(index=int(index), attribute=attribute, value=value)


def test_a_later_change_of_the_same_cell_overrides():
    after = apply((CUBE, BALL), [change("0.color.cyan"), change("0.color.gray")])
    assert after == (replace(CUBE, color="gray"), BALL)


@pytest.mark.parametrize("text", ["2.color.cyan", "0.color.large", "0.position.front", "0.color.pink"])
def test_an_impossible_change_is_refused(text):
    assert not change(text).is_valid_in((CUBE, BALL))
    with pytest.raises(ValueError, match="not possible"):
        apply((CUBE, BALL), [change(text)])


def test_the_difference_leads_from_one_scene_to_the_other():
    before, after = (CUBE, BALL), (replace(CUBE, size="small"), replace(BALL, color="red", material="rubber"))
    changes = difference(before, after)
    assert list(map(str, changes)) == ["0.size.small", "1.color.red", "1.material.rubber"]
    assert apply(before, changes) == after


def test_moves_add_up_and_all_places_out_of_sight_are_one():
    before = (replace(CUBE, position=(2.0, 0.0)), BALL)
    assert apply(before, [change("0.position.front-2"), change("0.position.left-1")])[0].position == (-1.0, -1.5)
    gone, gone_too = (apply(before, [change(f"0.position.behind-{steps}")]) for steps in (1, 2))
    assert gone != gone_too
    assert count_differences(gone, gone_too) == 0
    assert count_differences(before, gone) == 1
    assert difference(before, gone) == ()


def test_the_net_changes_leave_out_what_cannot_be_seen():
    steps = [
        change(text) for text in ("0.color.blue", "1.size.large", "0.color.gray", "1.size.small", "1.position.left-1")
    ]
    assert list(map(str, net_changes((CUBE, BALL), steps))) == ["0.color.gray", "1.position.left-1"]


def test_an_unknown_value_of_an_object_is_refused():
    with pytest.raises(ValueError, match="pink"):
        replace(CUBE, color="pink")


def test_the_same_seed_gives_the_same_pair():
    assert sample_pair(random.Random("7"), 4, 2) == sample_pair(random.Random("7"), 4, 2)
    assert sample_pair(random.Random("7"), 4, 2) != sample_pair(random.Random("8"), 4, 2)


def test_sampled_changes_all_change_something():
    for seed in range(20):
        scene, changes = sample_pair(random.Random(seed), 3, 4)
        assert len(difference(scene, apply(scene, changes))) == 4


def test_objects_are_numbered_from_left_to_right():
    scene, _ = sample_pair(random.Random(3), 6, 4)
    across = [project(item.position, 0.0, "center")[0] for item in scene]
    assert across == sorted(across)


def test_what_is_drawn_is_balanced_and_visibility_does_not_tilt_it():
    rng = random.Random(0)
    pairs = [sample_pair(rng, 3, 2) for _ in range(150)]
    items = [item for scene, _ in pairs for item in scene]
    changes = [change for _, pair_changes in pairs for change in pair_changes]
    counts = [Counter(getattr(item, attribute) for item in items) for attribute in ATTRIBUTES]
    counts += [Counter(change.attribute for change in changes), Counter(change.index for change in changes)]
    for attribute in ATTRIBUTES:
        counts.append(Counter(change.value for change in changes if change.attribute == attribute))
    for count in counts:
        expected = count.total() / len(count)
        # A count has a standard deviation below sqrt(expected) (12 for 150): four of them are never seen by chance.
        assert all(abs(seen - expected) < 4 * expected**0.5 for seen in count.values()), count
    assert [len(count) for count in counts] == [8, 3, 3, 3, 4, 3, 8, 3, 3, 3]


def test_ten_objects_of_any_size_find_room_apart_before_and_after():
    scene, changes = sample_pair(random.Random(1), 10, 4, "left")
    for state in (scene, apply(scene, changes)):
        for index, item in enumerate(state):
            for other in state[:index]:
                assert math.dist(item.position, other.position) >= RADIUS[item.size] + RADIUS[other.size] + GAP


def test_an_object_behind_another_is_not_visible():
    # Seen from the centre the small one stands behind the large one; from the side it does not.
    front = replace(CUBE, position=(0.0, -1.0), shape="sphere")
    back = replace(BALL, position=(0.0, 1.0))
    assert not all_visible((front, back), "center")
    assert all_visible((front, back), "left")
    # Most of it is hidden, though it shows many pixels.
    half_hidden = replace(CUBE, position=(0.3, 0.3), shape="sphere")
    pixels = np.count_nonzero(index_map((front, half_hidden), "center") == 1)
    assert pixels > 2 * MIN_PIXELS * 160 * 120
    assert not all_visible((front, half_hidden), "center")


def test_the_index_map_shows_where_objects_are():
    scene = (replace(BALL, position=(-2.0, 0.0), shape="cylinder"), replace(CUBE, position=(2.0, 0.0)))
    shown = index_map(scene, "center")
    assert set(np.unique(shown)) == {-1, 0, 1}
    assert (shown[:, :80] != 1).all()
    assert (shown[:, 80:] != 0).all()


def test_states_of_a_scene_keep_their_places_and_follow_by_one_to_three_changes():
    for seed in range(5):
        states, _ = sample_states(random.Random(seed), 3, FIELD_OF_VIEW_DEG)
        assert len({tuple(item.position for item in state) for state in states}) == 1
        assert len(difference(states[0], states[1])) in (1, 2, 3)
        assert len(difference(states[2], states[3])) in (1, 2, 3)


def test_every_object_is_visible_in_the_pictures_of_its_state():
    for seed in range(3):
        states, pictures = sample_states(random.Random(seed), 4, 32.0)
        assert [state for state, view in pictures if view == "center"] == [0, 1, 2, 3]
        assert all(all_visible(states[state], view, 32.0) for state, view in pictures)


def test_a_picture_depends_on_scene_view_and_seed_alone():
    first = render((CUBE,), "center", (32, 24), 1, 5)
    assert first.shape == (24, 32, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, render((CUBE,), "center", (32, 24), 1, 5))
    others = [((CUBE,), "center", 6), ((CUBE,), "left", 5), ((replace(CUBE, color="green"),), "center", 5)]
    for scene, view, seed in others:
        assert not np.array_equal(first, render(scene, view, (32, 24), 1, seed))


def test_the_left_and_right_cameras_turn_about_the_same_axis():
    # All look at (0, 0). The right camera looks along (-1, 1), so its own right is (1, 1), towards (0, 2).
    assert all(abs(project((0.0, 0.0), 0.3, view)[0]) < 1e-9 for view in ("center", "left", "right"))
    assert project((0.0, 2.0), 0.3, "left")[0] == pytest.approx(-project((0.0, 2.0), 0.3, "right")[0])
    assert project((0.0, 2.0), 0.3, "right")[0] > 0


def test_a_picture_comes_with_the_index_map_of_its_own_pixels():
    picture, shown = render_with_index((CUBE,), "left", (16, 12), 1, 0, 49.0)
    assert np.array_equal(picture, render((CUBE,), "left", (16, 12), 1, 0, 49.0))
    assert np.array_equal(shown, index_map((CUBE,), "left", (16, 12), 49.0))
