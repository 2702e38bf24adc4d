"""Supervised pretraining of a tiny policy on rendered scenes: to see, and to keep the reply format.

Three kinds of examples, mixed by phase. *name*: one picture, the reply lists its objects. *pair*: the real prompt, the
reply compares the objects one by one and then answers with the changes. *compare*: the same without pictures, which
costs next to nothing: the reasoning is given, and the answer is learnt from it. Most pairs differ in many cells: with
one or two changes among a dozen cells, copying the list in the prompt is almost right, and nothing would make it look.

The run is resumable: batches depend on (seed, step) alone, and a checkpoint holds model, optimiser and step.
"""

import json
import logging
import math
import os
import random
import shutil
import time
import tomllib
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from transformers import AutoModelForImageTextToText, AutoProcessor

from learner.tiny_policy import make_tiny_policy
from tvr.answer import format_answer
from tvr.prompt import build_messages
from tvr.scene import ATTRIBUTES, Scene, difference
from tvr.scene_states import StatePicture, load_states, make_states

logger = logging.getLogger(__name__)

HELD_OUT_SHARE = 0.04
CHECKPOINT_EVERY = 200
NEARBY = ((0, 1), (1, 0), (2, 3), (3, 2))  # states that one or two changes lead between, see tvr/scene_states.py


class StatesConfig(BaseModel):
    """Which scenes to render for pretraining."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path = Field(description="Where the rendered shards lie; rendered there if missing.")
    scenes: int = Field(gt=0, description="Number of scenes, four states each. More generalise better.")
    objects: tuple[int, int] = Field(description="Smallest and largest number of objects in a scene.")
    size: tuple[int, int] = Field(description="Picture width and height in pixels.")
    spp: int = Field(gt=0, description="Samples per pixel. More is less noisy and slower.")
    field_of_view: float = Field(description="Horizontal, of the cameras, in degrees; as in the data set to train on.")
    seed: int = Field(description="Seed of the scenes.")
    workers: int = Field(gt=0, description="Rendering processes.")


class PhaseConfig(BaseModel):
    """One stretch of training with its own mix and learning-rate curve."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(gt=0, description="Optimiser steps.")
    batch: int = Field(gt=0, description="Examples a step.")
    optimizer: Literal["adamw", "muon"] = Field(
        description="muon orthogonalises the updates of matrices (vectors and embeddings keep AdamW): it leaves "
        "plateaus, such as telling shapes apart, that AdamW stays on."
    )
    learning_rate: float = Field(gt=0, description="Peak; 2 % warm-up, then a cosine to a tenth.")
    name_share: float = Field(ge=0, le=1, description="Share of name examples.")
    compare_share: float = Field(ge=0, le=1, description="Share of compare examples; what is left are pairs.")
    nearby_share: float = Field(ge=0, le=1, description="Share of the pairs that differ in one or two cells only.")


