"""What DeepSpeed shares out over the ranks, as whole tensors by name, and back: the content of a checkpoint.

Names are `master/NAME`, `exp_avg/NAME` and `exp_avg_sq/NAME`, all float32, NAME being the trained parameter's. So any
number of ranks, at any ZeRO stage, goes on from what others wrote. All ranks call these functions together.
"""

from typing import Any

import torch

from learner.checkpoint import Checkpoint

MASTER = "master"
ADAM_STATES = ("exp_avg", "exp_avg_sq")

Trained = dict[str, Any]  # of torch.nn.Parameter, to which DeepSpeed adds attributes


def count_updates(engine: Any, stage: int) -> int:
    """Updates that the optimiser has counted."""
    states = _adam(engine, stage).state.values()
    return int(next(iter(states))["step"]) if states else 0


def take(engine: Any, stage: int, trained: Trained, rank: int, world_size: int) -> dict[str, torch.Tensor]:
    """Rank *rank*'s share, every so manieth parameter, copied to host memory. There must have been an update."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    copies = {}
    for index, (name, parameter) in enumerate(trained.items()):
        for kind in (MASTER, *ADAM_STATES):
            if stage == 0:
                whole = parameter.detach() if kind == MASTER else _adam(engine, stage).state[parameter][kind]
            elif kind == MASTER:
                whole = safe_get_full_fp32_param(parameter)
            else:
                whole = safe_get_full_optimizer_state(parameter, kind)
            if index % world_size == rank:
                copies[f"{kind}/{name}"] = whole.to("cpu", copy=True)
    return copies


def set_weights(trained: Trained, checkpoint: Checkpoint) -> None:
    """Before DeepSpeed takes the parameters. Raises ValueError if the checkpoint holds others than *trained*."""
    different = set(trained)
    for key, value in checkpoint.read():
        kind, name = key.split("/", 1)
        if kind == MASTER:
            different ^= {name}
            if name in trained:
                trained[name].data.copy_(value)
    if different:
        raise ValueError(
            f"{checkpoint.path} is of a run that trained other parameters ({len(different)} differ, {min(different)} "
            "for one); go on with the same model, freeze and lora_rank"
        )


def put(engine: Any, stage: int, trained: Trained, rank: int, checkpoint: Checkpoint) -> None:
    """Fill master weights and optimiser; the weights themselves are set already.

    DeepSpeed makes Adam's states in the first step; here they are made first, then filled.
    """
    from deepspeed.utils import (
        safe_set_full_fp32_param,
        safe_set_full_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

    adam = _adam(engine, stage)
    flat = engine.optimizer.fp32_partitioned_groups_flat if stage == 3 else adam.param_groups[0]["params"]
    for part in flat:
        adam.state[part]["step"] = torch.tensor(float(checkpoint.facts["optimizer_step"]))
        adam.state[part] |= {kind: torch.zeros_like(part) for kind in ADAM_STATES}
    if stage in (1, 2):
        engine.optimizer._lazy_init_hp_params_optimizer_state()
    for key, value in checkpoint.read():
        kind, name = key.split("/", 1)
        parameter = trained[name]
        if stage == 0:
            if kind != MASTER:
                adam.state[parameter][kind].copy_(value)
        elif stage == 3:
            own = _own_part(value, parameter.ds_tensor.numel(), rank).to(parameter.device)
            if kind == MASTER:
                safe_set_local_fp32_param(parameter, own)
            else:
                safe_set_local_optimizer_state(parameter, own, kind)
        elif kind == MASTER:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, kind)


def _adam(engine: Any, stage: int) -> torch.optim.Optimizer:
    """PyTorch's optimiser, which under ZeRO holds flat parts of many parameters."""
    return engine.optimizer if stage == 0 else engine.optimizer.optimizer


def _own_part(whole: torch.Tensor, size: int, rank: int) -> torch.Tensor:
    """Rank *rank*'s part of ZeRO-3's even shares, the last of which are filled up with zeros."""
    part = whole.flatten()[rank * size : (rank + 1) * size]
    return torch.nn.functional.pad(part, (0, size - len(part)))
