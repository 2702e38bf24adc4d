"""One rank's DeepSpeed engine: the model, its optimiser and the process group. The only file that imports deepspeed.

Not yet run on a GPU.
Every method is a collective: all ranks call it, in the same order and equally often.
"""

import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from learner.batch import Batch, answer_logprobs
from learner.config import LearnerConfig
from learner.loss import SUMS, Tokens, grpo_loss, spoil_if_not_finite

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_ADAM_EPSILON = 1e-8


class NonFiniteStep(Exception):
    """The loss or the gradient of a step was not finite. No rank was updated; all raise this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """One applied update: the step's weighted sums by name (`SUMS`), over all ranks, and the norm before clipping."""

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
    """The policy on this rank, and the starting policy if the loss needs it."""

    def __init__(
        self,
        config: LearnerConfig,
        model: str,
        *,
        rank: int,
        world_size: int,
        master_addr: str,
        master_port: int,
        temperature: float,
        seed: int,
    ) -> None:
        self.config = config
        self.rank = rank
        self.world_size = world_size
        self.temperature = temperature
        self.device = _join_process_group(config, rank, world_size, master_addr, master_port)
        self.dtype = DTYPES[config.dtype]
        torch.manual_seed(seed)
        policy = self._load(model)
        self.reference = self._load(model).eval().requires_grad_(False) if config.kl_weight > 0 else None
        if config.gradient_checkpointing:
            policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self._wrapped = _Policy(policy, temperature).train()
        self._stage_0_norm = math.nan
        self._engine = self._initialise_deepspeed()

    @property
    def model(self) -> Any:
        """The transformers model. Under ZeRO-3 its weights are empty outside `gathered`."""
        return self._wrapped.model

    def update(self, passes: Iterable[tuple[Batch, Tokens]], step: int) -> Update:
        """Accumulate the gradient of *passes* over all ranks and apply it; *step* counts from 1.

        Raises NonFiniteStep before the update, on all ranks.
        """
        learning_rate = self.config.learning_rate * min(1.0, step / max(1, self.config.warmup_steps))
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        sums = torch.zeros(len(SUMS), dtype=torch.float64, device=self.device)
        largest = torch.zeros((), dtype=torch.float32, device=self.device)
        for batch, tokens in passes:
            logprobs = self._engine(batch)
            result = grpo_loss(logprobs, tokens, self.config, self._reference_logprobs(batch))
            # DeepSpeed takes the mean over ranks; the weights are those of the whole step, so the sum is wanted.
            self._engine.backward(spoil_if_not_finite(result.loss, logprobs) * self.world_size, scale_wrt_gas=False)
            sums += result.sums
            largest = torch.maximum(largest, result.max_abs_log_ratio)
        torch.distributed.all_reduce(sums)
        torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX)
        by_name = dict(zip(SUMS, sums.tolist(), strict=True))
        self._engine.step()
        grad_norm = self._grad_norm()
        if not self._engine.was_step_applied() or not math.isfinite(grad_norm):
            raise NonFiniteStep(f"the loss is {by_name['loss']}, the gradient's norm {grad_norm}; nothing was updated")
        return Update(sums=by_name, max_abs_log_ratio=float(largest), grad_norm=grad_norm, learning_rate=learning_rate)

    @torch.no_grad()
    def logprobs(self, batch: Batch) -> torch.Tensor:
        """`[M]` under the current policy, without gradient."""
        return self._engine(batch)

    @contextmanager
    def gathered(self, names: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
        """These parameters of the model, whole and in its dtype, on every rank. Read only."""
        import deepspeed

        parameters = dict(self.model.named_parameters())
        chosen = {name: parameters[name] for name in names}
        with deepspeed.zero.GatheredParameters(list(chosen.values()), enabled=self.config.zero_stage == 3):
            yield {name: parameter.detach() for name, parameter in chosen.items()}

    def parameter_sizes(self) -> list[tuple[str, int]]:
        """Name in the Hugging Face model and bytes of every parameter, tied ones once."""
        sizes = []
        for name, parameter in self.model.named_parameters():
            count = parameter.ds_numel if hasattr(parameter, "ds_numel") else parameter.numel()
            sizes.append((name, count * parameter.element_size()))
        return sizes

    def barrier(self) -> None:
        torch.distributed.barrier()

    def close(self) -> None:
        """Leave the process group."""
        self._engine.destroy()
        torch.distributed.destroy_process_group()

    def _load(self, model: str) -> Any:
        loaded = AutoModelForImageTextToText.from_pretrained(model, dtype=self.dtype, attn_implementation="sdpa")
        return loaded.to(self.device)

    def _reference_logprobs(self, batch: Batch) -> torch.Tensor | None:
        if self.reference is None:
            return None
        with torch.no_grad():
            return answer_logprobs(self.reference, batch, self.temperature)

    def _initialise_deepspeed(self) -> Any:
        import deepspeed

        config = self.config
        parameters = [parameter for parameter in self._wrapped.parameters() if parameter.requires_grad]
        # One parameter group: of several, DeepSpeed 0.19 links the optimizer state of the first only.
        optimizer = torch.optim.AdamW(
            parameters,
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            eps=_ADAM_EPSILON,
            weight_decay=config.weight_decay,
        )
        settings: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            # The number of passes varies from step to step: a step ends when `step` is called, not after a count.
            "managed_gradient_accumulation": False,
            "zero_optimization": {"stage": config.zero_stage},
            "communication_data_type": "fp32",
            "data_types": {"grad_accum_dtype": "fp32"},
            "steps_per_print": 1_000_000_000,
        }
        if config.dtype == "bfloat16":
            settings["bf16"] = {"enabled": True, "check_grad_overflow": True}
        if config.zero_stage == 0:
            settings["gradient_clipping"] = 0.0  # its default is 1
            optimizer.register_step_pre_hook(self._check_and_clip)
        else:
            settings["gradient_clipping"] = config.max_grad_norm
        engine, *_ = deepspeed.initialize(model=self._wrapped, optimizer=optimizer, config=settings)
        return engine

    def _check_and_clip(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Stage 0 only: there DeepSpeed would apply a gradient that is not finite.

        Gradients are already summed here.
        """
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm)
        self._stage_0_norm = float(norm)
        if not math.isfinite(self._stage_0_norm):
            self._engine.zero_grad()
            raise NonFiniteStep(f"the gradient's norm is {self._stage_0_norm}; nothing was updated")

    def _grad_norm(self) -> float:
        return self._stage_0_norm if self.config.zero_stage == 0 else float(self._engine.get_global_grad_norm())


def _join_process_group(
    config: LearnerConfig, rank: int, world_size: int, master_addr: str, master_port: int
) -> torch.device:
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    if torch.distributed.is_initialized():
        return device  # a process is in one group; a second engine in it shares the group
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

    # Else init_distributed compiles an operator for shared memory: 38 s, and it needs a compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend="nccl" if on_gpu else "gloo",
        auto_mpi_discovery=False,
        timeout=timedelta(seconds=config.timeout_s),
        verbose=False,
    )
    logger.info("rank %d of %d joined at %s:%d", rank, world_size, master_addr, master_port)
    return device
