"""What the tiny policy is taught to write."""

from dataclasses import replace

from learner.pretrain import compare_objects, list_objects
from tvr.scene import SceneObject

RED = SceneObject(color="red", shape="cube", size="large", material="metal")


def test_the_comparison_puts_before_and_after_side_by_side():
    before, after = (RED, RED), (replace(RED, color="blue"), replace(RED, shape="sphere", size="small"))
    assert compare_objects(before, after) == (
        "0 large large red blue metal metal cube cube 1 large small red red metal metal cube sphere"
    )


def test_the_list_numbers_the_objects():
    assert list_objects((RED, replace(RED, color="gray"))) == "0 large red metal cube 1 large gray metal cube"
