"""How the policy comes from its folder: without a copy in host memory, and each weight in the dtype asked for."""

import re
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText

from learner.policy import load_model

CPU = torch.device("cpu")


def test_weights_that_keep_their_dtype_are_the_pages_of_their_file(policy_folder: str) -> None:
    model = load_model(policy_folder, torch.float32, CPU)
    file = re.escape(f"{policy_folder}/model.safetensors")
    mapped = re.findall(rf"^(\w+)-(\w+) .* {file}$", Path("/proc/self/maps").read_text(), re.MULTILINE)
    places = [range(int(first, 16), int(last, 16)) for first, last in mapped]
    for name, parameter in model.named_parameters():
        assert any(parameter.data_ptr() in place for place in places), name


def test_weights_of_another_dtype_are_those_that_transformers_makes_of_them(policy_folder: str) -> None:
    model = load_model(policy_folder, torch.bfloat16, CPU)
    expected = AutoModelForImageTextToText.from_pretrained(policy_folder, dtype=torch.bfloat16)
    for (name, part), (own_name, own) in zip(expected.named_parameters(), model.named_parameters(), strict=True):
        assert name == own_name
        assert own.dtype == torch.bfloat16
        assert torch.equal(part, own), name
    assert model.lm_head.weight is model.get_input_embeddings().weight
    buffers = dict(model.named_buffers())
    assert buffers
    for name, buffer in expected.named_buffers():
        assert buffers[name].dtype == buffer.dtype, name
        assert torch.equal(buffers[name], buffer), name
