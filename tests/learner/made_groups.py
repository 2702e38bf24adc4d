"""Groups made by hand for a tiny policy: pictures of noise, answers of random words."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from records.samples import PolicyVersion, Prompt, Sample, SampleGroup, Score, ScoredGroup, Trace, VersionSpan
from tasks.tvr.language.gold import Gold
from tasks.tvr.language.prompt import build_messages
from tasks.tvr.language.scene import SceneObject
from tiny_policy.make import build_processor

SCENE = (
    SceneObject(color="red", shape="cube", size="large", material="metal"),
    SceneObject(color="blue", shape="sphere", size="small", material="glass"),
    SceneObject(color="cyan", shape="cylinder", size="medium", material="rubber"),
)
PROCESSOR = build_processor()
ANSWER_TOKENS = [token for token in range(len(PROCESSOR.tokenizer)) if token not in PROCESSOR.tokenizer.all_special_ids]


def make_group(
    seed: int,
    lengths: Sequence[int],
    rewards: Sequence[float] | None = None,
    sizes: Sequence[tuple[int, int]] = ((64, 48), (64, 48)),
    objects: int = 3,
    logprob: float = -4.85,
) -> ScoredGroup:
    """One sample for each of *lengths* (answer tokens); *sizes* are (width, height) of the pictures of noise.

    The sampler's log-probs lie within 0.3 of *logprob*; without *rewards* they are drawn.
    """
    rng = np.random.default_rng(seed)
    pictures = [_draw_noise(rng, *size) for size in sizes]
    messages = build_messages(SCENE[:objects]) if len(sizes) == 2 else ask_about(len(sizes))
    text = PROCESSOR.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
    opened = [Image.open(io.BytesIO(picture)) for picture in pictures]
    prompt_token_ids = PROCESSOR(text=[text], images=opened or None, return_tensors="np")["input_ids"][0].astype(
        np.int32
    )
    prompt = Prompt(
        id=f"{seed}/basic/center",
        images=tuple(pictures),
        messages=messages,
        gold=Gold(setting="basic", scene=SCENE[:objects], transformations=()),
    )
    samples = tuple(
        Sample(
            id=f"{prompt.id}/{index}",
            trace=Trace(
                prompt_token_ids=prompt_token_ids,
                token_ids=rng.choice(ANSWER_TOKENS, length).astype(np.int32),
                logprobs=(logprob + rng.uniform(-0.3, 0.3, length)).astype(np.float32),
                versions=(VersionSpan(version=PolicyVersion(0), start=0, end=length),),
                finish="stop",
            ),
            text="",
        )
        for index, length in enumerate(lengths)
    )
    totals = rng.normal(size=len(lengths)).tolist() if rewards is None else list(rewards)
    scores = tuple(Score(total=total, parts={"reward": total}, judgement=None) for total in totals)
    return ScoredGroup(group=SampleGroup(prompt=prompt, samples=samples), scores=scores)


def ask_about(num_pictures: int) -> tuple[dict[str, Any], ...]:
    """Chat messages with so many pictures, one right behind the other."""
    pictures = [{"type": "image"}] * num_pictures
    return ({"role": "user", "content": [*pictures, {"type": "text", "text": "what changed ?"}]},)


def _draw_noise(rng: np.random.Generator, width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()
