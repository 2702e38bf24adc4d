"""What of the policy is published: whole modules, and of those that the engine fuses all or none."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from learner.config import LearnerConfig
from learner.policy import load_policy, policy_parameters

FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Siblings that vLLM holds as one module (`packed_modules_mapping`, `hf_to_vllm_mapper` of its Qwen2.5-VL)."""


@pytest.fixture(scope="module")
def untied(policy_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a head of its own, as the 7B has."""
    folder = tmp_path_factory.mktemp("untied")
    model = AutoModelForImageTextToText.from_pretrained(policy_folder, tie_word_embeddings=False)
    model.config.text_config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("lora_rank", [0, 4])
@pytest.mark.parametrize("freeze", ["nothing", "vision", "language"])
def test_what_is_published_is_whole_modules_and_whole_families(freeze: str, lora_rank: int, untied: Path) -> None:
    config = LearnerConfig.model_validate({"freeze": freeze, "lora_rank": lora_rank})
    policy = load_policy(config, str(untied), torch.device("cpu"))
    parts = policy_parameters(policy)
    is_published = {name: part.is_published for name, part in parts.items()}
    by_module: dict[str, set[bool]] = {}
    for name in parts:
        family = name.rpartition(".")[0]
        for siblings in FUSED:
            for sibling in siblings:
                family = family.replace(f".{sibling}", f".{siblings[0]}")
        by_module.setdefault(family, set()).add(is_published[name])
    assert all(len(answers) == 1 for answers in by_module.values())
    assert all(is_published[name] for name, part in parts.items() if part.parameter.requires_grad or part.adapter)
    assert is_published["lm_head.weight"] == (freeze != "language" and not lora_rank)
    assert is_published["model.visual.blocks.0.attn.qkv.bias"] == (freeze != "vision")
    assert is_published["model.visual.blocks.0.norm1.weight"] == (freeze != "vision" and not lora_rank)
