"""Pictures in Ray's object store: those of a prompt are put there once, and a node that needs it keeps one copy.

Ray resolves a reference only where it is an argument of its own. So a prompt is sent without its pictures, their
reference beside it, and the actor puts the two together again (`actors.py`).
"""

from dataclasses import replace

import ray

from records.samples import Prompt, StoredPictures

Pictures = tuple[bytes, ...]
"""Encoded, those of one prompt."""


def store(prompt: Prompt) -> Prompt:
    """*prompt* with a reference in place of its pictures. They stay in the store as long as the result, or a copy."""
    return replace(prompt, images=StoredPictures(reference=ray.put(prompt.pictures)))


def reference(prompt: Prompt) -> ray.ObjectRef:
    """Of a stored prompt."""
    assert isinstance(prompt.images, StoredPictures), prompt.id
    return prompt.images.reference


def detached(prompt: Prompt) -> Prompt:
    """As it is sent: a reference inside an argument would have to be kept count of."""
    return replace(prompt, images=StoredPictures(reference=None))


def attached(prompt: Prompt, pictures: Pictures) -> Prompt:
    """As it was before it was stored."""
    return replace(prompt, images=pictures)
