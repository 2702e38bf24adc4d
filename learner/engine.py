"""One rank's DeepSpeed engine: the model, its optimiser and the process group. Not yet run on a GPU.

It and `zero_state.py` alone import deepspeed.
Every method is a collective: all ranks call it, in the same order and equally often.
"""

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch

from learner import zero_state
from learner.adapters import without_adapters
from learner.batch import Batch, answer_logprobs
from learner.checkpoint import Checkpoint
from learner.config import LearnerConfig, LearnerJob, learning_rate
from learner.device import missing_cuda
from learner.loss import FARTHEST, TokenLoss, spoil_if_not_finite
from learner.policy import DTYPES, PolicyParameter, load_model, load_policy, policy_parameters

logger = logging.getLogger(__name__)

_ADAM_EPSILON = 1e-8

Loss = Callable[[torch.Tensor], TokenLoss]
"""From the log-probs `[M]` of a pass."""


class NonFiniteStep(Exception):
    """The loss or the gradient of a step was not finite. No rank was updated; all raise this."""


class _Stage0Refused(Exception):
    """Stops the optimiser before it changes anything."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """One applied update: the loss's sums by name, over all ranks, and the gradient's norm before clipping."""

    sums: dict[str, float]
    max_abs_log_ratio: float
    grad_norm: float
    learning_rate: float


class _Policy(torch.nn.Module):
    """Gives DeepSpeed a forward pass that ends in log-probs, so that its hooks cover all of it."""

    def __init__(self, model: Any, temperature: float) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature

    def forward(self, batch: Batch) -> torch.Tensor:
        return answer_logprobs(self.model, batch, self.temperature)


class Engine:
    """The policy on this rank, and the starting policy if the loss needs it.

    With *checkpoint*, weights and optimiser go on from there; its ranks may have been more or fewer. Raises ValueError
    if it holds other parameters than are trained here, and RuntimeError if the job's device is a GPU and there is none.
    """

    def __init__(
        self,
        config: LearnerConfig,
        job: LearnerJob,
        *,
        rank: int,
        world_size: int,
        master_addr: str,
        master_port: int,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self.config = config
        self.job = job
        self.rank = rank
        self.world_size = world_size
        self.device = choose_device(job)
        _join_process_group(config, self.device, rank, world_size, master_addr, master_port)
        torch.manual_seed(job.seed)
        policy = load_policy(config, job.model, self.device)
        self._trained = {name: weight for name, weight in policy.named_parameters() if weight.requires_grad}
        if checkpoint is not None:
            zero_state.set_weights(self._trained, checkpoint)
        self._parameters = policy_parameters(policy)
        self._wrapped = _Policy(policy, job.temperature)
        self._stage_0_norm = math.nan
        self._engine = self._initialise_deepspeed()
        if checkpoint is not None:
            zero_state.put(self._engine, config.zero_stage, self._trained, rank, checkpoint)
        self._reference = self._load_reference()

    @property
    def model(self) -> Any:
        """The transformers model. Under ZeRO-3 its weights are empty outside `gathered`."""
        return self._wrapped.model

    def update(self, passes: Iterable[tuple[Batch, Loss]], names: Sequence[str], step: int) -> Update:
        """Accumulate the gradient of *passes* over all ranks and apply it; *step* counts from 1.

        *names* are those of the loss's sums. Raises NonFiniteStep before the update, on all ranks.
        """
        rate = learning_rate(self.config, step, self.job.steps)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate
        sums = torch.zeros(len(names), dtype=torch.float64, device=self.device)
        largest = torch.zeros((), dtype=torch.float32, device=self.device)
        for batch, loss in passes:
            logprobs = self._engine(batch)
            result = loss(logprobs)
            # DeepSpeed takes the mean over ranks; the weights are those of the whole step, so the sum is wanted.
            self._engine.backward(spoil_if_not_finite(result.loss, logprobs) * self.world_size, scale_wrt_gas=False)
            sums += result.sums
            largest = torch.maximum(largest, result.max_abs_log_ratio)
        torch.distributed.all_reduce(sums)
        torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX)
        by_name = dict(zip(names, sums.tolist(), strict=True))
        is_applied = self._apply()
        grad_norm = self._grad_norm()
        if not is_applied or not math.isfinite(grad_norm):
            raise NonFiniteStep(
                f"the loss is {by_name['loss']}, the gradient's norm {grad_norm}, the largest log-ratio of learner to "
                f"sampler {float(largest):.3g}, up or down (one above {FARTHEST:g} is refused); nothing was updated"
            )
        return Update(sums=by_name, max_abs_log_ratio=float(largest), grad_norm=grad_norm, learning_rate=rate)

    @torch.no_grad()
    def logprobs(self, batch: Batch) -> torch.Tensor:
        """`[M]` under the current policy, without gradient."""
        return self._engine(batch)

    @torch.no_grad()
    def reference_logprobs(self, batches: Iterable[Batch]) -> list[torch.Tensor]:
        """`[M]` of each batch under the starting policy, in host memory.

        With adapters it is the policy itself without them. Otherwise a second model, which is on the device only while
        this runs, or under ZeRO-3 shared out over the ranks.
        """
        if self.config.lora_rank > 0:
            with without_adapters(self.model):
                return [self._engine(batch).cpu() for batch in batches]
        assert self._reference is not None, "no reference was loaded: the loss does not ask for one"
        if self.config.zero_stage == 3:
            return [self._reference(batch).cpu() for batch in batches]
        self._reference.to(self.device)
        found = [self._reference(batch).cpu() for batch in batches]
        self._reference.to("cpu")
        return found

    def probe(self, batch: Batch, loss: Loss) -> tuple[TokenLoss, bool]:
        """The loss of *batch*, and whether the gradient that goes back through the whole model to its pictures has a
        finite norm. No gradient is kept.
        """
        pixels = batch.pixel_values.detach().requires_grad_()
        result = loss(self._wrapped(replace(batch, pixel_values=pixels)))
        (gradient,) = torch.autograd.grad(result.loss, pixels)
        return result, bool(torch.isfinite(gradient.norm()))

    @contextmanager
    def gathered(self, names: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
        """These parameters of the Hugging Face model on every rank, whole, adapters merged, in its dtype. Read only."""
        chosen = {name: self._parameters[name] for name in names}
        with self._whole([parameter for part in chosen.values() for parameter in part.needed]):
            yield {name: part.merged() for name, part in chosen.items()}

    def parameters(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """Name in the Hugging Face model, dtype and whole shape of every parameter, tied ones once."""
        return [_describe(name, part) for name, part in self._parameters.items()]

    def published_parameters(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """Those of `parameters` that a version consists of; the others stay as in the run's model folder."""
        return [_describe(name, part) for name, part in self._parameters.items() if part.is_published]

    def optimizer_step(self) -> int:
        """Updates that the optimiser has counted."""
        return zero_state.count_updates(self._engine, self.config.zero_stage)

    def snapshot(self) -> dict[str, torch.Tensor]:
        """This rank's share of the trained weights and optimiser states, copied to host memory."""
        return zero_state.take(self._engine, self.config.zero_stage, self._trained, self.rank, self.world_size)

    def snapshot_bytes(self) -> int:
        """Those of `snapshot`."""
        return zero_state.count_bytes(self._trained, self.rank, self.world_size)

    def barrier(self) -> None:
        torch.distributed.barrier()

    def share(self, own: Any) -> list[Any]:
        """What each rank gave, by rank."""
        shared: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(shared, own)
        return shared

    def close(self) -> None:
        """Leave the process group."""
        self._engine.destroy()
        torch.distributed.destroy_process_group()

    @contextmanager
    def _whole(self, parameters: list[torch.nn.Parameter]) -> Iterator[None]:
        import deepspeed

        with deepspeed.zero.GatheredParameters(parameters, enabled=self.config.zero_stage == 3):
            yield

    def _load_reference(self) -> Any | None:
        import deepspeed

        if not self.config.loss.needs_reference or self.config.lora_rank > 0:
            return None
        # ZeRO-3 shares it out from the device; otherwise it waits in the host's memory.
        device = self.device if self.config.zero_stage == 3 else torch.device("cpu")
        model = load_model(self.job.reference, DTYPES[self.config.dtype], device).eval().requires_grad_(False)
        wrapped = _Policy(model, self.job.temperature)
        if self.config.zero_stage < 3:
            return wrapped
        settings = self._settings() | {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}
        if self.device.type == "cpu":
            del settings["zero_optimization"]["offload_param"]
        reference, *_ = deepspeed.initialize(model=wrapped, config=settings)
        return reference

    def _settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            # The number of passes varies from step to step: a step ends when `step` is called, not after a count.
            "managed_gradient_accumulation": False,
            "communication_data_type": "fp32",
            "data_types": {"grad_accum_dtype": "fp32"},
            "steps_per_print": 1_000_000_000,
        }
        if self.config.dtype == "bfloat16":
            settings["bf16"] = {"enabled": True, "check_grad_overflow": True}
        return settings

    def _initialise_deepspeed(self) -> Any:
        import deepspeed

        config = self.config
        optimizer = make_optimizer(config, self._trained.values())
        settings = self._settings() | {
            "zero_optimization": zero_settings(config, self.device),
            "zero_force_ds_cpu_optimizer": False,  # PyTorch's AdamW, offloaded or not
            "gradient_clipping": config.max_grad_norm,
        }
        if config.zero_stage == 0:
            settings["gradient_clipping"] = 0.0  # its default is 1
            optimizer.register_step_pre_hook(self._check_and_clip)
        engine, *_ = deepspeed.initialize(model=self._wrapped, optimizer=optimizer, config=settings)
        return engine

    def _apply(self) -> bool:
        try:
            self._engine.step()
        except _Stage0Refused:
            self._engine.zero_grad()
            return False
        is_applied = self._engine.was_step_applied()
        if not is_applied and self.config.offload_optimizer and self.config.zero_stage in (1, 2):
            # DeepSpeed 0.19 would add the next step to a refused one that was offloaded and accumulated in float32.
            averaged = self._engine.optimizer.averaged_gradients
            averaged.update(dict.fromkeys(averaged))
        return is_applied

    def _check_and_clip(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Stage 0 only: there DeepSpeed would apply a gradient that is not finite.

        Gradients are already summed here.
        """
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm)
        self._stage_0_norm = float(norm)
        if not math.isfinite(self._stage_0_norm):
            raise _Stage0Refused

    def _grad_norm(self) -> float:
        return self._stage_0_norm if self.config.zero_stage == 0 else float(self._engine.get_global_grad_norm())


def make_optimizer(config: LearnerConfig, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.AdamW:
    """One parameter group: of several, DeepSpeed 0.19 links the optimizer state of the first only."""
    return torch.optim.AdamW(
        parameters,
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=_ADAM_EPSILON,
        weight_decay=config.weight_decay,
        fused=True if config.offload_optimizer else None,  # reads the host's memory once, not once an operation
    )


def zero_settings(config: LearnerConfig, device: torch.device) -> dict[str, Any]:
    """What DeepSpeed shares out and where it keeps it."""
    settings: dict[str, Any] = {"stage": config.zero_stage}
    if config.offload_optimizer:
        settings["offload_optimizer"] = {"device": "cpu", "pin_memory": device.type == "cuda"}
    return settings


def choose_device(job: LearnerJob) -> torch.device:
    """Raises RuntimeError, with the remedy, if it is a GPU that torch does not reach."""
    if job.device == "cpu":
        return torch.device("cpu")
    if (missing := missing_cuda()) is not None:
        raise RuntimeError(f"the learner was given a GPU, and {missing}")
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & set(os.environ):
        # Passes have all lengths. Not by the environment, which torch may have read when it was imported.
        torch._C._accelerator_setAllocatorSettings("expandable_segments:True")
    return torch.device("cuda", 0)  # a rank's process sees one


def _describe(name: str, part: PolicyParameter) -> tuple[str, torch.dtype, tuple[int, ...]]:
    shape = getattr(part.parameter, "ds_shape", part.parameter.shape)  # the first where it is shared out
    return name, part.parameter.dtype, tuple(shape)


def _join_process_group(
    config: LearnerConfig, device: torch.device, rank: int, world_size: int, master_addr: str, master_port: int
) -> None:
    if torch.distributed.is_initialized():
        return  # a process is in one group; a second engine in it shares the group
    on_gpu = device.type == "cuda"
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": "0",  # a rank's process sees one device
        "MASTER_ADDR": master_addr,
        "MASTER_PORT": str(master_port),
    }
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    import deepspeed  # after DS_ACCELERATOR, which it reads when imported

    if not on_gpu:
        # Else init_distributed compiles an operator for shared memory: 38 s, and it needs a compiler. Not on a GPU,
        # where the first look at this table probes all operators.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend, timeout = "nccl" if on_gpu else "gloo", timedelta(seconds=config.timeout_s)
    # Every rank is a guest at the store that rank 0 holds already: a port that is free when it is asked for may be
    # taken when it is needed.
    store = torch.distributed.TCPStore(master_addr, master_port, is_master=False, timeout=timeout)
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False)  # takes the group that is there
    logger.info("rank %d of %d joined at %s:%d", rank, world_size, master_addr, master_port)
