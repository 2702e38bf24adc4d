"""Whether a model folder holds a whole policy whose parts fit each other: said before any worker starts."""

import json
from pathlib import Path

from transformers import AutoConfig

from learner.encode import PictureEncoder
from orchestrator.config import ConfigError

PROCESSOR_FILES = (("tokenizer.json",), ("processor_config.json", "preprocessor_config.json"))
"""Of each, one must be there."""
WEIGHTS = ("*.safetensors", "*.bin")
REMEDY = "give a folder that holds a vision-language model and its own processor"


def open_model_folder(model: Path) -> PictureEncoder:
    """The processor in the folder *model*. Raises ConfigError for what is missing or does not fit."""
    where = f"model = {str(model)!r}"
    for names in PROCESSOR_FILES:
        if not any((model / name).exists() for name in names):
            raise ConfigError(f"{where}: has no {' or '.join(names)}; {REMEDY}")
    _check_weights(model, where)
    try:
        encoder, config = PictureEncoder(model), AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where}: cannot be used ({str(error).splitlines()[0]}); {REMEDY}") from error
    images = encoder.processor.image_processor
    fits = {
        "patch_size": (images.patch_size, config.vision_config.patch_size),
        "merge_size": (images.merge_size, config.vision_config.spatial_merge_size),
        "temporal_patch_size": (images.temporal_patch_size, config.vision_config.temporal_patch_size),
        "image_token_id": (encoder.image_token_id, config.image_token_id),
    }
    for name, (of_processor, of_model) in fits.items():
        if of_processor != of_model:
            raise ConfigError(
                f"{where}: {name} is {of_processor} in its processor and {of_model} in its config; {REMEDY}"
            )
    tokens, rows = len(encoder.processor.tokenizer), config.get_text_config().vocab_size
    if tokens > rows:
        raise ConfigError(
            f"{where}: its tokeniser has {tokens} tokens and its vocabulary (vocab_size in its config) {rows}; {REMEDY}"
        )
    return encoder


def _check_weights(model: Path, where: str) -> None:
    index = model / "model.safetensors.index.json"
    if index.exists():
        try:
            files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"{where}: its {index.name} cannot be read ({error}); copy the folder again") from error
        if missing := [name for name in files if not (model / name).exists()]:
            raise ConfigError(
                f"{where}: lacks {len(missing)} of its {len(files)} files of weights, such as {missing[0]}; copy the "
                "folder again"
            )
    elif not any(file for pattern in WEIGHTS for file in model.glob(pattern)):
        raise ConfigError(f"{where}: holds no weights ({' or '.join(WEIGHTS)}); give a folder that does")
