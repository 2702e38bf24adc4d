"""What a policy is taught to write."""

from dataclasses import replace

from tasks.tvr.language.answer import Answer, parse
from tasks.tvr.language.reasoning import careful_reply, compare_objects, list_objects
from tasks.tvr.language.scene import SceneObject, difference

RED = SceneObject(color="red", shape="cube", size="large", material="metal")
BEFORE = (RED, RED)
AFTER = (replace(RED, color="blue"), replace(RED, shape="sphere", size="small"))


def test_the_comparison_puts_before_and_after_side_by_side_and_notes_each_change():
    assert compare_objects(BEFORE, AFTER) == (
        "0 large large red blue 0.color.blue metal metal cube cube "
        "1 large small 1.size.small red red metal metal cube sphere 1.shape.sphere"
    )


def test_a_careful_reply_answers_in_the_order_of_its_notes():
    reply = careful_reply(BEFORE, AFTER)
    assert reply.endswith("<answer> 0.color.blue, 1.size.small, 1.shape.sphere </answer>")
    answer = parse(reply)
    assert isinstance(answer, Answer)
    assert set(answer.triplets) == set(difference(BEFORE, AFTER))


def test_the_list_numbers_the_objects():
    assert list_objects((RED, replace(RED, color="gray"))) == "0 large red metal cube 1 large gray metal cube"
