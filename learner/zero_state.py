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

    copies, own = {}, set(_share(trained, rank, world_size))
    for name, parameter in trained.items():
        for kind in (MASTER, *ADAM_STATES):
            if stage == 0:
                whole = parameter.detach() if kind == MASTER else _adam(engine, stage).state[parameter][kind]
            elif kind == MASTER:
                whole = safe_get_full_fp32_param(parameter)
            else:
                whole = safe_get_full_optimizer_state(parameter, kind)
            if name in own:
                copies[f"{kind}/{name}"] = whole.to("cpu", copy=True)
    return copies


def count_bytes(trained: Trained, rank: int, world_size: int) -> int:
    """Of what `take` returns."""
    own = (trained[name] for name in _share(trained, rank, world_size))
    numbers = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in own)
    return numbers * torch.float32.itemsize * (1 + len(ADAM_STATES))


def set_weights(trained: Trained, checkpoint: Checkpoint) -> None:
    """Before DeepSpeed takes the parameters. Raises ValueError if the checkpoint holds others than *trained*."""
    held = {name.split("/", 1)[1] for name in checkpoint.names() if name.startswith(f"{MASTER}/")}
    if different := held ^ set(trained):
        raise ValueError(
            f"{checkpoint.path} is of a run that trained other parameters ({len(different)} differ, {min(different)} "
            "for one); go on with the same model, freeze and lora_rank"
        )
    values = checkpoint.parts((f"{MASTER}/{name}", 0, parameter.numel()) for name, parameter in trained.items())
    for parameter, value in zip(trained.values(), values, strict=True):
        parameter.data.copy_(value.view(parameter.shape))


def put(engine: Any, stage: int, trained: Trained, rank: int, checkpoint: Checkpoint) -> None:
    """Fill master weights and optimiser with this rank's share, and read no more; the weights are set already.

    DeepSpeed makes Adam's states in the first step; here they are made first, then filled.
    """
    adam = _adam(engine, stage)
    flat = engine.optimizer.fp32_partitioned_groups_flat if stage == 3 else adam.param_groups[0]["params"]
    for part in flat:
        adam.state[part]["step"] = torch.tensor(float(checkpoint.facts["optimizer_step"]))
        adam.state[part] |= {kind: torch.zeros_like(part) for kind in ADAM_STATES}
    if stage in (1, 2):
        engine.optimizer._lazy_init_hp_params_optimizer_state()
    kinds = ADAM_STATES if stage == 0 else (MASTER, *ADAM_STATES)  # at stage 0 the weights are the masters
    held = {name: place for name in trained if (place := _own_place(trained[name], stage, rank))}
    wanted = [(kind, name) for name in held for kind in kinds]
    values = checkpoint.parts((f"{kind}/{name}", *held[name]) for kind, name in wanted)
    for (kind, name), value in zip(wanted, values, strict=True):
        first, last = held[name]
        _set_own(engine, stage, trained[name], kind, _filled_up(value, last - first))


def _own_place(parameter: Any, stage: int, rank: int) -> tuple[int, int] | None:
    """The first number of the flat parameter whose state is on this rank, and the first behind them; None without any.

    ZeRO-3's shares of a parameter are even, and the last of them are filled up with zeros.
    """
    if stage == 0:
        return 0, parameter.numel()
    if stage == 3:
        size = parameter.ds_tensor.numel()
        return rank * size, (rank + 1) * size
    if parameter._hp_mapping is None:
        return None
    address = parameter._hp_mapping.lp_fragment_address
    return address.start, address.start + address.numel


def _set_own(engine: Any, stage: int, parameter: Any, kind: str, value: torch.Tensor) -> None:
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    if stage == 0:
        _adam(engine, stage).state[parameter][kind].copy_(value.view(parameter.shape))
    elif stage < 3:
        parameter._hp_mapping.get_hp_fragment(None if kind == MASTER else kind).data.copy_(value)
    elif kind == MASTER:
        safe_set_local_fp32_param(parameter, value.to(parameter.device))
    else:
        safe_set_local_optimizer_state(parameter, value.to(parameter.device), kind)


def _filled_up(part: torch.Tensor, size: int) -> torch.Tensor:
    return part if len(part) == size else torch.nn.functional.pad(part, (0, size - len(part)))


def _share(trained: Trained, rank: int, world_size: int) -> list[str]:
    """Names of the parameters that rank *rank* writes."""
    return list(trained)[rank::world_size]


def _adam(engine: Any, stage: int) -> torch.optim.Optimizer:
    """PyTorch's optimiser, which under ZeRO holds flat parts of many parameters."""
    return engine.optimizer if stage == 0 else engine.optimizer.optimizer
