"""TRL's side of `peer_trl`: a GRPOTrainer run that does what a run file says, a JSON line a step.

    python -m tests.bench.peer_trl_run RUN.toml --out steps.jsonl [--set SECTION.KEY=VALUE] [--passes 4]

For the python of the virtual environment that `peer_trl` makes, where the data are rendered already. As in our run are
the policy, the prompts and their order, pictures, messages, reward, batch, length and temperature of answers, the
clipped loss with rewards scaled by their group's spread, AdamW and its warm-up, and the keys of a line. Unlike there,
sampling and learning take turns, and the random numbers are TRL's.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any, TextIO

import torch
from datasets import Dataset, Features, Image, List, Value
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from learner.config import learning_rate
from orchestrator.config import RunConfig, load_run_config
from records.order import PromptOrder
from records.samples import Prompt
from reward_service.rules import load_rule, score
from tasks.tvr.data.dataset import load
from tasks.tvr.task import TASK


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_file", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--passes", type=int, default=4, help="forward and backward passes of a step (%(default)s)")
    options = parser.parse_args()
    config = load_run_config(options.run_file, options.set)
    order = PromptOrder(load(config.data.path, "train"), config.seed)
    prompts = [order.next() for _ in range(config.loop.steps * config.loop.groups_per_step)]
    processor = AutoProcessor.from_pretrained(config.model)
    check_lengths(prompts, processor)
    with options.out.open("w") as file:
        train(config, prompts, processor, StepLog(config, prompts, file), options.passes, options.out.parent)


def check_lengths(prompts: list[Prompt], processor: Any) -> None:
    """Raise ValueError unless all prompts have as many tokens, pictures aside: others end TRL's generation."""
    texts = processor.apply_chat_template([list(prompt.messages) for prompt in prompts], add_generation_prompt=True)
    lengths = sorted({len(token_ids) for token_ids in processor.tokenizer(texts)["input_ids"]})
    if len(lengths) > 1:
        raise ValueError(f"prompts have {lengths} tokens, and TRL's generation needs equal ones; fix data.objects")


class StepLog(TrainerCallback):
    """Scores the samples, and writes a line when their step ends. Times count from the start of training."""

    def __init__(self, config: RunConfig, prompts: list[Prompt], file: TextIO) -> None:
        self._rule = load_rule(TASK, config.reward_service.rule, config.reward_service.options)
        self._prompts = prompts
        self._file = file
        self._row: dict[str, float] = {}

    def reward(
        self, completions: list[Any], completion_ids: list[list[int]], place: list[int], **_: Any
    ) -> list[float]:
        """Called once a step, with all its samples."""
        replies = [turns[0]["content"] for turns in completions]
        golds = [self._prompts[number].gold for number in place]
        scores = [score(TASK, self._rule, reply, gold).total for reply, gold in zip(replies, golds, strict=True)]
        self._row = {
            "reward": sum(scores) / len(scores),
            "answer_length": sum(map(len, completion_ids)) / len(completion_ids),
            "samples": len(scores),
        }
        return scores

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._began = self._last = time.monotonic()

    def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        now = time.monotonic()
        step_s, self._last = now - self._last, now
        times = {"samples_per_s": self._row["samples"] / step_s, "step_s": step_s, "elapsed_s": now - self._began}
        self._file.write(json.dumps({"step": state.global_step, **self._row, **times}) + "\n")
        self._file.flush()


def train(config: RunConfig, prompts: list[Prompt], processor: Any, log: StepLog, passes: int, folder: Path) -> None:
    """One update a batch, *passes* of its samples at a time. Nothing is saved to *folder*."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(config.model, dtype=torch.float32)
    learner, rollout = config.learner, config.rollout
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=learner.learning_rate,
        betas=(learner.beta1, learner.beta2),
        weight_decay=learner.weight_decay,
        fused=True,
    )
    # The trainer's own warm-up would spend its first step at a rate of 0.
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: learning_rate(learner, done + 1, config.loop.steps) / learner.learning_rate
    )
    settings = GRPOConfig(
        output_dir=str(folder),
        seed=config.seed,
        max_steps=config.loop.steps,
        per_device_train_batch_size=config.loop.groups_per_step * rollout.samples_per_prompt // passes,
        gradient_accumulation_steps=passes,
        num_generations=rollout.samples_per_prompt,
        max_completion_length=rollout.max_answer_tokens,
        temperature=rollout.temperature,
        loss_type="grpo",
        scale_rewards="group",
        beta=learner.loss.kl_weight,
        epsilon=learner.loss.clip_low,
        epsilon_high=learner.loss.clip_high,
        delta=learner.loss.ratio_bound,
        max_grad_norm=learner.max_grad_norm,
        shuffle_dataset=False,  # the prompts are in our order already
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        logging_steps=1_000_000,
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model=model,
        processing_class=processor,
        reward_funcs=log.reward,
        args=settings,
        train_dataset=to_rows(prompts),
        optimizers=(optimizer, schedule),
        callbacks=[log],
    )
    trainer.train()


def to_rows(prompts: list[Prompt]) -> Dataset:
    """As TRL wants them: messages with placeholders, the pictures beside them; *place* is the prompt's in the list."""
    part = {"type": Value("string"), "text": Value("string")}
    features = {
        "prompt": List({"role": Value("string"), "content": List(part)}),
        "images": List(Image()),
        "place": Value("int64"),
    }
    columns = {
        "prompt": [list(prompt.messages) for prompt in prompts],
        "images": [[{"bytes": encoded} for encoded in prompt.pictures] for prompt in prompts],
        "place": list(range(len(prompts))),
    }
    return Dataset.from_dict(columns, features=Features(features))


if __name__ == "__main__":
    main()