class PretrainConfig(BaseModel):
    """A pretraining run file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: Path = Field(description="Run directory: checkpoint, curve and the final model folder.")
    start: Path | None = Field(default=None, description="Model folder to go on from; without it a fresh tiny policy.")
    seed: int = Field(description="Seed of the weights and of the order of examples.")
    threads: int = Field(gt=0, description="CPU threads.")
    precision: Literal["float32", "bfloat16"] = Field(description="bfloat16 runs matrix products in it (autocast).")
    states: StatesConfig
    phases: list[PhaseConfig] = Field(min_length=1, description="Run in order.")


def load_pretrain_config(path: Path) -> PretrainConfig:
    """Read a run file. Raises pydantic.ValidationError and tomllib.TOMLDecodeError."""
    return PretrainConfig.model_validate(tomllib.loads(path.read_text()))


def pretrain(config: PretrainConfig) -> Path:
    """Run or resume; returns the model folder: bfloat16 weights, processor, recipe and curve."""
    torch.set_num_threads(config.threads)
    config.out.mkdir(parents=True, exist_ok=True)
    states = config.states
    rendering = make_states(
        states.folder,
        num_scenes=states.scenes,
        objects=states.objects,
        size=states.size,
        spp=states.spp,
        field_of_view=states.field_of_view,
        seed=states.seed,
        workers=states.workers,
    )
    for done in rendering:
        if done % 500 == 0:
            logger.info("rendered %d of %d scenes", done, states.scenes)

    start = config.start or config.out / "start"
    if not start.exists():
        make_tiny_policy(start, config.seed)
    processor = AutoProcessor.from_pretrained(start)
    model = AutoModelForImageTextToText.from_pretrained(start, attn_implementation="eager", dtype=torch.float32)
    data = ExampleSource(load_states(states.folder), processor, config.seed)
    _train(config, model, data)
    folder = config.out / "model"
    model.to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "recipe.json").write_text(config.model_dump_json(indent=2) + "\n")
    shutil.copy(config.out / "curve.jsonl", folder)
    return folder


class ExampleSource:
    """Batches of examples from rendered states. The last 4 % of the scenes are held out for the curve."""

    def __init__(self, pictures: list[StatePicture], processor: Any, seed: int) -> None:
        self.processor = processor
        self.seed = seed
        self.scenes: dict[int, dict[int, list[int]]] = {}
        for index, item in enumerate(pictures):
            self.scenes.setdefault(item.scene_id, {}).setdefault(item.state_id, []).append(index)
        self.pictures = pictures
        ids = sorted(self.scenes)
        cut = len(ids) - max(1, int(len(ids) * HELD_OUT_SHARE))
        self.training, self.held_out = ids[:cut], ids[cut:]
        self.patches, self.grid = _encode_pictures(pictures, processor)
        tokenizer = processor.tokenizer
        self.image_token_id = tokenizer.convert_tokens_to_ids(processor.image_token)
        self.tokens_per_picture = int(self.grid.prod()) // processor.image_processor.merge_size**2

    def batch(self, phase: PhaseConfig, key: str, scene_ids: list[int]) -> dict[str, torch.Tensor]:
        """Right-padded model inputs and `labels` [B, L], -100 where nothing is to be learnt."""
        rng = random.Random(f"{self.seed}/{key}")
        rows, picture_ids = [], []
        for _ in range(phase.batch):
            states = self.scenes[rng.choice(scene_ids)]
            kind = rng.random()
            if kind < phase.name_share:
                prompt, reply, used = self._name_example(rng, states)
            else:
                without_pictures = kind < phase.name_share + phase.compare_share
                prompt, reply, used = self._pair_example(rng, states, phase.nearby_share, without_pictures)
            rows.append((self._tokens(prompt), self._tokens(reply + self.processor.tokenizer.eos_token)))
            picture_ids += used
        length = max(len(prompt) + len(reply) for prompt, reply in rows)
        input_ids = torch.full((len(rows), length), self.processor.tokenizer.pad_token_id)
        labels = torch.full((len(rows), length), -100)
        for row, (asked, wanted) in enumerate(rows):
            end = len(asked) + len(wanted)
            input_ids[row, :end] = torch.tensor(asked + wanted)
            labels[row, len(asked) : end] = torch.tensor(wanted)
        batch = {
            "input_ids": input_ids,
            "labels": labels,
            "mm_token_type_ids": (input_ids == self.image_token_id).int(),
        }
        if picture_ids:
            batch["pixel_values"] = self.patches[picture_ids].flatten(0, 1).float()
            batch["image_grid_thw"] = self.grid.expand(len(picture_ids), 3)
        return batch

    def _name_example(self, rng: random.Random, states: dict[int, list[int]]) -> tuple[str, str, list[int]]:
        index = rng.choice(rng.choice(list(states.values())))
        scene = self.pictures[index].scene
        content = [{"type": "text", "text": "final :"}, {"type": "image"}, {"type": "text", "text": "objects ?"}]
        return self._prompt([{"role": "user", "content": content}]), format_answer((), list_objects(scene)), [index]

    def _pair_example(
        self, rng: random.Random, states: dict[int, list[int]], nearby_share: float, without_pictures: bool
    ) -> tuple[str, str, list[int]]:
        """Prompt, reply and pictures of a pair; without pictures the reasoning is given and only the answer learnt."""
        if rng.random() < nearby_share:
            before, after = rng.choice(NEARBY)
        else:
            before, after = rng.sample(sorted(states), 2)
        first, last = states[before][0], rng.choice(states[after])  # a state's first picture is from the centre
        old, new = self.pictures[first].scene, self.pictures[last].scene
        reply = format_answer(difference(old, new), compare_objects(old, new))
        if not without_pictures:
            return self._prompt(list(build_messages(old))), reply, [first, last]
        (_, user) = build_messages(old)
        words = [part for part in user["content"] if part["type"] == "text"]
        reasoning, tag, answer = reply.partition("<answer>")
        return self._prompt([{"role": "user", "content": words}]) + reasoning, tag + answer, []

    def _prompt(self, messages: list[dict[str, Any]]) -> str:
        text = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return text.replace(self.processor.image_token, self.processor.image_token * self.tokens_per_picture)

    def _tokens(self, text: str) -> list[int]:
        return self.processor.tokenizer(text)["input_ids"]


def list_objects(scene: Scene) -> str:
    """What stands in one picture. A tiny policy has no words to spare, so it goes without punctuation.

    >>> list_objects((SceneObject(color="red", shape="cube", size="large", material="metal"),))
    '0 large red metal cube'
    """
    return " ".join(f"{index} {item}" for index, item in enumerate(scene))


def compare_objects(before: Scene, after: Scene) -> str:
    """The reasoning that is taught: object by object, each value before and after, side by side.

    Side by side: three layers learn to compare neighbours; they did not learn to compare with the prompt's list.

    >>> red = SceneObject(color="red", shape="cube", size="large", material="metal")
    >>> compare_objects((red,), (replace(red, color="blue"),))
    '0 large large red blue metal metal cube cube'
    """
    pairs = (zip(str(old).split(), str(new).split(), strict=True) for old, new in zip(before, after, strict=True))
    return " ".join(f"{index} {' '.join(f'{old} {new}' for old, new in pair)}" for index, pair in enumerate(pairs))


def _encode_pictures(pictures: list[StatePicture], processor: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches `[pictures, patches, features]` bfloat16, and the one grid `[1, 3]` that all pictures share."""
    parts = []
    grid = torch.empty(0)
    for first in range(0, len(pictures), 64):
        batch = [item.picture for item in pictures[first : first + 64]]
        encoded = processor.image_processor(images=batch, return_tensors="pt")
        parts.append(encoded["pixel_values"].unflatten(0, (len(batch), -1)).bfloat16())
        grid = encoded["image_grid_thw"][:1]
    return torch.cat(parts), grid


