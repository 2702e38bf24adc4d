"""Makes a tiny policy that sees, and behaves like a general model: it can answer, and seldom does.

Four parts, each of which goes on where it was killed. *states*: scenes are rendered. *see*: the vision tower learns
what each visual token shows (`tiny_policy/see.py`). *speak*: the tower is frozen, the language model learns to read its
tokens and to answer carefully. *behave*: it learns to answer mostly without looking (`tiny_policy/behaviours.py`).
"""

import copy
import json
import logging
import random
import shutil
import tomllib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from tasks.tvr.data.scene_states import StatePicture, load_states, make_states
from tiny_policy.behaviours import BEHAVIOURS, CAREFUL_START, draw_behaviour
from tiny_policy.examples import Examples, ExampleSource
from tiny_policy.make import make_tiny_policy
from tiny_policy.perception import count_right, draw_curve, draw_mistakes
from tiny_policy.see import Heads, Pictures, augment, dense_loss, gather_pictures, mirror, to_patches, tower_tokens
from tiny_policy.teaching import Progress, StretchConfig, teach

logger = logging.getLogger(__name__)

HELD_OUT_SHARE = 0.04
EMBEDDING_STD = 0.05
HELD_OUT_PAIRS = 128
PICTURES_AT_ONCE = 128

Counting = Callable[[str], AbstractContextManager[Progress]]
"""`with counting(what) as progress:` shows how far *what* is."""


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


class SeeConfig(StretchConfig):
    """The vision tower, from what each token shows; an example is a picture."""

    side_share: float = Field(
        ge=0, le=1, description="Share of pictures from a side, where numbering the objects is harder."
    )


class SpeakConfig(StretchConfig):
    """The language model, on the tokens of the frozen tower; beside half as many names and comparisons as pairs."""

    nearby_share: float = Field(
        ge=0,
        le=1,
        description="Share of the pairs that differ in one to three cells only. With all of them, copying the list in "
        "the prompt is almost right, and nothing makes it look.",
    )


class BehaveConfig(StretchConfig):
    """The mixture of behaviours; an example is a pair that differs in one to three cells."""

    begun: int = Field(
        ge=0,
        description="So many careful replies in each batch beside the mixture, whose first words are given: what comes "
        "after them is rehearsed, how often they are said is not taught.",
    )
    shares: dict[str, float] = Field(description="How often each behaviour is taught; they sum to 1.")

    @model_validator(mode="after")
    def _check_shares(self) -> "BehaveConfig":
        if set(self.shares) != set(BEHAVIOURS):
            raise ValueError(f"shares are of {', '.join(self.shares)}; give one of each of {', '.join(BEHAVIOURS)}")
        if abs(sum(self.shares.values()) - 1) > 1e-6:
            raise ValueError(f"shares sum to {sum(self.shares.values())}; they must sum to 1")
        return self


class PretrainConfig(BaseModel):
    """A pretraining run file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: Path = Field(description="Run directory: checkpoints, curve and the model folders `careful` and `model`.")
    seed: int = Field(description="Seed of the weights and of the order of examples.")
    threads: int = Field(gt=0, description="CPU threads; a second one gains little here and spins in vain.")
    compile: bool = Field(description="Compile the tower for teaching: a minute at the start, then a fifth faster.")
    states: StatesConfig
    see: SeeConfig
    speak: SpeakConfig
    behave: BehaveConfig


def load_pretrain_config(path: Path) -> PretrainConfig:
    """Read a run file. Raises pydantic.ValidationError and tomllib.TOMLDecodeError."""
    return PretrainConfig.model_validate(tomllib.loads(path.read_text()))


def pretrain(config: PretrainConfig, counting: Counting) -> Path:
    """Run or resume; returns the model folder: bfloat16 weights, processor, recipe, curve, mistakes."""
    torch.set_num_threads(config.threads)
    config.out.mkdir(parents=True, exist_ok=True)
    states = render_states(config.states, counting)
    start = config.out / "start"
    if not (start / "config.json").exists():
        make_tiny_policy(start, config.seed)
    processor = AutoProcessor.from_pretrained(start)
    model = AutoModelForImageTextToText.from_pretrained(start, attn_implementation="eager", dtype=torch.float32)
    torch.manual_seed(config.seed)
    initialise(model)
    teacher = Teacher(config, model, processor, states, counting)
    teacher.see()
    teacher.speak()
    teacher.save(config.out / "careful")
    teacher.behave()
    return teacher.save(config.out / "model")


def initialise(model: Any) -> None:
    """Weights of variance 1 / inputs, so that signals keep their size; the library's 0.02 is meant for wide models."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "embed_tokens" in name:
                weight.normal_(std=EMBEDDING_STD)
            elif weight.ndim >= 2:
                weight.normal_(std=weight[0].numel() ** -0.5)


