"""One learner rank: groups in, a policy version out.

A plain class with synchronous methods, made a Ray actor where it is placed. Call order: `damage` on all ranks if there
is a checkpoint to go on from, `host_meeting` on rank 0, then `connect` on all ranks at once, then any of the others.
Every method from `connect` on is a collective: call it on all ranks with the same arguments, or the ranks wait for each
other for ever; give every call a deadline.
"""

import logging
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from learner.batch import Batch, BatchRow, Prompted, collate, lay_out_prompt, shared_prompt
from learner.checkpoint import Checkpoint, CheckpointWriter
from learner.config import CHECKPOINTS, LearnerConfig, LearnerJob
from learner.encode import PictureEncoder
from learner.engine import Engine, Loss, NonFiniteStep
from learner.loss import (
    NLL_SUMS,
    SUMS,
    TokenLoss,
    Tokens,
    has_gradient,
    imitation_tokens,
    join_tokens,
    nll_loss,
    policy_loss,
    step_tokens,
)
from learner.packing import GroupLengths, Pass, Row, plan_passes, split_group
from learner.refused import Examined, explain, save_refused
from learner.saving import save_policy
from learner.sft import make_example
from learner.weights import make_staging, pack_bucket, plan_buckets
from records.manifest import Manifest, TensorInfo
from records.samples import PolicyVersion, Prompt, SampleGroup, ScoredGroup, StepReport

if TYPE_CHECKING:
    from learner.nccl import NcclSender

logger = logging.getLogger(__name__)

PassLoss = Callable[[torch.Tensor, Tokens], TokenLoss]

REFUSED = "refused"


