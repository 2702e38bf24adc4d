"""A learner that goes on from a checkpoint makes the same steps as one that was never stopped, bit for bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from learner.checkpoint import open_checkpoint
from tests.learner.plain_step import gradient_difference

BASE: dict[str, Any] = {"learning_rate": 1e-3, "warmup_steps": 6, "schedule": "cosine", "row_tokens": 512}
CONFIGS: dict[str, dict[str, Any]] = {
    "stage 0": {"zero_stage": 0},
    "stage 1": {"zero_stage": 1},
    "stage 2": {"zero_stage": 2, "weight_decay": 0.1},
    "stage 3": {"zero_stage": 3},
    "stage 3, bfloat16": {"zero_stage": 3, "dtype": "bfloat16"},
    "stage 2, offloaded": {"zero_stage": 2, "offload_optimizer": True},
    "adapters": {"zero_stage": 2, "lora_rank": 4},
    "vision frozen, KL": {"zero_stage": 1, "freeze": "vision", "loss": {"kl_weight": 0.1}},
}
ON_TWO = ("stage 0", "stage 1", "stage 2", "stage 3", "stage 3, bfloat16")
BEFORE, AFTER = 2, 10

Results = dict[str, dict[str, Any]]


def run_both(run_ranks: Callable[..., Any], world_size: int, names: Any, batches: Any, root: Path) -> dict[str, Any]:
    """Each config without a stop, with a checkpoint on the way; and then on from there in new processes."""
    folders = {name: root / name for name in names}
    whole = {
        name: {
            "config": BASE | CONFIGS[name],
            "steps": batches,
            "checkpoint_after": BEFORE,
            "job": {"folder": str(folders[name]), "steps": BEFORE + AFTER},
        }
        for name in names
    }
    first = run_ranks(world_size, whole)
    return {"whole": first, "resumed": run_ranks(world_size, resumed(names, batches, folders)), "folders": folders}


def resumed(names: Any, batches: Any, folders: dict[str, Path]) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "config": BASE | CONFIGS[name],
            "steps": batches[BEFORE:],
            "resume": str(folders[name] / "checkpoints" / f"step-{BEFORE:06d}"),
            "job": {"folder": str(folders[name]) + " resumed", "steps": BEFORE + AFTER},
        }
        for name in names
    }


@pytest.fixture(scope="module")
def batches(make_group: Callable[..., Any]) -> list[tuple[Any, ...]]:
    return [(make_group(2 * n, [3, 7, 2]), make_group(2 * n + 1, [5, 1], objects=2)) for n in range(BEFORE + AFTER)]


@pytest.fixture(scope="module")
def alone(run_ranks: Callable[..., Any], batches: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_both(run_ranks, 1, list(CONFIGS), batches, tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def pair(run_ranks: Callable[..., Any], batches: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_both(run_ranks, 2, ON_TWO, batches, tmp_path_factory.mktemp("two"))


def assert_same_bits(whole: dict[str, Any], resumed: dict[str, Any]) -> None:
    assert resumed["start"] == BEFORE
    assert [report.version for report in resumed["reports"]] == list(range(BEFORE + 1, BEFORE + AFTER + 1))
    assert len(resumed["reports"]) == 10
    assert resumed["reports"] == whole["reports"][BEFORE:]  # losses, norms and all statistics
    for before, after in zip(whole["parameters"][BEFORE:], resumed["parameters"], strict=True):
        assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("config", CONFIGS)
def test_ten_steps_after_a_checkpoint_are_bit_identical(config: str, alone: dict[str, Any]) -> None:
    assert_same_bits(alone["whole"][0][config], alone["resumed"][0][config])


@pytest.mark.parametrize("config", ON_TWO)
def test_ten_steps_of_two_ranks_after_a_checkpoint_are_bit_identical(config: str, pair: dict[str, Any]) -> None:
    for whole, resumed in zip(pair["whole"], pair["resumed"], strict=True):
        assert_same_bits(whole[config], resumed[config])


@pytest.mark.parametrize("config", ON_TWO)
def test_two_ranks_read_each_number_of_an_optimizer_once_between_them(config: str, pair: dict[str, Any]) -> None:
    ranks = [rank[config] for rank in pair["resumed"]]
    whole = sum(part.numel() for part in ranks[0]["parameters"][0].values())
    for kind in ("exp_avg", "exp_avg_sq"):
        read = [rank["read"][kind] for rank in ranks]
        assert read == [whole, whole] if config == "stage 0" else sum(read) == whole  # at stage 0 both have all
    masters = [rank["read"]["master"] for rank in ranks]  # all for the weights, and under ZeRO the share as well
    assert sum(masters) == (2 if config == "stage 0" else 3) * whole


@pytest.mark.parametrize("config", ON_TWO)
def test_a_checkpoint_is_as_large_as_was_said(config: str, pair: dict[str, Any]) -> None:
    checkpoint = open_checkpoint(pair["folders"][config] / "checkpoints" / f"step-{BEFORE:06d}")
    for rank, file in zip(pair["whole"], checkpoint.files, strict=True):
        header = int.from_bytes((checkpoint.path / file.name).read_bytes()[:8], "little") + 8
        assert rank[config]["snapshot_bytes"] == file.bytes - header


@pytest.mark.parametrize("writers", [1, 2])
def test_another_number_of_ranks_goes_on_from_the_same_weights_and_optimizer(
    writers: int, run_ranks: Callable[..., Any], batches: Any, alone: dict[str, Any], pair: dict[str, Any]
) -> None:
    written = alone if writers == 1 else pair
    names = ("stage 0", "stage 2", "stage 3", "stage 3, bfloat16")
    jobs = resumed(names, [*batches[: BEFORE + 1]], written["folders"])
    found = run_ranks(3 - writers, jobs)[0]
    for name in names:
        whole = written["whole"][0][name]
        start, stepped = found[name]["parameters"]
        assert all(torch.equal(part, start[key]) for key, part in whole["parameters"][BEFORE].items()), name
        expected, report = whole["reports"][BEFORE], found[name]["reports"][0]
        tolerance = 2e-2 if "bfloat16" in name else 2e-6
        assert report.grad_norm == pytest.approx(expected.grad_norm, rel=tolerance), name
        # Adam's update has the optimiser's state in it: it would differ by most of itself if that were lost.
        update = {key: stepped[key].float() - start[key].float() for key in start}
        whole_update = {
            key: whole["parameters"][BEFORE + 1][key].float() - whole["parameters"][BEFORE][key].float()
            for key in start
        }
        assert gradient_difference(update, whole_update) < (0.5 if "bfloat16" in name else 0.01), name


def test_a_checkpoint_of_other_parameters_is_refused(
    run_ranks: Callable[..., Any], batches: Any, alone: dict[str, Any]
) -> None:
    (job,) = resumed(["adapters"], batches[: BEFORE + 1], alone["folders"]).values()
    plain = job | {"config": BASE | CONFIGS["stage 2"]}
    with pytest.raises(
        AssertionError, match=r"trained other parameters .* go on with the same model, freeze and lora_rank"
    ):
        run_ranks(1, {"plain": plain})
