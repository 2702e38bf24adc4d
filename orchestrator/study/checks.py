"""What must hold before a study trains anything: the base can read the pictures and write the answers, and no scene of
the test pairs was seen before. What does not hold is said as a `ConfigError`, with the remedy."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from learner.encode import PictureEncoder
from orchestrator.config import ConfigError
from orchestrator.display import counting
from orchestrator.run.model_folder import REMEDY, open_model_folder
from orchestrator.run.prompt_room import check_room
from orchestrator.study.config import StudyConfig
from orchestrator.study.directory import StudyDirectory, check_base
from records.samples import Prompt
from tasks.tvr.data.dataset import PromptSet, load, load_golds
from tasks.tvr.data.rendered import ensure
from tasks.tvr.language.answer import format_answer
from tasks.tvr.language.scene import ATTRIBUTES, Scene, Transformation
from tasks.tvr.task import PairSet


def prepare(study: StudyConfig, directory: StudyDirectory, console: Console) -> dict[str, str]:
    """Render the pairs that are missing and check everything, the cheap first. Returns the checksums of the base."""
    checksums = check_base(directory, study.model)
    encoder = check_processor(study.model, max(study.data.objects[1], study.test.objects[1]))
    try:
        for what, config in (("training", study.data), ("test", study.test)):
            with counting(console, f"rendering {what} pairs") as counter:
                ensure(config, counter)
    except ValueError as error:
        raise ConfigError(f"data: {error}") from error
    check_scenes(study)
    for folder, split in _splits(study):
        for prompt in PairSet(folder).longest(split):
            check_prompt(study, encoder, prompt)
    return checksums


def load_test_pairs(study: StudyConfig) -> PromptSet:
    """Raises ConfigError where they are missing."""
    try:
        return load(study.test.path, "test")
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"test: {error}") from error


def check_processor(model: Path, num_objects: int) -> PictureEncoder:
    """The processor beside the *model*, which fits it and has words for all answers about *num_objects* objects."""
    encoder = open_model_folder(model)
    _check_words(model, encoder, num_objects)
    return encoder


def check_prompt(study: StudyConfig, encoder: PictureEncoder, prompt: Prompt) -> None:
    """Raises ConfigError unless both pictures of *prompt* and an answer fit in what the base reads at once."""
    model, processor = str(study.model), encoder.processor
    text = processor.apply_chat_template(list(prompt.messages), tokenize=False, add_generation_prompt=True)
    if (places := text.count(processor.image_token)) != 2:
        raise ConfigError(f"model = {model!r}: its chat template has {places} places for the 2 pictures; {REMEDY}")
    token_ids = encoder.tokenise(prompt)
    try:
        encoder.encode(prompt, token_ids)
    except ValueError as error:
        raise ConfigError(f"model = {model!r}: {error}; {REMEDY}") from error
    check_room(study.rollout, prompt, len(token_ids))


def check_scenes(study: StudyConfig) -> None:
    """Raises ConfigError if training, validation and test pairs are not of scenes of their own."""
    seen: dict[str, tuple[str, str]] = {}
    for folder, split in _splits(study):
        where = f"{folder}, split {split!r}"
        try:
            scenes = {scene_hash(gold.scene): sample_id for sample_id, gold in load_golds(folder, split)}
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from error
        _check_new(scenes, where, seen)
        seen |= {key: (sample_id, where) for key, sample_id in scenes.items()}


def scene_hash(scene: Scene) -> str:
    """Equal for scenes of the same objects in the same places, to 0.01 scene units, in whatever order."""
    items = sorted(
        (item.color, item.shape, item.size, item.material, *(round(at, 2) + 0.0 for at in item.position))
        for item in scene
    )
    return hashlib.sha256(repr(items).encode()).hexdigest()


def _splits(study: StudyConfig) -> list[tuple[Path, str]]:
    """Training, validation and test pairs."""
    return [(study.data.path, "train"), (study.data.path, "test"), (study.test.path, "test")]


def _check_new(scenes: Mapping[str, str], where: str, seen: Mapping[str, tuple[str, str]]) -> None:
    if shared := [key for key in scenes if key in seen]:
        other_id, other = seen[shared[0]]
        raise ConfigError(
            f"{where}: {len(shared)} scenes are also in {other}, for example that of {scenes[shared[0]]} (there "
            f"{other_id}); render one of them with another seed, so that nothing is asked that was learned"
        )


def _check_words(model: Path, encoder: PictureEncoder, num_objects: int) -> None:
    tokenizer = encoder.processor.tokenizer
    for attribute, values in ATTRIBUTES.items():
        for value in values:
            changes = tuple(Transformation(index, attribute, value) for index in range(num_objects))
            text = format_answer(changes, reasoning="")
            if tokenizer.unk_token_id in tokenizer(text, add_special_tokens=False)["input_ids"]:
                raise ConfigError(f"model = {str(model)!r}: its tokeniser has no words for {text!r}; {REMEDY}")