class LearnerRank:
    """Rank *rank* of *world_size*."""

    def __init__(self, config: LearnerConfig, job: LearnerJob, rank: int, world_size: int) -> None:
        self._config = config
        self._job = job
        self._rank = rank
        self._world_size = world_size
        self._version = PolicyVersion(0)
        self.completed = 0
        """Passes and buckets so far; it grows as long as the rank, and those that it waits for, do not hang."""
        self._encoder = PictureEncoder(job.model)
        self._engine: Engine | None = None
        self._meeting: torch.distributed.TCPStore | None = None
        self._buckets: tuple[tuple[str, ...], ...] = ()
        self._staging: torch.Tensor | None = None
        self._sender: NcclSender | None = None
        self._writer = CheckpointWriter(
            Path(job.folder) / CHECKPOINTS,
            keep=job.keep_checkpoints,
            rank=rank,
            world_size=world_size,
            timeout_s=job.checkpoint_timeout_s,
        )

    def host_meeting(self) -> tuple[str, int]:
        """Where the ranks meet: this host's address and a port, held from now on. Of rank 0, before `connect`."""
        self._meeting = torch.distributed.TCPStore(_own_address(), 0, is_master=True, wait_for_workers=False)
        return self._meeting.host, self._meeting.port

    def address(self) -> tuple[str, int]:
        """This host's address and a port that is free now, for who listens there itself (vLLM's NCCL transfer)."""
        host = _own_address()
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.bind((host, 0))
            return host, listener.getsockname()[1]

    def damage(self, checkpoint: Checkpoint) -> tuple[str, ...]:
        """What is wrong with the bytes of this rank's share of *checkpoint*; all ranks together read each once."""
        return checkpoint.damage(self._rank, self._world_size)

    def connect(self, master_addr: str, master_port: int, checkpoint: Checkpoint | None = None) -> PolicyVersion:
        """Meet the other ranks and load the policy, or go on from *checkpoint*, whoever wrote it.

        Its bytes are taken as they are: see `damage`. Returns the version of the weights when all ranks have them.
        """
        self._engine = Engine(
            self._config,
            self._job,
            rank=self._rank,
            world_size=self._world_size,
            master_addr=master_addr,
            master_port=master_port,
            checkpoint=checkpoint,
        )
        if checkpoint is not None:
            self._version = checkpoint.version
        return self._version

    def version(self) -> PolicyVersion:
        """Steps in the weights."""
        return self._version

    def step(self, groups: tuple[ScoredGroup, ...]) -> StepReport:
        """Learn from *groups*, all those of the step; this rank takes its share. The report is of the whole step.

        Groups that cannot move the policy (equal rewards) do not go through the model. Raises NonFiniteStep on all
        ranks, before the update, if the loss or the gradient is not finite: it names the groups that are the cause,
        which are saved with the policy in the run's folder.
        """
        if not groups:
            raise ValueError("a step needs at least one group")
        samples = [group.group for group in groups]
        prompts = _Prompts(samples, self._lay_out)
        tokens, learned = self._weigh(groups, prompts)
        loss = partial(policy_loss, config=self._config.loss)
        try:
            report = self._update(samples, prompts, tokens, learned, loss, SUMS)
        except NonFiniteStep as error:
            examined = self._examine(samples, prompts, tokens, learned, loss)
            folder = Path(self._job.folder) / REFUSED / f"step-{self._version + 1:06d}"
            self.save_model(str(folder / "model"))
            if self._rank == 0:
                save_refused(folder, groups, examined, self._config, self._job)
            said = f"step {self._version + 1}: {error}. {explain(examined)}"
            raise NonFiniteStep(
                f"{said}; saved in {folder}, star-r1 replay shows it again. To go on behind it, begin another run from "
                f"its policy, --set model={folder}/model, with another seed or with a mask, for example --set "
                "learner.loss.sequence_mask_high=10"
            ) from error
        allowed = self._job.max_answer_tokens - self._config.loss.overlong_buffer_tokens
        lengths = np.array([len(sample.trace.token_ids) for group in samples for sample in group.samples])
        shares = {
            "equal_groups": 1 - len(learned) / len(groups),  # those that no gradient came from
            "overlong_fraction": float((lengths > allowed).mean()),
        }
        return replace(report, stats=report.stats | shares)

    def examine(self, groups: tuple[ScoredGroup, ...]) -> list[Examined]:
        """The loss of each group of a step that can move the policy, and where it is not finite. Nothing is updated.

        All ranks do all of it.
        """
        samples = [group.group for group in groups]
        prompts = _Prompts(samples, self._lay_out)
        return self._examine(
            samples, prompts, *self._weigh(groups, prompts), partial(policy_loss, config=self._config.loss)
        )

    def imitate(self, prompts: tuple[Prompt, ...], answers: tuple[str, ...]) -> StepReport:
        """Supervised fine-tuning on the right *answers* to *prompts*, all those of the step.

        Raises NonFiniteStep as `step` does; nothing is saved, the prompts are in the data set under the ids it names.
        """
        groups = [make_example(*each, self._encoder) for each in zip(prompts, answers, strict=True)]
        tokens = [[part] for part in imitation_tokens([len(group.samples[0].trace.token_ids) for group in groups])]
        laid_out, every = _Prompts(groups, self._lay_out), range(len(groups))
        try:
            return self._update(groups, laid_out, tokens, every, nll_loss, NLL_SUMS)
        except NonFiniteStep as error:
            examined = self._examine(groups, laid_out, tokens, every, nll_loss)
            raise NonFiniteStep(f"step {self._version + 1}: {error}. {explain(examined)}") from error

    def logprobs(self, groups: tuple[SampleGroup, ...]) -> list[list[np.ndarray]]:
        """The current policy's log-probs of every answer, `[La]` float32, by group and sample.

        All ranks do all of it.
        """
        engine, prompts = self._connected, _Prompts(groups, self._lay_out)
        (passes,) = plan_passes(_lengths(groups, range(len(groups))), 1, self._config.row_tokens)
        found = [engine.logprobs(self._collate(groups, prompts, rows.rows)).cpu() for rows in passes]
        return _by_sample(groups, zip(passes, found, strict=True))

    def weight_bucket_count(self, max_bytes: int) -> int:
        """Plan what is published into buckets of at most *max_bytes* each (a larger parameter has one to itself)."""
        engine = self._connected
        sizes = {name: prod(shape) * dtype.itemsize for name, dtype, shape in engine.published_parameters()}
        self._buckets = plan_buckets(list(sizes.items()), max_bytes)
        if engine.device.type == "cuda" and self._staging is None:  # the plan is the same for every version
            self._staging = make_staging(max(sum(sizes[name] for name in names) for names in self._buckets))
        return len(self._buckets)

    def weight_bucket(self, index: int) -> tuple[tuple[TensorInfo, ...], dict[str, np.ndarray]]:
        """Bucket *index* of the last plan and its part of the manifest, adapters merged (`records.manifest`).

        The ranks take turns: one returns them, rank *index* modulo their number, the others nothing. A tied `lm_head`
        is not in it a second time. The arrays may be the parameters themselves, or lie where the rank's next bucket
        will: copy them before the next call.
        """
        self.completed += 1
        if not self._buckets:
            raise ValueError("no buckets are planned; call weight_bucket_count first")
        is_its_turn, is_shared_out = index % self._world_size == self._rank, self._config.zero_stage == 3
        if not is_its_turn and not is_shared_out:
            return (), {}
        with self._connected.gathered(self._buckets[index]) as tensors:
            return pack_bucket(tensors, keep=is_shared_out, staging=self._staging) if is_its_turn else ((), {})

    def manifest(self, version: PolicyVersion) -> Manifest:
        """Of all that is published, without checksums: it travels by `broadcast`."""
        infos = tuple(
            TensorInfo(name=name, dtype=str(dtype).removeprefix("torch."), shape=shape, checksum="")
            for name, dtype, shape in self._connected.published_parameters()
        )
        return Manifest(version=version, buckets=(infos,), is_whole=self._config.trains_all)

    def join_broadcast(self, address: str, port: int, world_size: int) -> None:
        """Meet the engines' workers at *address* of rank 0; *world_size* counts all. Not yet run on a GPU."""
        from learner.nccl import NcclSender  # it imports vllm, which takes seconds

        self._sender = NcclSender(self._connected, self._rank, address, port, world_size)

    def broadcast(self) -> None:
        """Send what is published to the engines' workers, who must be receiving. Not yet run on a GPU."""
        if self._sender is None:
            raise ValueError("nobody to broadcast to; call join_broadcast first")
        self._sender.send()

    def save_model(self, folder: str) -> None:
        """Write a plain Hugging Face folder, processor included. Rank 0 writes; all return when it is whole."""
        save_policy(self._connected, Path(folder))
        if self._rank == 0:
            self._encoder.processor.save_pretrained(folder)
        self._connected.barrier()

    def snapshot_bytes(self) -> tuple[str, int]:
        """This host's address, and how much of its memory this rank's share of a checkpoint takes."""
        return _own_address(), self._connected.snapshot_bytes()

    def save_checkpoint(self) -> None:
        """Copy weights and optimiser to host memory, and write them while later steps run.

        Raises what the writing of the last checkpoint raised.
        """
        engine = self._connected
        self._writer.begin(self._version)
        engine.barrier()
        facts = {"optimizer_step": engine.optimizer_step(), "model": self._job.model}
        self._writer.write(self._version, engine.snapshot(), facts)

    def finish_checkpoint(self) -> None:
        """Return when the last checkpoint is written. Raises what its writing raised."""
        self._writer.wait()

    def close(self) -> None:
        """Leave the process group; the rank is of no use afterwards."""
        self._writer.wait()
        self._connected.close()

    @property
    def _connected(self) -> Engine:
        if self._engine is None:
            raise ValueError(f"learner rank {self._rank} is not connected; call connect first")
        return self._engine

    def _update(
        self,
        groups: Sequence[SampleGroup],
        prompts: "_Prompts",
        tokens: Sequence[Sequence[Tokens]],
        learned: Sequence[int],
        loss: PassLoss,
        names: Sequence[str],
    ) -> StepReport:
        """One update on the groups *learned* (indices); without any, Adam's momentum still moves the policy."""
        engine = self._connected
        plan = plan_passes(_lengths(groups, learned or [0]), self._world_size, self._config.row_tokens)
        own = plan[self._rank]
        seen: list[torch.Tensor] | None = [] if self._job.keeps_logprobs and learned else None
        for rows in own:  # every picture is read before the first gradient
            for row in rows.rows:
                prompts.get(row.group)

        def passes() -> Iterator[tuple[Batch, Loss]]:
            for rows in own:
                weight = 0.0 if rows.is_filler or not learned else 1.0
                parts = join_tokens(_pick(tokens, rows.rows), engine.device, weight)
                yield self._collate(groups, prompts, rows.rows), _bind(loss, parts, seen)

        update = engine.update(passes(), names, step=self._version + 1)
        self._version = PolicyVersion(self._version + 1)
        # A mean over no token is not 0.
        stats = {name: update.sums[name] for name in names if name != "loss" and learned}
        stats |= {"max_abs_log_ratio": update.max_abs_log_ratio, "learning_rate": update.learning_rate}
        return StepReport(
            version=self._version,
            loss=update.sums["loss"],
            grad_norm=update.grad_norm,
            tokens=sum(len(part.weights) for index in learned for part in tokens[index]),
            stats=stats,
            logprobs=() if seen is None else tuple(map(tuple, self._of_all_ranks(groups, plan, seen))),
        )

    def _reference_logprobs(self, groups: Sequence[SampleGroup], prompts: "_Prompts") -> list[list[np.ndarray]]:
        """By group and sample, on every rank; each rank does its share."""
        engine = self._connected
        plan = plan_passes(_lengths(groups, range(len(groups))), self._world_size, self._config.row_tokens)
        own = plan[self._rank]
        found = engine.reference_logprobs(self._collate(groups, prompts, rows.rows) for rows in own)
        return self._of_all_ranks(groups, plan, found)

    def _of_all_ranks(
        self, groups: Sequence[SampleGroup], plan: Sequence[Sequence[Pass]], own: Sequence[torch.Tensor]
    ) -> list[list[np.ndarray]]:
        """By group and sample, from the log-probs `[M]` of this rank's *own* passes of the *plan*, in its order."""
        shared = self._connected.share([logprobs.cpu().numpy() for logprobs in own])
        pairs = [
            (rows, torch.from_numpy(logprobs))
            for passes, results in zip(plan, shared, strict=True)
            for rows, logprobs in zip(passes, results, strict=True)
        ]
        return _by_sample(groups, pairs)

    def _weigh(
        self, groups: Sequence[ScoredGroup], prompts: "_Prompts"
    ) -> tuple[Sequence[Sequence[Tokens]], Sequence[int]]:
        """Advantages and weights of the whole step, and the groups (indices) that can move the policy."""
        config = self._config.loss
        reference = None
        if config.needs_reference:
            reference = self._reference_logprobs([group.group for group in groups], prompts)
        tokens = step_tokens(groups, config, self._job.max_answer_tokens, reference)
        return tokens, [index for index, parts in enumerate(tokens) if has_gradient(parts, config)]

    def _examine(
        self,
        groups: Sequence[SampleGroup],
        prompts: "_Prompts",
        tokens: Sequence[Sequence[Tokens]],
        learned: Sequence[int],
        loss: PassLoss,
    ) -> list[Examined]:
        """Every rank does every group alone, row by row, so that they agree."""
        engine = self._connected
        found = []
        for lengths in _lengths(groups, learned):
            total, odd, gradient_is_finite = 0.0, [], True
            for row in split_group(lengths, self._config.row_tokens):
                parts = join_tokens(_pick(tokens, [row]), engine.device)
                result, finite = engine.probe(self._collate(groups, prompts, [row]), _bind(loss, parts))
                total += float(result.loss)
                odd += [row.samples[index] for index, fine in enumerate(result.finite_by_sample.tolist()) if not fine]
                gradient_is_finite = gradient_is_finite and finite
            prompt_id = groups[lengths.group].prompt.id
            found.append(Examined(lengths.group, prompt_id, total, tuple(odd), gradient_is_finite))
        return found

    def _lay_out(self, group: SampleGroup) -> Prompted:
        pictures = self._encoder.encode(group.prompt, shared_prompt(group))
        rope = self._connected.model.model.get_rope_index
        return lay_out_prompt(group, pictures, self._encoder.image_token_id, rope)

    def _collate(self, groups: Sequence[SampleGroup], prompts: "_Prompts", rows: Sequence[Row]) -> Batch:
        self.completed += 1
        laid_out = [
            BatchRow(
                prompted=prompts.get(row.group),
                answers=tuple(groups[row.group].samples[sample].trace.token_ids for sample in row.samples),
            )
            for row in rows
        ]
        return collate(laid_out).to(self._connected.device)


