"""One learner rank: groups in, a policy version out.

A plain class with synchronous methods, made a Ray actor where it is placed. Call order: `address` on rank 0, then
`connect` on all ranks at once, then any of the others. Every method from `connect` on is a collective: call it on all
ranks with the same arguments, or the ranks wait for each other for ever; give every call a deadline.
"""

import logging
import socket

import numpy as np
import safetensors.torch

from learner.batch import Batch, Row, build_row, collate_shared, row_length, shared_prompt
from learner.config import LearnerConfig
from learner.encode import PairEncoder
from learner.engine import Engine
from learner.loss import SUMS, Tokens, join_tokens, token_terms
from learner.packing import Pass, plan_passes
from learner.weights import plan_buckets
from tvr.records import PolicyVersion, SampleGroup, ScoredGroup, StepReport

logger = logging.getLogger(__name__)


class LearnerRank:
    """Rank *rank* of *world_size*.

    *model* is a Hugging Face folder; *temperature* is the one that samples are drawn at.
    """

    def __init__(
        self, config: LearnerConfig, model: str, rank: int, world_size: int, temperature: float, seed: int
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; GRPO needs samples drawn at a temperature above 0")
        self._config = config
        self._model = model
        self._rank = rank
        self._world_size = world_size
        self._temperature = temperature
        self._seed = seed
        self._version = PolicyVersion(0)
        self._encoder = PairEncoder(model)
        self._engine: Engine | None = None
        self._buckets: tuple[tuple[str, ...], ...] = ()

    def address(self) -> tuple[str, int]:
        """This host's address and a free port on it. Needed of rank 0 only, before `connect`."""
        host = _own_address()
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.bind((host, 0))
            return host, listener.getsockname()[1]

    def connect(self, master_addr: str, master_port: int) -> None:
        """Join the other ranks and load the policy. Returns when all ranks have."""
        self._engine = Engine(
            self._config,
            self._model,
            rank=self._rank,
            world_size=self._world_size,
            master_addr=master_addr,
            master_port=master_port,
            temperature=self._temperature,
            seed=self._seed,
        )

    def version(self) -> PolicyVersion:
        """Steps in the weights."""
        return self._version

    def step(self, groups: tuple[ScoredGroup, ...]) -> StepReport:
        """Learn from *groups*, all those of the step; this rank takes its share. The report is of the whole step.

        Raises NonFiniteStep on all ranks, before the update, if the loss or the gradient is not finite.
        """
        if not groups:
            raise ValueError("a step needs at least one group")
        terms = [token_terms(group, len(groups), self._config.advantage_scaling) for group in groups]
        samples = tuple(group.group for group in groups)
        plan = plan_passes([row_length(group) for group in samples], self._world_size, self._config.row_tokens)
        # Every picture is read before the first gradient; the masks, which are large, are made a pass at a time.
        laid_out = [(self._lay_out(samples, rows), self._tokens(terms, rows)) for rows in plan[self._rank]]
        passes = ((self._collate(rows), tokens) for rows, tokens in laid_out)
        update = self._connected.update(passes, step=self._version + 1)
        self._version = PolicyVersion(self._version + 1)
        stats = {name: update.sums[name] for name in SUMS if name != "loss"}
        stats |= {"max_abs_log_ratio": update.max_abs_log_ratio, "learning_rate": update.learning_rate}
        return StepReport(
            version=self._version,
            loss=update.sums["loss"],
            grad_norm=update.grad_norm,
            tokens=sum(len(term.weights) for term in terms),
            stats=stats,
        )

    def logprobs(self, groups: tuple[SampleGroup, ...]) -> list[list[np.ndarray]]:
        """The current policy's log-probs of every answer, `[La]` float32, by group and sample.

        All ranks do all of it.
        """
        engine = self._connected
        found: list[list[np.ndarray]] = [[] for _ in groups]
        (passes,) = plan_passes([row_length(group) for group in groups], 1, self._config.row_tokens)
        for rows in passes:
            logprobs = engine.logprobs(self._collate(self._lay_out(groups, rows))).cpu().numpy()
            start = 0
            for row in rows.rows:
                for sample in groups[row].samples:
                    end = start + len(sample.trace.token_ids)
                    found[row].append(logprobs[start:end])
                    start = end
        return found

    def weight_bucket_count(self, max_bytes: int) -> int:
        """Plan the weights into buckets of at most *max_bytes* each (a larger parameter has one to itself)."""
        self._buckets = plan_buckets(self._connected.parameter_sizes(), max_bytes)
        return len(self._buckets)

    def weight_bucket(self, index: int) -> bytes:
        """Bucket *index* of the last plan as a safetensors file, names as in the model's `named_parameters`.

        Rank 0 returns it; the others take part and return nothing. A tied `lm_head` is not in it a second time.
        """
        if not self._buckets:
            raise ValueError("no buckets are planned; call weight_bucket_count first")
        with self._connected.gathered(self._buckets[index]) as tensors:
            if self._rank != 0:
                return b""
            return safetensors.torch.save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})

    def save_model(self, folder: str) -> None:
        """Write a plain Hugging Face folder, processor included. Rank 0 writes; all return when it is whole."""
        engine = self._connected
        with engine.gathered([name for name, _ in engine.parameter_sizes()]) as tensors:
            if self._rank == 0:
                state = {name: tensor.cpu() for name, tensor in tensors.items()}
                engine.model.save_pretrained(folder, state_dict=state)
                self._encoder.processor.save_pretrained(folder)
        engine.barrier()

    def close(self) -> None:
        """Leave the process group; the rank is of no use afterwards."""
        self._connected.close()

    @property
    def _connected(self) -> Engine:
        if self._engine is None:
            raise ValueError(f"learner rank {self._rank} is not connected; call connect first")
        return self._engine

    def _lay_out(self, groups: tuple[SampleGroup, ...], rows: Pass) -> list[Row]:
        rope = self._connected.model.model.get_rope_index
        laid_out = []
        for group in (groups[row] for row in rows.rows):
            pictures = self._encoder.encode(group.prompt, shared_prompt(group))
            laid_out.append(build_row(group, pictures, self._encoder.image_token_id, rope))
        return laid_out

    def _collate(self, rows: list[Row]) -> Batch:
        return collate_shared(rows, self._connected.dtype).to(self._connected.device)

    def _tokens(self, terms: list[Tokens], rows: Pass) -> Tokens:
        weight = 0.0 if rows.is_filler else 1.0
        return join_tokens([terms[row] for row in rows.rows], self._connected.device, weight)


def _own_address() -> str:
    """The address other hosts reach this one at: that of its route outwards (nothing is sent), or else loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # set aside for documentation, RFC 5737
        except OSError as error:
            logger.info("this host has no route outwards (%s); learner ranks must all run on it", error)
            return "127.0.0.1"
        return probe.getsockname()[0]
