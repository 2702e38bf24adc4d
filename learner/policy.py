"""The policy as the learner holds it: what of it is trained, and under which names it is published.

The only file that imports peft, whose adapters are put into the linear layers in place: the model keeps its class, and
with the adapters switched off it is the starting policy.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from learner.attention import NAME
from learner.config import LearnerConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """One parameter of the Hugging Face model: its *parameter* here, and the *adapter* layer that is added to it."""

    parameter: torch.nn.Parameter
    adapter: Any | None

    @property
    def needed(self) -> list[torch.nn.Parameter]:
        """What must be whole for `merged`."""
        return [self.parameter] if self.adapter is None else list(self.adapter.parameters())

    def merged(self) -> torch.Tensor:
        """Read only."""
        if self.adapter is None:
            return self.parameter.detach()
        with torch.no_grad():
            return self.parameter + self.adapter.get_delta_weight("default").to(self.parameter.dtype)


def load_policy(config: LearnerConfig, folder: str, device: torch.device) -> Any:
    """The transformers model of *folder* with frozen parts and adapters as *config* says."""
    model = load_model(folder, DTYPES[config.dtype], device)
    vision, language = model.model.visual, (model.model.language_model, model.lm_head)
    for part in {"nothing": (), "vision": (vision,), "language": language}[config.freeze]:
        part.requires_grad_(False)
    if config.lora_rank > 0:
        _add_adapters(config, model)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def load_model(folder: str, dtype: torch.dtype, device: torch.device) -> Any:
    """Raises ValueError if the model's attention slides, which packed rows do not know."""
    attention = {"text_config": NAME, "vision_config": "sdpa"}
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, attn_implementation=attention)
    if "sliding_attention" in model.config.text_config.layer_types:
        raise ValueError(f"{folder}: its config says use_sliding_window, which the learner's attention does not have")
    return model.to(device)


def published(model: Any) -> dict[str, Published]:
    """Every parameter by its name in the Hugging Face model, tied ones once."""
    adapters = {id(layer.get_base_layer().weight): layer for layer in _adapter_layers(model)}
    found = {}
    for name, parameter in model.named_parameters():
        if ".lora_" not in name:
            adapter = adapters.get(id(parameter))
            found[name.replace(".base_layer.", ".")] = Published(parameter=parameter, adapter=adapter)
    return found


@contextmanager
def without_adapters(model: Any) -> Iterator[None]:
    """The starting policy, for as long as this lasts."""
    layers = _adapter_layers(model)
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def _add_adapters(config: LearnerConfig, model: Any) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    targets = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not model.lm_head and module.weight.requires_grad
    ]
    settings = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=targets, lora_dropout=0.0)
    inject_adapter_in_model(settings, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)


def _adapter_layers(model: Any) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "get_delta_weight")]