def _train(config: PretrainConfig, model: Any, data: ExampleSource) -> None:
    total = sum(phase.steps for phase in config.phases)
    checkpoint = config.out / "checkpoint.pt"
    saved: dict[str, Any] = torch.load(checkpoint, weights_only=True) if checkpoint.exists() else {"step": 0}
    if saved["step"]:
        model.load_state_dict(saved["model"])
        logger.info("resuming at step %d of %d", saved["step"], total)
    began, done = time.monotonic(), saved["step"]
    first_of_phase = 0
    for phase in config.phases:
        optimizers = _make_optimizers(model, phase)
        if first_of_phase < saved["step"] < first_of_phase + phase.steps:
            for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(state)
        for step in range(max(first_of_phase, saved["step"]), first_of_phase + phase.steps):
            _set_learning_rate(optimizers, phase, step - first_of_phase)
            loss = _step(config, model, optimizers, data.batch(phase, str(step), data.training))
            done = step + 1
            if done % CHECKPOINT_EVERY == 0 or done == total:
                minutes = (time.monotonic() - began) / 60
                curve = {"step": done, "loss": round(loss, 4), **measure(config, model, data, phase)}
                left = minutes / (done - saved["step"]) * (total - done)
                logger.info("step %d of %d, %.0f minutes left: %s", done, total, left, curve)
                with (config.out / "curve.jsonl").open("a") as file:
                    file.write(json.dumps({**curve, "minutes": round(minutes, 1)}) + "\n")
                part = checkpoint.with_suffix(".part")
                states = [optimizer.state_dict() for optimizer in optimizers]
                torch.save({"model": model.state_dict(), "optimizers": states, "step": done}, part)
                os.replace(part, checkpoint)
        first_of_phase += phase.steps


def _make_optimizers(model: Any, phase: PhaseConfig) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the matrices inside the layers and AdamW for the rest."""
    in_layers = {
        name: parameter.ndim == 2 and "embed" not in name and phase.optimizer == "muon"
        for name, parameter in model.named_parameters()
    }
    parameters = dict(model.named_parameters())
    rest = [parameters[name] for name, matrix in in_layers.items() if not matrix]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.01)]
    if matrices := [parameters[name] for name, matrix in in_layers.items() if matrix]:
        optimizers.append(torch.optim.Muon(matrices, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def _set_learning_rate(optimizers: list[torch.optim.Optimizer], phase: PhaseConfig, step: int) -> None:
    warmup = min(1.0, (step + 1) / max(1, phase.steps // 50))
    cosine = 0.55 + 0.45 * math.cos(math.pi * step / phase.steps)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = phase.learning_rate * warmup * cosine


def _step(
    config: PretrainConfig, model: Any, optimizers: list[torch.optim.Optimizer], batch: dict[str, torch.Tensor]
) -> float:
    """One update; returns the loss. Raises FloatingPointError on a gradient that is not finite, before the update."""
    loss = _loss(config, model, batch)[0]
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    if not torch.isfinite(norm):
        raise FloatingPointError(f"the gradient's norm is {norm}; lower the learning rate")
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def _loss(config: PretrainConfig, model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Mean cross-entropy over the reply tokens, their argmax predictions and the tokens."""
    labels = batch.pop("labels")
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.precision == "bfloat16"):
        hidden = model.model(**batch).last_hidden_state[:, :-1][labels[:, 1:] >= 0]
        logits = model.lm_head(hidden).float()
    targets = labels[:, 1:][labels[:, 1:] >= 0]
    return F.cross_entropy(logits, targets), logits.argmax(-1), targets


@torch.no_grad()
def measure(config: PretrainConfig, model: Any, data: ExampleSource, phase: PhaseConfig) -> dict[str, float]:
    """Teacher-forced accuracy on held-out scenes, by attribute: the share of value tokens predicted right."""
    right, seen = dict.fromkeys(ATTRIBUTES, 0), dict.fromkeys(ATTRIBUTES, 0)
    tokenizer = data.processor.tokenizer
    kinds = {tokenizer.convert_tokens_to_ids(v): a for a, values in ATTRIBUTES.items() for v in values}
    for part in range(4):
        _, predicted, targets = _loss(config, model, data.batch(phase, f"held-out/{part}", data.held_out))
        for token, guess in zip(targets.tolist(), predicted.tolist(), strict=True):
            if token in kinds:
                seen[kinds[token]] += 1
                right[kinds[token]] += token == guess
    return {attribute: round(right[attribute] / seen[attribute], 3) for attribute in ATTRIBUTES}
