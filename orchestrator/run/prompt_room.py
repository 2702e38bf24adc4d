"""Whether prompts and their answers fit in what the policy reads at once: said before any worker starts."""

from pathlib import Path

from orchestrator.config import ConfigError
from rollout.config import RolloutConfig
from tvr.data.dataset import load, load_golds
from tvr.records import Prompt


def check_room(rollout: RolloutConfig, prompt: Prompt, num_tokens: int) -> None:
    """Raises ConfigError unless the longest answer that is allowed fits behind *prompt*, which has *num_tokens*."""
    longest, room = rollout.max_answer_tokens, rollout.max_model_len
    if num_tokens + longest > room:
        raise ConfigError(
            f"rollout.max_model_len = {room}: prompt {prompt.id} has {num_tokens} tokens and its answer up to "
            f"{longest} (rollout.max_answer_tokens); raise it to {num_tokens + longest} or more, or give "
            "smaller pictures"
        )


def largest_prompt(folder: Path, split: str) -> Prompt:
    """That of the scene with most objects, whose list is in the prompt."""
    counts = [len(gold.scene) for _, _, gold in load_golds(folder, split)]
    return load(folder, split)[counts.index(max(counts))]
