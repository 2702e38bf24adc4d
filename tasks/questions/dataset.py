"""A folder of questions as a data set: rows of `datasets` or Parquet, in the columns that others have theirs in."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import xxhash

from records.samples import Prompt
from records.task import ReadPrompts
from tasks.questions.config import QuestionsConfig
from tasks.questions.truth import Truth

PLACE = "<image>"
ENDS = 1 << 20
"""Bytes at each end of a file by which it is known."""
ROWS_PER_BATCH = 1000
EMPTY = "has no rows; fill it, or name another split"


class QuestionSet:
    """`records.task.DataSet`: opened, and found to have both splits and all columns."""

    def __init__(self, config: QuestionsConfig) -> None:
        """Raises FileNotFoundError or ValueError, with the remedy."""
        self._config = config
        self._rows = {"train": _load(config, config.train), "test": _load(config, config.test)}
        for rows in self._rows.values():
            rows.check_columns()

    @property
    def identity(self) -> str:
        """By the names, the sizes and both ends of the files."""
        digest = xxhash.xxh3_64()
        for file in sorted({file for rows in self._rows.values() for file in rows.files}):
            size = file.stat().st_size
            with file.open("rb") as content:
                ends = content.read(ENDS)
                content.seek(max(0, size - ENDS))
                digest.update(f"{file.name} {size} ".encode() + ends + content.read())
        return f"files {digest.hexdigest()[:12]}"

    def prompts(self, split: str) -> "QuestionPrompts":
        return QuestionPrompts(self._split(split))

    def golds(self, split: str) -> "QuestionGolds":
        return QuestionGolds(self._split(split))

    def longest(self, split: str) -> "QuestionPrompts":
        """Any may be: the lengths of questions, and the sizes of their pictures, are whatever they are."""
        return self.prompts(split)

    @property
    def folder(self) -> Path:
        return self._config.path

    def where(self, split: str, number: int) -> str:
        """How messages call a row."""
        return self._split(split).at(number)

    def _split(self, split: str) -> "Rows":
        by_name = {
            rows.name: rows for rows in self._rows.values()
        } | self._rows  # what a split is for goes before its name
        if split in by_name:
            return by_name[split]
        raise ValueError(f"{self._config.path} is asked for no split {split!r}; give train or test, or name it in data")


class Rows:
    """The rows of the split *name* as they are stored, pictures encoded."""

    def __init__(self, config: QuestionsConfig, name: str, rows: datasets.Dataset, files: Sequence[Path]) -> None:
        if not len(rows):
            raise ValueError(f"{config.path}, split {name!r}: {EMPTY}")
        self.config = config
        self.name = name
        self.files = tuple(files)
        self._rows = rows.with_format("arrow")

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def where(self) -> str:
        return f"{self.config.path}, split {self.name!r}"

    def check_columns(self) -> None:
        """Raises ValueError."""
        config, there = self.config, self._rows.column_names
        wanted = [(key, getattr(config, key)) for key in ("images", "answer", "reasoning", "id")]
        wanted += [("messages", config.messages) if config.messages else ("problem", config.problem)]
        wanted += [("by", name) for name in config.by]
        for key, name in wanted:
            if name and name not in there:
                remedy = f"set data.{key} to the right one"
                if key == "images":
                    remedy += ', or data.images = "" if the questions have no pictures'
                raise ValueError(f"{self.where}: has no column {name!r}, only {', '.join(there)}; {remedy}")

    def row(self, number: int) -> dict[str, Any]:
        return self._rows[number].to_pylist()[0]

    def without_pictures(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Number and row of all."""
        rows = self._rows.remove_columns([self.config.images]) if self.config.images else self._rows
        number = 0
        for batch in rows.iter(ROWS_PER_BATCH):
            for row in batch.to_pylist():
                yield number, row
                number += 1

    def name_of(self, number: int, row: Mapping[str, Any]) -> str:
        return str(row[self.config.id]) if self.config.id else f"{self.name}-{number}"

    def at(self, number: int) -> str:
        return f"{self.where}, row {number}"


class QuestionPrompts(ReadPrompts):
    """The questions of one split."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, number: int) -> Prompt:
        row = self._rows.row(number)
        try:
            return to_prompt(self._rows.config, self._rows.name_of(number, row), row)
        except ValueError as error:
            raise ValueError(f"{self._rows.at(number)}: {error}") from error


class QuestionGolds:
    """The truth of one split, without its pictures."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def ids(self) -> list[str]:
        return [self._rows.name_of(number, row) for number, row in self._rows.without_pictures()]

    def __iter__(self) -> Iterator[tuple[str, Truth]]:
        for number, row in self._rows.without_pictures():
            try:
                yield self._rows.name_of(number, row), to_truth(self._rows.config, row)
            except ValueError as error:
                raise ValueError(f"{self._rows.at(number)}: {error}") from error


