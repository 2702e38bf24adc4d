"""Encoded pictures: PNG or JPEG of a sensible size, and nothing else is tried on their bytes.

Left to choose, Pillow takes a picture for any of some forty formats, and starts Ghostscript for one of them. Every
picture of a data set is opened here, so that what `data check` finds sound is what engine and learner can read.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from PIL import Image, UnidentifiedImageError

from records.samples import Prompt

T = TypeVar("T")
FORMATS = ("PNG", "JPEG")
MAX_PIXELS = 1 << 24
"""Of one picture; more is refused before it is read, because a few bytes can ask for any amount of memory."""


def check_size(width: int, height: int) -> None:
    """Raises ValueError."""
    if width * height > MAX_PIXELS:
        raise ValueError(f"it has {width}x{height} pixels, more than {MAX_PIXELS}; make it smaller")


@contextmanager
def _readable() -> Iterator[None]:
    """Within it, whatever Pillow says of bytes is a ValueError, whose text goes on from the name of the picture."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise ValueError("is no picture; it must be a PNG or JPEG file") from error
    except Exception as error:  # a damaged one makes Pillow raise nearly anything, and all of it is the finding
        raise ValueError(f"cannot be decoded: {error}") from error


def decode(encoded: bytes) -> Image.Image:
    """The picture, down to its last pixel. Raises ValueError, whose text goes on from the name of the picture."""
    with _readable():
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as picture:
            check_size(*picture.size)
            picture.verify()  # the checksums of a PNG, which decoding skips
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as picture:
            picture.load()
    return picture


def size(encoded: bytes) -> tuple[int, int]:
    """Width and height, from the picture's head alone. Raises ValueError, as `decode` does."""
    with _readable(), Image.open(io.BytesIO(encoded), formats=FORMATS) as picture:
        check_size(*picture.size)
    return picture.size


def check_placeholders(prompt: Prompt, count: int) -> None:
    """Raises ValueError unless the *count* of placeholders that the chat template wrote is that of the pictures."""
    if count != len(prompt.pictures):
        raise ValueError(
            f"prompt {prompt.id} has {count} image placeholders for {len(prompt.pictures)} pictures; "
            "check its messages and the model's chat template"
        )


def decode_all(prompt: Prompt) -> list[Image.Image]:
    """The pictures of *prompt*, RGB. Raises ValueError that names the prompt and the picture, counted from 1."""
    return [picture.convert("RGB") for picture in _of_each(prompt, decode)]


def all_sizes(prompt: Prompt) -> list[tuple[int, int]]:
    """Width and height of each picture of *prompt*. Raises as `decode_all` does, but for what only decoding finds."""
    return _of_each(prompt, size)


def _of_each(prompt: Prompt, read: Callable[[bytes], T]) -> list[T]:
    found = []
    for number, encoded in enumerate(prompt.pictures, 1):
        try:
            found.append(read(encoded))
        except ValueError as error:
            raise ValueError(f"prompt {prompt.id}: its picture {number} {error}") from error
    return found
