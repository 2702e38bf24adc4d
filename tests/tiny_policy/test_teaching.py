"""A stretch of teaching goes on where it was killed, as if nothing had happened."""

import json

import pytest
import torch
from torch import nn

import tiny_policy.teaching
from tiny_policy.teaching import StretchConfig, make_optimizers, teach

CONFIG = StretchConfig(steps=6, batch=1, matrix_rate=1e-2, other_rate=1e-2)


def made() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(4, 4)]), "head": nn.Linear(4, 2)})


def run(module: nn.ModuleDict, out, stop_at: int | None = None) -> None:
    def loss_of(step: int) -> torch.Tensor:
        if step == stop_at:
            raise KeyboardInterrupt
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        return module["head"](torch.relu(module["layers"][0](inputs))).square().mean()

    teach(CONFIG, "part", out, module, loss_of, lambda: {"measured": 1.0}, lambda done, total, note: None)


@pytest.fixture(autouse=True)
def measure_often(monkeypatch):
    monkeypatch.setattr(tiny_policy.teaching, "MEASURE_EVERY", 2)


def test_a_killed_stretch_ends_with_the_same_weights(tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    whole = made()
    run(whole, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(made(), tmp_path / "killed", stop_at=5)
    resumed = made()
    run(resumed, tmp_path / "killed")
    assert all(torch.equal(whole.state_dict()[key], value) for key, value in resumed.state_dict().items())
    rows = [json.loads(line) for line in (tmp_path / "killed" / "curve.jsonl").read_text().splitlines()]
    assert [(row["phase"], row["step"]) for row in rows] == [("part", 2), ("part", 4), ("part", 6)]


def test_a_finished_stretch_only_loads_its_weights(tmp_path):
    first = made()
    run(first, tmp_path)
    again = made()
    run(again, tmp_path, stop_at=0)  # would raise if it did a step
    assert all(torch.equal(first.state_dict()[key], value) for key, value in again.state_dict().items())
    assert len((tmp_path / "curve.jsonl").read_text().splitlines()) == 3


def test_a_checkpoint_of_other_steps_is_not_gone_on_from(tmp_path):
    run(made(), tmp_path)
    longer = CONFIG.model_copy(update={"steps": 8})
    with pytest.raises(
        ValueError, match=r"part.pt: was taught with steps = 6, now 8; remove it .* or give another out"
    ):
        teach(longer, "part", tmp_path, made(), lambda step: torch.zeros(()), dict, lambda done, total, note: None)


@pytest.mark.parametrize(
    ("step", "share"),
    [
        (0, 0.5),  # of 100 steps 2 warm up
        (1, 1.0),
        (50, 0.51),  # 0.02 + 0.98 (1 + cos(pi / 2)) / 2
        (99, 0.020242),  # 0.02 + 0.98 (1 + cos(0.99 pi)) / 2
    ],
)
def test_rates_warm_up_and_fall_along_a_cosine(step, share):
    config = StretchConfig(steps=100, batch=1, matrix_rate=0.1, other_rate=0.3)
    optimizers = make_optimizers(made(), config)
    tiny_policy.teaching._set_rates(optimizers, config, step)
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    assert rates == pytest.approx([0.3 * share, 0.1 * share], rel=1e-3)


def test_muon_has_the_matrices_of_the_layers_alone():
    module = made()
    adamw, muon = make_optimizers(module, CONFIG)
    assert [weight is module["layers"][0].weight for weight in muon.param_groups[0]["params"]] == [True]
    assert len(adamw.param_groups[0]["params"]) == 3
    module["layers"][0].weight.requires_grad_(False)
    assert len(make_optimizers(module, CONFIG)) == 1


def test_a_gradient_that_is_not_finite_is_refused_before_the_update(tmp_path):
    module = made()
    before = {name: value.clone() for name, value in module.state_dict().items()}

    def loss_of(step: int) -> torch.Tensor:
        return module["head"].weight.sum() * float("inf")

    with pytest.raises(FloatingPointError, match="lower the rates"):
        teach(CONFIG, "part", tmp_path, module, loss_of, dict, lambda done, total, note: None)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
