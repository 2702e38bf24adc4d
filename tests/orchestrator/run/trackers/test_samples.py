"""What trackers show of sampled answers."""

import io

import pytest
from PIL import Image

from orchestrator.run.trackers.samples import GAP, SampleReader, as_rows, pick, side_by_side
from records.samples import Prompt
from records.task import ListedPrompts
from tasks.tvr.task import TransformationTask
from tests.fakes import GOLD, TRUE_REPLY, make_group, make_prompt, make_scored


def png(color: str, width: int = 8, height: int = 6) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), color).save(file, "PNG")
    return file.getvalue()


class TwoPairs(TransformationTask):
    """TVR whose data are two pairs in memory; counts how often they are opened."""

    opened = 0

    def open(self, data):
        self.opened += 1
        pairs = {"0/basic/center": ("red", "blue"), "1/basic/center": ("green", "black")}
        prompts = [
            Prompt(id=name, images=(png(first), png(second)), messages=(), gold=GOLD)
            for name, (first, second) in pairs.items()
        ]
        return ListedPrompts({"train": prompts, "test": prompts}, identity="two pairs")


def scored(number: int, reply: str = TRUE_REPLY):
    return make_scored(make_group(make_prompt(f"{number}/basic/center"), version=7, reply=reply), [5.0, -1.0])


def test_samples_are_of_different_prompts_first():
    groups = [scored(0), scored(1)]
    assert [it.id for it in pick(groups, 3)] == ["0/basic/center#0", "1/basic/center#0", "0/basic/center#1"]


def test_asking_for_more_samples_than_there_are_gives_all():
    assert len(pick([scored(0)], 9)) == 2


def test_a_picked_sample_holds_no_pictures_and_no_tokens():
    (picked,) = pick([scored(0)], 1)
    assert not any(isinstance(getattr(picked, field), bytes | tuple) for field in picked.__slots__)


def test_a_shown_sample_has_both_pictures_side_by_side():
    (shown,) = SampleReader(TwoPairs(), data=None).show(pick([scored(1)], 1))
    assert shown.picture.size == (8 + GAP + 8, 6)
    assert shown.picture.getpixel((0, 0)) == (0, 128, 0)  # green
    assert shown.picture.getpixel((8 + GAP, 0)) == (0, 0, 0)
    assert shown.picture.getpixel((8, 0)) == (255, 255, 255), "a white gap"


def test_a_caption_says_the_sample_its_version_its_reward_by_term_and_what_is_right():
    (shown,) = SampleReader(TwoPairs(), data=None).show(pick([scored(0)], 1))
    assert shown.caption.splitlines()[0] == "0/basic/center#0, version 7: reward +5 (all +5)"
    assert "true" in shown.judged
    assert "0.color.blue ✓" in " ".join(shown.judged.split())


def test_what_a_task_shows_as_plain_text_is_no_markup():
    class Plain(TwoPairs):
        def show(self, gold, replies):
            return f"true: {gold.changes[0]}, reply: {replies['reply']}"

    (shown,) = SampleReader(Plain(), data=None).show(pick([scored(0, "[red]not[/red] :cat:")], 1))
    assert shown.judged == "true: 0.color.blue, reply: [red]not[/red] :cat:"


def test_the_data_set_is_opened_once_for_all_samples():
    task = TwoPairs()
    reader = SampleReader(task, data=None)
    reader.show(pick([scored(0)], 2))
    reader.show(pick([scored(1)], 2))
    assert task.opened == 1


def test_no_pictures_make_none():
    assert side_by_side([]) is None


@pytest.mark.parametrize("column", ["all", "other"])
def test_all_rows_have_the_terms_of_all_samples(column):
    shown = SampleReader(TwoPairs(), data=None).show(pick([scored(0), scored(1)], 2))
    object.__setattr__(shown[1], "terms", {"other": 1.0})
    assert [row[column] is None for row in as_rows(shown)] == [column == "other", column == "all"]
