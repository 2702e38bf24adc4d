"""Anyone's data set: the forms in which others keep theirs, and what is said of rows that cannot be used."""

import io
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from records.samples import Prompt
from tasks.questions.config import QuestionsConfig
from tasks.questions.dataset import QuestionSet
from tasks.questions.task import TASK
from tasks.questions.truth import Truth


def picture(color: str = "red", size: tuple[int, int] = (8, 6)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, format="PNG")
    return buffer.getvalue()


ROW: dict[str, Any] = {"images": [{"bytes": picture()}], "problem": "how many ?", "answer": "3"}


def saved(folder: Path, *rows: dict[str, Any], **features: Any) -> Path:
    """Both splits, of the same *rows*."""
    made = datasets.Dataset.from_list(list(rows) or [ROW])
    for name, feature in features.items():
        made = made.cast_column(name, feature)
    datasets.DatasetDict(train=made, test=made).save_to_disk(folder)
    return folder


def opened(folder: Path, **settings: Any) -> QuestionSet:
    return QuestionSet(QuestionsConfig(path=folder, **settings))


def first(folder: Path, **settings: Any) -> Prompt:
    return opened(folder, **settings).prompts("train")[0]


def parts(prompt: Prompt) -> list[str]:
    """The user's turn: `#` for a picture."""
    return [part.get("text", "#") for part in prompt.messages[-1]["content"]]


def test_a_row_becomes_a_prompt(tmp_path: Path):
    prompt = first(saved(tmp_path / "data"))
    assert (prompt.id, prompt.images, prompt.gold) == ("train-0", (picture(),), Truth(answer="3"))
    assert prompt.messages == (
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "how many ?"}]},
    )


@pytest.mark.parametrize("nested", ["", "data"])
def test_parquet_is_found_beside_and_in_data(tmp_path: Path, nested: str):
    (tmp_path / nested).mkdir(exist_ok=True)
    for split in ("train", "test"):
        for part in (0, 1):
            rows = datasets.Dataset.from_list([ROW | {"answer": f"{split} {part}"}])
            rows.to_parquet(tmp_path / nested / f"{split}-0000{part}-of-00002.parquet")
    data = opened(tmp_path)
    assert [prompt.gold.answer for prompt in data.prompts("train")] == ["train 0", "train 1"]
    assert list(data.golds("test")) == [("test-0", Truth(answer="test 0")), ("test-1", Truth(answer="test 1"))]
    assert data.golds("test").ids() == ["test-0", "test-1"]


@pytest.mark.parametrize(
    ("cell", "count"),
    [
        ([], 0),
        ([{"bytes": picture()}], 1),
        ([{"bytes": picture(), "path": "gone.png"}] * 3, 3),
        ({"bytes": picture()}, 1),
        (picture(), 1),
        ([picture()] * 2, 2),
        (["a.png", "b.png"], 2),
        ("a.png", 1),
        ([{"bytes": None, "path": "a.png"}], 1),
        (None, 0),
    ],
)
def test_pictures_in_every_form(tmp_path: Path, cell: Any, count: int):
    folder = saved(tmp_path / "data", ROW | {"images": cell})
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(picture())
    assert first(folder).images == (picture(),) * count


def test_pictures_as_datasets_own_type_stay_encoded(tmp_path: Path):
    folder = saved(
        tmp_path / "data", ROW | {"images": [{"bytes": picture()}] * 2}, images=datasets.List(datasets.Image())
    )
    assert first(folder).images == (picture(),) * 2


@pytest.mark.parametrize(
    ("problem", "count", "expected"),
    [
        ("how many ?", 0, ["how many ?"]),
        ("how many ?", 2, ["#", "#", "how many ?"]),
        ("<image> or <image> ?", 2, ["#", " or ", "#", " ?"]),
        ("<image><image>which ?", 2, ["#", "#", "which ?"]),
    ],
)
def test_pictures_stand_where_the_question_has_them_or_come_first(
    tmp_path: Path, problem: str, count: int, expected: list[str]
):
    folder = saved(
        tmp_path / "data", {"images": [{"bytes": picture()}] * count or None, "problem": problem, "answer": "3"}
    )
    assert parts(first(folder)) == expected
    assert parts(first(folder, instruction="in tags .")) == [*expected, "in tags ."]


def test_chat_messages_may_stand_for_the_question(tmp_path: Path):
    told = [{"role": "system", "content": "look"}, {"role": "user", "content": "<image> what ?"}]
    prompt = first(saved(tmp_path / "a", ROW | {"chat": told}), messages="chat", problem="no such column")
    assert [message["role"] for message in prompt.messages] == ["system", "user"]
    assert parts(prompt) == ["#", " what ?"]
    content = [{"type": "image", "text": None}, {"type": "text", "text": "what ?"}]
    assert parts(
        first(saved(tmp_path / "b", ROW | {"chat": [{"role": "user", "content": content}]}), messages="chat")
    ) == [
        "#",
        "what ?",
    ]


def test_columns_by_other_names_and_those_that_are_told_apart(tmp_path: Path):
    row = {"question": "how many ?", "solution": 4.0, "level": 2, "why": "two and two", "name": "q1"}
    columns = {
        "images": "",
        "problem": "question",
        "answer": "solution",
        "reasoning": "why",
        "id": "name",
        "by": ("level",),
    }
    prompt = first(saved(tmp_path / "data", row), **columns)
    assert (prompt.id, prompt.images) == ("q1", ())
    assert prompt.gold == Truth(answer="4", groups=(("level", "2"),), reasoning="two and two")
    assert TASK.right_answer(prompt.gold, "reasoning") == "<think> two and two </think> <answer> 4 </answer>"
    with pytest.raises(ValueError, match=r"there is none in the data; name its column in data\.reasoning"):
        TASK.right_answer(Truth(answer="4"), "reasoning")