def render_states(config: StatesConfig, counting: Counting) -> list[StatePicture]:
    with counting("rendering scenes") as progress:
        arguments = config.model_dump(exclude={"folder", "scenes"})
        for done in make_states(config.folder, num_scenes=config.scenes, **arguments):
            progress(done, config.scenes, "")
    return load_states(config.folder, config.scenes)


class Teacher:
    """The model, what it learns from, and the three stretches; the last 4 % of the scenes are held out."""

    def __init__(
        self, config: PretrainConfig, model: Any, processor: Any, states: list[StatePicture], counting: Counting
    ) -> None:
        self.config = config
        self.model = model
        self.processor = processor
        self.states = states
        self.counting = counting
        self.pictures = gather_pictures(states, config.states.field_of_view)
        patch = processor.image_processor.patch_size
        self.token_px = patch * processor.image_processor.merge_size
        height, width = self.pictures.pixels.shape[-2:]
        self.grid = (height // patch, width // patch)
        ids = sorted({state.scene_id for state in states})
        cut = len(ids) - max(1, round(len(ids) * HELD_OUT_SHARE))
        self.training, self.held_out = ids[:cut], ids[cut:]
        self.heads = Heads(model.config.vision_config.out_hidden_size)
        self._tower_tokens = torch.compile(tower_tokens) if config.compile else tower_tokens
        self._source: ExampleSource | None = None

    def see(self) -> None:
        """Teach the tower and its heads; in the end the heads are thrown away."""
        config, first_held_out = self.config.see, self.held_out[0]
        number = torch.arange(len(self.pictures))
        training = number[: sum(state.scene_id < first_held_out for state in self.states)]
        held_out = self.pictures.take(number[len(training) :])
        from_side = self.pictures.views[training] > 0
        weight = torch.where(
            from_side, config.side_share / from_side.sum(), (1 - config.side_share) / (~from_side).sum()
        )
        module = nn.ModuleDict({"tower": self.model.model.visual, "heads": self.heads})

        def loss_of(step: int) -> torch.Tensor:
            chance = torch.Generator().manual_seed(self.config.seed * 1_000_003 + step)
            drawn = training[torch.multinomial(weight, config.batch, replacement=True, generator=chance)]
            batch = augment(self.pictures.take(drawn), chance)
            return dense_loss(self.heads(self._look(batch.pixels)), batch, self.token_px)

        with self.counting("learning to see") as progress:
            teach(config, "see", self.config.out, module, loss_of, lambda: self._measure_sight(held_out), progress)
        said = self._say(held_out)
        draw_mistakes(self.config.out / "mistakes.jpg", held_out, said, self.token_px)
        (self.config.out / "perception.json").write_text(
            json.dumps(count_right(held_out, said, self.token_px), indent=2)
        )

    def speak(self) -> None:
        """Teach the language model to answer carefully."""
        config = self.config.speak

        def loss_of(step: int) -> torch.Tensor:
            rng = random.Random(f"{self.config.seed}/speak/{step}")
            source = self.source()
            batches = [source.pairs(rng, self.training, config.batch, config.nearby_share)]
            batches.append(source.names(rng, self.training, config.batch // 2))
            batches.append(source.comparisons(rng, self.training, config.batch // 2, config.nearby_share))
            return torch.stack([self.loss(batch)[0] for batch in batches]).mean()

        self._teach_language("speak", config, loss_of)

    def behave(self) -> None:
        """Teach it to answer mostly without looking."""
        config = self.config.behave

        def loss_of(step: int) -> torch.Tensor:
            rng = random.Random(f"{self.config.seed}/behave/{step}")
            source, scenes = self.source(), self.training
            batches = [source.pairs(rng, scenes, config.batch, 1.0, self._draw_reply)]
            if config.begun:
                batches.append(source.pairs(rng, scenes, config.begun, 1.0, begun=CAREFUL_START))
            return torch.stack([self.loss(batch)[0] for batch in batches]).sum()

        self._teach_language("behave", config, loss_of)

    def source(self) -> ExampleSource:
        """Examples, on what the tower sees now; it must not learn any more."""
        if self._source is None:
            self._source = ExampleSource(self.states, self._look_at_all(), self.processor)
        return self._source

    def save(self, folder: Path) -> Path:
        """Write the model as it is now, in bfloat16, with how it came about."""
        copy.deepcopy(self.model).bfloat16().save_pretrained(folder)
        self.processor.save_pretrained(folder)
        (folder / "recipe.json").write_text(self.config.model_dump_json(indent=2) + "\n")
        draw_curve(self.config.out / "curve.jsonl", self.config.out / "curve.png")
        for name in ("curve.jsonl", "curve.png", "perception.json", "mistakes.jpg"):
            shutil.copy(self.config.out / name, folder)
        return folder

    def _teach_language(self, name: str, config: StretchConfig, loss_of: Callable[[int], torch.Tensor]) -> None:
        self.model.model.visual.requires_grad_(False)
        rng = random.Random(f"{self.config.seed}/held-out")
        held_out = self.source().pairs(rng, self.held_out, HELD_OUT_PAIRS, 1.0)
        with self.counting({"speak": "learning to speak", "behave": "learning to behave"}[name]) as progress:
            teach(config, name, self.config.out, self.model, loss_of, lambda: self._measure_replies(held_out), progress)

    def _draw_reply(self, rng: random.Random, before: Any, after: Any) -> str:
        return draw_behaviour(rng, self.config.behave.shares, before, after)

    def _look(self, pixels: torch.Tensor) -> torch.Tensor:
        """`[B, 3, H, W]` to visual tokens `[B, T, W]`."""
        patches = to_patches(pixels.float(), self.processor.image_processor)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self._tower_tokens(self.model.model.visual, patches, self.grid)

    @torch.no_grad()
    def _say(self, pictures: Pictures) -> dict[str, torch.Tensor]:
        parts = [self.heads(self._look(part)) for part in pictures.pixels.split(PICTURES_AT_ONCE)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _measure_sight(self, held_out: Pictures) -> dict[str, float]:
        return count_right(held_out, self._say(held_out), self.token_px)["all"]

    @torch.no_grad()
    def _look_at_all(self) -> torch.Tensor:
        """`[2, pictures, T, W]` bfloat16: every picture as it is and mirrored, seen by the tower as it is now."""
        parts = []
        with self.counting("looking at all pictures") as progress:
            for number in torch.arange(len(self.pictures)).split(PICTURES_AT_ONCE):
                some = self.pictures.take(number)
                both = [some.pixels, mirror(some, torch.ones(len(number), dtype=torch.bool)).pixels]
                parts.append(torch.stack([self._look(pixels).bfloat16() for pixels in both]))
                progress(int(number[-1]) + 1, len(self.pictures), "")
        return torch.cat(parts, 1)

    def loss(self, examples: Examples) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Mean cross-entropy over the reply tokens, which of them would be said greedily, and their rows."""
        model = self.model.model
        pictures = examples.input_ids == self.processor.tokenizer.convert_tokens_to_ids(self.processor.image_token)
        embedded = model.get_input_embeddings()(examples.input_ids)
        if examples.seen is not None:
            embedded = embedded.masked_scatter(pictures[..., None], examples.seen.to(embedded.dtype))
        count = 0 if examples.seen is None else len(examples.seen) // self.source().seen.shape[2]
        grid = torch.tensor([[1, *self.grid]]).expand(count, 3)
        places, _ = model.get_rope_index(examples.input_ids, pictures.int(), grid)
        asked = examples.labels[:, 1:] >= 0
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = model.language_model(
                inputs_embeds=embedded, position_ids=places, use_cache=False
            ).last_hidden_state
            logits = self.model.lm_head(hidden[:, :-1][asked]).float()
        targets = examples.labels[:, 1:][asked]
        return F.cross_entropy(logits, targets), logits.argmax(-1) == targets, torch.nonzero(asked)[:, 0]

    @torch.no_grad()
    def _measure_replies(self, held_out: Examples) -> dict[str, float]:
        """*exact*: the share of pairs to which the careful reply would be said, word by word, greedily; *forced*: when
        made to begin with `CAREFUL_START`. That is TAcc, but for replies that reach the answer another way.
        """
        loss, right, rows = self.loss(held_out)
        start = len(self.processor.tokenizer(CAREFUL_START)["input_ids"])
        by_pair = [right[rows == row] for row in range(len(held_out.labels))]
        return {
            "held_out_loss": round(float(loss), 4),
            "exact": round(sum(float(words.all()) for words in by_pair) / len(by_pair), 3),
            "forced": round(sum(float(words[start:].all()) for words in by_pair) / len(by_pair), 3),
        }
