"""A tiny policy whose logits are not flat, groups made by hand for it, and learner ranks in processes of their own."""

import io
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from learner.actor import LearnerRank
from learner.config import LearnerConfig
from learner.tiny_policy import build_processor, make_tiny_policy
from tvr.answer import Malformed
from tvr.prompt import build_messages
from tvr.records import (
    Gold,
    ImagePair,
    PolicyVersion,
    Prompt,
    Sample,
    SampleGroup,
    Score,
    ScoredGroup,
    Trace,
    VersionSpan,
)
from tvr.scene import SceneObject

SCENE = (
    SceneObject(color="red", shape="cube", size="large", material="metal"),
    SceneObject(color="blue", shape="sphere", size="small", material="glass"),
    SceneObject(color="cyan", shape="cylinder", size="medium", material="rubber"),
)
PROCESSOR = build_processor()
ANSWER_TOKENS = [token for token in range(len(PROCESSOR.tokenizer)) if token not in PROCESSOR.tokenizer.all_special_ids]

MakeGroup = Callable[..., ScoredGroup]
RunRanks = Callable[[int, dict[str, dict[str, Any]]], list[dict[str, dict[str, Any]]]]


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Every matrix of the fresh policy is made larger, so that what a token may see changes its log-prob visibly."""
    folder = tmp_path_factory.mktemp("tiny_policy")
    make_tiny_policy(folder, seed=0)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def policy(policy_folder: str) -> Any:
    return AutoModelForImageTextToText.from_pretrained(policy_folder, attn_implementation="sdpa").train()


@pytest.fixture(scope="session")
def make_group() -> MakeGroup:
    return _make_group


def _make_group(
    seed: int,
    lengths: Sequence[int],
    rewards: Sequence[float] | None = None,
    sizes: tuple[tuple[int, int], tuple[int, int]] = ((64, 48), (64, 48)),
    objects: int = 3,
    logprob: float = -4.85,
) -> ScoredGroup:
    """One sample for each of *lengths* (answer tokens); *sizes* are (width, height) of the two pictures of noise.

    The sampler's log-probs lie within 0.3 of *logprob*; without *rewards* they are drawn.
    """
    rng = np.random.default_rng(seed)
    pictures = [_draw_noise(rng, *size) for size in sizes]
    messages = build_messages(SCENE[:objects])
    text = PROCESSOR.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
    opened = [Image.open(io.BytesIO(picture)) for picture in pictures]
    prompt_token_ids = PROCESSOR(text=[text], images=opened, return_tensors="np")["input_ids"][0].astype(np.int32)
    prompt = Prompt(
        id=f"{seed}/basic/center",
        pair=ImagePair(initial=pictures[0], final=pictures[1], view="center"),
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
    by_hand = Malformed(reason="made by hand")
    scores = tuple(Score(total=total, parts={"reward": total}, answer=by_hand) for total in totals)
    return ScoredGroup(group=SampleGroup(prompt=prompt, samples=samples), scores=scores)


def _draw_noise(rng: np.random.Generator, width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def run_ranks(policy_folder: str, tmp_path_factory: pytest.TempPathFactory) -> RunRanks:
    """Runs jobs by name on so many ranks (`rank_process.py`); returns each rank's results by name."""

    def run(world_size: int, jobs: dict[str, dict[str, Any]]) -> list[dict[str, dict[str, Any]]]:
        folder = tmp_path_factory.mktemp(f"ranks_{world_size}")
        (folder / "jobs.pickle").write_bytes(pickle.dumps(jobs))
        _, port = LearnerRank(LearnerConfig(), policy_folder, 0, world_size, 1.0, 0).address()
        script = Path(__file__).with_name("rank_process.py")
        command = [sys.executable, str(script), policy_folder, str(folder), str(world_size), str(port)]
        running = [
            subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            for rank in range(world_size)
        ]
        for rank, process in enumerate(running):
            output, _ = process.communicate(timeout=240)
            assert process.returncode == 0, f"rank {rank} of {world_size}:\n{output[-6000:]}"
        return [pickle.loads((folder / f"rank_{rank}.pickle").read_bytes()) for rank in range(world_size)]

    return run
