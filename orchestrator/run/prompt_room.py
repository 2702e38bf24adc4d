"""Whether prompts and their answers fit in what the policy reads at once: said before any worker starts."""

from orchestrator.config import ConfigError
from records.samples import Prompt
from rollout.config import RolloutConfig


def check_room(rollout: RolloutConfig, prompt: Prompt, num_tokens: int) -> None:
    """Raises ConfigError unless the longest answer that is allowed fits behind *prompt*, which has *num_tokens*."""
    if (count := len(prompt.pictures)) > rollout.max_pictures:
        raise ConfigError(
            f"rollout.max_pictures = {rollout.max_pictures}: prompt {prompt.id} has {count} pictures; raise it to "
            f"{count} or more"
        )
    longest, room = rollout.max_answer_tokens, rollout.max_model_len
    if num_tokens + longest > room:
        raise ConfigError(
            f"rollout.max_model_len = {room}: prompt {prompt.id} has {num_tokens} tokens and its answer up to "
            f"{longest} (rollout.max_answer_tokens); raise it to {num_tokens + longest} or more, or give "
            "smaller pictures"
        )