def test_a_data_set_is_known_by_its_files_wherever_it_lies(tmp_path: Path):
    folder = saved(tmp_path / "a")
    known = opened(folder).identity
    assert opened(shutil.copytree(folder, tmp_path / "b")).identity == known
    assert opened(saved(tmp_path / "c", ROW | {"answer": "4"})).identity != known


def test_what_a_split_is_for_goes_before_what_it_is_called(tmp_path: Path):
    splits = {name: datasets.Dataset.from_list([ROW | {"answer": name}]) for name in ("train", "test", "dev")}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "data")
    data = opened(tmp_path / "data", train="test", test="dev")
    asked = {split: [gold.answer for _, gold in data.golds(split)] for split in ("train", "test", "dev")}
    assert asked == {"train": ["test"], "test": ["dev"], "dev": ["dev"]}
    with pytest.raises(ValueError, match="is asked for no split 'val'; give train or test"):
        data.prompts("val")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"answer": "solution"},
            r"train': has no column 'solution', only images, problem, answer; set data\.answer",
        ),
        ({"images": "image"}, r"has no column 'image', .* or data\.images = \"\" if the questions have no pictures"),
        ({"messages": "chat"}, r"has no column 'chat', .*; set data\.messages"),
        ({"by": ("level",)}, r"has no column 'level', .*; set data\.by"),
        ({"train": "dev"}, "has no split 'dev', only train, test; name one in data.train or data.test"),
    ],
)
def test_a_column_or_split_that_is_missing_is_named_with_the_key(tmp_path: Path, settings: dict[str, Any], says: str):
    folder = saved(tmp_path / "data")
    with pytest.raises(ValueError, match=says):
        opened(folder, **settings)


def test_a_folder_without_a_data_set_and_an_empty_split_are_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"has no train\*\.parquet; correct data\.path"):
        opened(tmp_path)
    rows = datasets.Dataset.from_list([ROW])
    datasets.DatasetDict(train=rows, test=rows.select([])).save_to_disk(tmp_path / "data")
    with pytest.raises(ValueError, match="split 'test': has no rows; fill it, or name another split"):
        opened(tmp_path / "data")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            {"problem": "<image> or <image> ?"},
            "row 0: 2 places .<image>. for 1 pictures; write one for each, or none",
        ),
        ({"images": [{"bytes": b""}]}, "row 0: picture 1 has no bytes and no path"),
        ({"images": ["gone.png"]}, r"row 0: picture 1, gone\.png: cannot be read .No such file"),
        ({"answer": None}, "row 0: answer is empty; fill it, or remove the row"),
        ({"problem": None}, "row 0: the question is None; it must be text"),
    ],
)
def test_a_row_that_cannot_be_asked_is_named(tmp_path: Path, row: dict[str, Any], says: str):
    with pytest.raises(ValueError, match=f"data, split 'train', {says}"):
        first(saved(tmp_path / "data", ROW | row))


def test_check_reads_every_row_and_names_what_is_wrong(tmp_path: Path):
    rows = [ROW, ROW | {"images": [{"bytes": picture(size=(9, 9))}] * 2}, ROW | {"answer": "4"}]
    good = QuestionsConfig(path=saved(tmp_path / "good", *rows))
    seen: list[tuple[int, int]] = []
    lines, is_well = TASK.check(good, lambda done, total: seen.append((done, total)))
    assert is_well
    assert lines == [
        f"{good.path}: OK",
        *(
            line
            for split in ("train", "test")
            for line in (
                "",
                f"{split}: 3 questions, 2 different answers",
                "  pictures  1: 2, 2: 1",
                "  sizes     8x6: 2, 9x9: 2",
                "  answers   3: 2, 4: 1",
            )
        ),
    ]
    assert seen[-1] == (3, 3)
    broken = [ROW, ROW | {"images": [{"bytes": b"no picture"}]}, ROW | {"images": [{"bytes": picture()[:-20]}]}]
    bad = QuestionsConfig(path=saved(tmp_path / "bad", *broken))
    lines, is_well = TASK.check(bad, lambda done, total: None)
    assert not is_well
    assert lines[0] == f"{bad.path}: 4 problems"
    assert f"{bad.path}, split 'train', row 1: picture 1 is no picture; it must be a PNG or JPEG file" in lines
    assert f"{bad.path}, split 'test', row 2: picture 1 cannot be decoded" in "\n".join(lines)


def test_a_page_shows_questions_of_both_splits_and_nothing_that_a_browser_would_obey(tmp_path: Path):
    row = ROW | {"problem": "<image> <script>alert(1)</script> ?", "answer": "<b>3</b>"}
    config = QuestionsConfig(path=saved(tmp_path / "data", *([row] * 5)), by=("answer",))
    assert TASK.write_page(config, tmp_path / "page.html", None, 3) == 3
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "train: 2 of 5 questions" in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script>" not in page
    assert TASK.write_page(config, tmp_path / "page.html", "test", 3) == 3
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("page")] == ["page.html"]