class _Prompts:
    """The prompts of a step, each laid out once, when it is first needed."""

    def __init__(self, groups: Sequence[SampleGroup], lay_out: Callable[[SampleGroup], Prompted]) -> None:
        self._groups = groups
        self._lay_out = lay_out
        self._done: dict[int, Prompted] = {}

    def get(self, group: int) -> Prompted:
        if group not in self._done:
            self._done[group] = self._lay_out(self._groups[group])
        return self._done[group]


def _lengths(groups: Sequence[SampleGroup], chosen: Sequence[int]) -> list[GroupLengths]:
    return [
        GroupLengths(
            group=index,
            prompt=len(shared_prompt(groups[index])),
            answers=tuple(len(sample.trace.token_ids) for sample in groups[index].samples),
        )
        for index in chosen
    ]


def _bind(loss: PassLoss, tokens: Tokens, seen: list[torch.Tensor] | None = None) -> Loss:
    """*loss* of a pass with these *tokens*, whose log-probs are *seen*."""

    def bound(logprobs: torch.Tensor) -> TokenLoss:
        if seen is not None:
            seen.append(logprobs.detach())
        return loss(logprobs, tokens)

    return bound


def _pick(tokens: Sequence[Sequence[Tokens]], rows: Sequence[Row]) -> list[Tokens]:
    return [tokens[row.group][sample] for row in rows for sample in row.samples]


def _by_sample(groups: Sequence[SampleGroup], results: Iterable[tuple[Pass, torch.Tensor]]) -> list[list[np.ndarray]]:
    """From each pass and its log-probs `[M]`; passes that only fill up are left out."""
    found: list[list[np.ndarray]] = [[np.empty(0, np.float32)] * len(group.samples) for group in groups]
    for rows, logprobs in results:
        places = [] if rows.is_filler else [(row.group, sample) for row in rows.rows for sample in row.samples]
        lengths = [len(groups[group].samples[sample].trace.token_ids) for group, sample in places]
        for (group, sample), part in zip(places, logprobs[: sum(lengths)].split(lengths), strict=True):
            found[group][sample] = part.numpy()
    return found


def _own_address() -> str:
    """The address other hosts reach this one at: that of its route outwards (nothing is sent), or else loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # set aside for documentation, RFC 5737
        except OSError as error:
            logger.info("this host has no route outwards (%s); learner ranks must all run on it", error)
            return "127.0.0.1"
        return probe.getsockname()[0]
