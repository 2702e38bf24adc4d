"""The policy as the learner holds it: what of it is trained, and what of it is published under which names."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from learner import attention, windows
from learner.adapters import AdaptedLinear, adapted_layers, add_adapters
from learner.config import LearnerConfig
from learner.head import AnswerHead

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyParameter:
    """One parameter of the Hugging Face model: its *parameter* here, and the *adapter* layer that is added to it.

    It *is_published* if training can change it or another of its module: engines load modules whole.
    """

    parameter: torch.nn.Parameter
    adapter: AdaptedLinear | None
    is_published: bool

    @property
    def needed(self) -> list[torch.nn.Parameter]:
        """What must be whole for `merged`."""
        return [self.parameter] if self.adapter is None else list(self.adapter.parameters())

    def merged(self) -> torch.Tensor:
        """Read only."""
        return self.parameter.detach() if self.adapter is None else self.adapter.merged()


def load_policy(config: LearnerConfig, folder: str, device: torch.device) -> Any:
    """The transformers model of *folder* with frozen parts and adapters as *config* says."""
    model = load_model(folder, DTYPES[config.dtype], device)
    vision, language = model.model.visual, (model.model.language_model, model.lm_head)
    for part in {"nothing": (), "vision": (vision,), "language": language}[config.freeze]:
        part.requires_grad_(False)
    if config.lora_rank > 0:
        add_adapters(model, config.lora_rank, config.lora_alpha)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def load_model(folder: str, dtype: torch.dtype, device: torch.device) -> Any:
    """Its head is an `AnswerHead`. Raises ValueError if that has a bias, or if attention slides: rows know neither.

    In host memory are pages of its files, which the ranks of a node share, and no copy: transformers maps a weight that
    keeps its dtype, so that each is converted here, alone and on *device*.
    """
    ours = {"text_config": attention.NAME, "vision_config": windows.NAME}
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", attn_implementation=ours)
    if "sliding_attention" in model.config.text_config.layer_types:
        raise ValueError(f"{folder}: its config says use_sliding_window, which the learner's attention does not have")
    model.lm_head = AnswerHead(model.lm_head)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(device).to(dtype)
    return model.to(device)  # its buffers, whose dtype stays


def policy_parameters(model: Any) -> dict[str, PolicyParameter]:
    """Every parameter by its name in the Hugging Face model, tied ones once."""
    adapters = {id(layer.weight): layer for layer in adapted_layers(model)}
    modules = [list(module.parameters(recurse=False)) for module in model.modules()]
    learning = {id(own) for module in modules if any(each.requires_grad for each in module) for own in module}
    return {
        name: PolicyParameter(
            parameter=parameter, adapter=adapters.get(id(parameter)), is_published=id(parameter) in learning
        )
        for name, parameter in model.named_parameters()
        if ".lora_" not in name
    }