def to_prompt(config: QuestionsConfig, name: str, row: Mapping[str, Any]) -> Prompt:
    """Raises ValueError."""
    images = to_images(config.path, row[config.images]) if config.images else ()
    told = row[config.messages] if config.messages else [{"role": "user", "content": row[config.problem]}]
    messages = to_messages(told, len(images), config.instruction)
    return Prompt(id=name, images=images, messages=messages, gold=to_truth(config, row))


def to_truth(config: QuestionsConfig, row: Mapping[str, Any]) -> Truth:
    """Raises ValueError."""
    return Truth(
        answer=_to_text(row[config.answer], config.answer),
        form=config.form,
        groups=tuple((name, str(row[name])) for name in config.by),
        reasoning=_to_text(row[config.reasoning], config.reasoning) if config.reasoning else "",
    )


def to_images(folder: Path, cell: Any) -> tuple[bytes, ...]:
    """The encoded pictures of a *cell*: bytes, a path from *folder*, what `datasets` stores of an image, a list of any
    of these, or nothing. Raises ValueError.
    """
    cells = [] if cell is None else cell if isinstance(cell, list) else [cell]
    images = []
    for number, image in enumerate(cells, 1):
        stored: dict[str, Any] = image if isinstance(image, dict) else {}
        content = image if isinstance(image, bytes) else stored.get("bytes")
        path = image if isinstance(image, str) else stored.get("path")
        if not content and path:
            try:
                content = (folder / path).read_bytes()
            except OSError as error:
                raise ValueError(
                    f"picture {number}, {path}: cannot be read ({error.strerror}); mend the path"
                ) from error
        if not content:
            raise ValueError(f"picture {number} has no bytes and no path; add one, or remove it from the list")
        images.append(content)
    return tuple(images)


def to_messages(told: Any, num_images: int, instruction: str) -> tuple[dict[str, Any], ...]:
    """Chat messages whose content is parts, of which as many as there are pictures are `{"type": "image"}`.

    Where *told* has no place for any picture, they stand before the first words of the user. Raises ValueError.
    """
    if not isinstance(told, list) or not told:
        raise ValueError(f"the messages are {told!r}; they must be a list of role and content")
    messages = [{"role": message["role"], "content": _to_parts(message["content"])} for message in told]
    places = sum(part["type"] == "image" for message in messages for part in message["content"])
    first = next((message for message in messages if message["role"] == "user"), None)
    if first is None:
        raise ValueError("no message is the user's; add the question")
    if places == 0:
        first["content"] = [{"type": "image"}] * num_images + first["content"]
    elif places != num_images:
        raise ValueError(f"{places} places ({PLACE}) for {num_images} pictures; write one for each, or none at all")
    if instruction:
        last = [message for message in messages if message["role"] == "user"][-1]
        last["content"] = [*last["content"], {"type": "text", "text": instruction}]
    return tuple(messages)


def _to_parts(content: Any) -> list[dict[str, str]]:
    if isinstance(content, str):
        texts = content.split(PLACE)
        parts = [{"type": "text", "text": texts[0]}]
        for text in texts[1:]:
            parts += [{"type": "image"}, {"type": "text", "text": text}]
        return [part for part in parts if part.get("text", "x").strip()]
    if isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") in ("text", "image") for part in content
    ):
        return [
            {"type": "image"} if part["type"] == "image" else {"type": "text", "text": part["text"]} for part in content
        ]
    raise ValueError(f"the question is {content!r}; it must be text, or parts of type text and image")


def _to_text(value: Any, column: str) -> str:
    if value is None or value == "":
        raise ValueError(f"{column} is empty; fill it, or remove the row")
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json.dumps(value) if isinstance(value, dict | list | bool) else str(value)


def _load(config: QuestionsConfig, split: str) -> Rows:
    folder = config.path
    if (folder / "dataset_dict.json").exists():
        splits = json.loads((folder / "dataset_dict.json").read_text())["splits"]
        if split not in splits:
            raise ValueError(
                f"{folder} has no split {split!r}, only {', '.join(splits)}; name one in data.train or data.test"
            )
        files = sorted((folder / split).glob("*.arrow"))
        if not files:  # `datasets` itself cannot open it
            raise ValueError(f"{folder}, split {split!r}: {EMPTY}")
        return Rows(config, split, datasets.load_from_disk(folder / split), files)
    files = sorted(file for place in (folder, folder / "data") for file in place.glob(f"{split}*.parquet"))
    if not files:
        raise FileNotFoundError(
            f"{folder}: is no folder that `datasets` saved (with its dataset_dict.json) and has no {split}*.parquet; "
            "correct data.path, or name the split in data.train or data.test"
        )
    return Rows(config, split, datasets.Dataset.from_parquet([str(file) for file in files]), files)
