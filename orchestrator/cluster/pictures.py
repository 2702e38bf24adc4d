"""Pictures in Ray's object store: each pair is put there once, and a node that needs it keeps one copy.

Ray resolves a reference only where it is an argument of its own. So a prompt is sent without its pictures, their
reference beside it, and the actor puts the two together again (`actors.py`).
"""

from dataclasses import replace

import ray

from tvr.records import ImagePair, Prompt, StoredPair


def store(prompt: Prompt) -> Prompt:
    """*prompt* with a reference in place of its pictures. They stay in the store as long as the result, or a copy."""
    return replace(prompt, pair=StoredPair(view=prompt.pair.view, reference=ray.put(prompt.pictures)))


def reference(prompt: Prompt) -> ray.ObjectRef:
    """Of a stored prompt."""
    assert isinstance(prompt.pair, StoredPair), prompt.id
    return prompt.pair.reference


def detached(prompt: Prompt) -> Prompt:
    """As it is sent: a reference inside an argument would have to be kept count of."""
    return replace(prompt, pair=StoredPair(view=prompt.pair.view, reference=None))


def attached(prompt: Prompt, pair: ImagePair) -> Prompt:
    """As it was before it was stored."""
    return replace(prompt, pair=pair)
