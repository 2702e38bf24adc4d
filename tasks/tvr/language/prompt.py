"""Chat messages for an image pair. The answer never appears in them.

The instructions stand in the system turn and the facts of the case (pictures, numbered objects) in the user turn.
"""

from typing import Any

from tasks.tvr.language.scene import ATTRIBUTES, Scene

INSTRUCTIONS = (
    "You are shown two pictures of one scene of simple solids: the initial state and the final state, which may be "
    "seen from another camera. The objects of the initial state are listed with their index. Find every attribute "
    "that changed, of every object. Attributes and their values: "
    + "; ".join(f"{attribute}: {', '.join(values)}" for attribute, values in ATTRIBUTES.items())
    + ". First reason between <think> and </think>: compare the objects one by one. Then give all changes between "
    "<answer> and </answer> as index.attribute.new-value, separated by commas, for example <answer> 0.color.cyan, "
    "2.size.large </answer>. An empty answer means that nothing changed."
)


def build_messages(scene: Scene) -> tuple[dict[str, Any], ...]:
    """System and user turn; the user turn holds two image placeholders, initial first, and lists *scene* by index.

    Objects out of sight keep their index and are left out.
    """
    listed = " ; ".join(f"{index} : {item}" for index, item in enumerate(scene) if item.in_sight)
    user = [
        {"type": "text", "text": "initial :"},
        {"type": "image"},
        {"type": "text", "text": "final :"},
        {"type": "image"},
        {"type": "text", "text": f"objects : {listed} . what changed ?"},
    ]
    return ({"role": "system", "content": [{"type": "text", "text": INSTRUCTIONS}]}, {"role": "user", "content": user})
