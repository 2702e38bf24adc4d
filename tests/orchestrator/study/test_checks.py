"""What ends a study before anything is trained."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.commands.cli import main
from orchestrator.config import ConfigError
from orchestrator.run.model_folder import open_model_folder
from orchestrator.study.checks import check_processor, check_prompt, check_scenes, scene_hash
from orchestrator.study.config import StudyConfig, load_study_config
from orchestrator.study.directory import check_base, open_study_directory
from records.samples import Prompt
from tasks.tvr.data.config import DataConfig
from tasks.tvr.data.rendered import make
from tasks.tvr.task import PairSet
from tests.fakes import SCENE
from tests.orchestrator.study.small_studies import SHIPPED, arm, write_study
from tiny_policy.make import make_tiny_policy

SIZE = (48, 48)
SMALL = {"train": 6, "test": 4, "size": SIZE, "spp": 1, "workers": 1}
STAR, NAIVE = arm("STAR-R1", "star"), arm("naive GRPO", "naive")


def longest_prompt(folder: Path) -> Prompt:
    (prompt,) = PairSet(folder).longest("test")
    return prompt


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    make_tiny_policy(folder, seed=1)
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `one` and `two` of different seeds, and `three`: `one` with its splits exchanged."""
    folder = tmp_path_factory.mktemp("pairs")
    for name, seed in (("one", 1), ("two", 2)):
        make(DataConfig(path=folder / name, seed=seed, **SMALL))
    shutil.copytree(folder / "one", folder / "three")
    for split, other in (("train", "test"), ("test", "train")):
        shutil.rmtree(folder / "three" / split)
        shutil.copytree(folder / "one" / other, folder / "three" / split)
    return folder


def study_of(tmp_path: Path, **changes: Any) -> StudyConfig:
    return load_study_config(write_study(tmp_path / "study.toml", out=str(tmp_path / "out"), **changes))


def test_scenes_of_different_seeds_are_no_overlap(pairs, tmp_path):
    check_scenes(study_of(tmp_path, data__path=str(pairs / "one"), test__path=str(pairs / "two")))


def test_test_pairs_of_training_scenes_are_refused(pairs, tmp_path):
    study = study_of(tmp_path, data__path=str(pairs / "one"), test__path=str(pairs / "three"))
    with pytest.raises(ConfigError) as error:
        check_scenes(study)
    assert f"{pairs}/three, split 'test': 6 scenes are also in {pairs}/one, split 'train'" in str(error.value)
    assert "for example that of train-0/basic/center" in str(error.value)
    assert "with another seed" in str(error.value)


def test_validation_pairs_of_training_scenes_are_refused(pairs, tmp_path):
    shutil.copytree(pairs / "one", tmp_path / "same")
    shutil.rmtree(tmp_path / "same" / "test")
    shutil.copytree(pairs / "one" / "train", tmp_path / "same" / "test")
    study = study_of(tmp_path, data__path=str(tmp_path / "same"), test__path=str(pairs / "two"))
    with pytest.raises(ConfigError, match=r"same, split 'test': 6 scenes are also in .*same, split 'train'"):
        check_scenes(study)


def test_a_scene_is_its_objects_and_their_places_in_whatever_order():
    first, second = SCENE
    assert scene_hash((second, first)) == scene_hash(SCENE)
    assert scene_hash((replace(first, position=(-1.001, -0.0)), second)) == scene_hash(SCENE)
    assert scene_hash((replace(first, position=(-1.1, 0.0)), second)) != scene_hash(SCENE)
    assert scene_hash((replace(first, color="green"), second)) != scene_hash(SCENE)


def test_a_base_with_its_own_processor_is_good(base, pairs, tmp_path):
    study = study_of(tmp_path, model=str(base), rollout__max_answer_tokens=64)
    check_prompt(study, check_processor(base, num_objects=4), longest_prompt(pairs / "one"))


@pytest.mark.parametrize(
    ("missing", "says"),
    [("tokenizer.json", "has no tokenizer.json"), ("processor_config.json", "has no processor_config.json or prepro")],
)
def test_a_base_without_a_processor_is_refused(missing, says, base, tmp_path):
    shutil.copytree(base, tmp_path / "model")
    (tmp_path / "model" / missing).unlink()
    with pytest.raises(ConfigError) as error:
        check_processor(tmp_path / "model", num_objects=4)
    assert says in str(error.value)
    assert "give a folder that holds a vision-language model and its own processor" in str(error.value)


def test_a_base_whose_processor_cuts_other_patches_is_refused(base, tmp_path):
    shutil.copytree(base, tmp_path / "model")
    path = tmp_path / "model" / "processor_config.json"
    content = json.loads(path.read_text())
    content["image_processor"]["patch_size"] = 14
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="patch_size is 14 in its processor and 12 in its config"):
        check_processor(tmp_path / "model", num_objects=4)


def test_a_folder_without_weights_is_refused(base, tmp_path):
    shutil.copytree(base, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(
        ConfigError, match=r"model': holds no weights \(\*.safetensors or \*.bin\); give a folder that does"
    ):
        open_model_folder(tmp_path / "model")


def test_a_folder_that_was_copied_in_part_is_refused(base, tmp_path):
    shutil.copytree(base, tmp_path / "model")
    names = ["model.safetensors", "model-2.safetensors", "model-3.safetensors"]
    index = {"weight_map": {f"weight {name}": name for name in names}}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=r"lacks 2 of its 3 files of weights, such as model-2\.safetensors; copy"):
        open_model_folder(tmp_path / "model")


def test_a_tokeniser_of_another_model_is_refused(base, tmp_path):
    shutil.copytree(base, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    content = json.loads(path.read_text())
    content["text_config"]["vocab_size"] = 50
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"its tokeniser has \d+ tokens and its vocabulary .* 50; give a folder"):
        open_model_folder(tmp_path / "model")


@pytest.mark.parametrize("word", ["cyan", "</answer>"])
def test_a_base_without_a_word_for_answers_is_refused(word, base, tmp_path):
    shutil.copytree(base, tmp_path / "model")
    path = tmp_path / "model" / "tokenizer.json"
    content = json.loads(path.read_text())
    number = content["model"]["vocab"].pop(word)
    content["model"]["vocab"]["another"] = number
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != word]
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="its tokeniser has no words for '<think>"):
        check_processor(tmp_path / "model", num_objects=4)


def test_pictures_that_leave_no_room_for_an_answer_are_refused(base, pairs, tmp_path):
    study = study_of(tmp_path, model=str(base), rollout__max_model_len=40, rollout__max_answer_tokens=20)
    with pytest.raises(ConfigError, match=r"rollout.max_model_len = 40: prompt test-\d/\w+/\w+ has \d+ tokens"):
        check_prompt(study, check_processor(base, num_objects=4), longest_prompt(pairs / "one"))


def test_a_chat_template_without_places_for_the_pictures_is_refused(base, pairs, tmp_path):
    shutil.copytree(base, tmp_path / "model")
    path = tmp_path / "model" / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|image_pad|>", ""))
    with pytest.raises(ConfigError, match="its chat template has 0 places for the 2 pictures"):
        check_prompt(study_of(tmp_path), check_processor(tmp_path / "model", 4), longest_prompt(pairs / "one"))


def test_a_base_that_changed_since_the_study_began_is_refused(base, tmp_path):
    shutil.copytree(base, tmp_path / "model")
    study = study_of(tmp_path, model=str(tmp_path / "model"))
    directory = open_study_directory(study)
    directory.begin(study, check_base(directory, study.model))
    check_base(directory, study.model)
    make_tiny_policy(tmp_path / "model", seed=2)
    with pytest.raises(ConfigError, match=r"model.safetensors changed since the study in .* began"):
        check_base(directory, study.model)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seeds": [1]}, r"seeds was \[1, 2\] and not \[1\]"),
        ({"arms": [STAR]}, r"arms.naive GRPO was {.*} and not None"),
        ({"arms": [STAR | {"learning_rate": 1e-5}, NAIVE]}, "arms.STAR-R1.learning_rate was None and not 1e-05"),
        ({"loop__steps": 61}, "loop.steps was 60 and not 61"),
        ({"test__seed": 7}, "test.seed was 900 and not 7"),
    ],
)
def test_a_folder_of_another_study_is_refused(changes, says, tmp_path):
    first = {"seeds": [1, 2], "arms": [STAR, NAIVE]}
    study = study_of(tmp_path, **first)
    open_study_directory(study).begin(study, {})
    with pytest.raises(ConfigError, match=f"belongs to another study, in which {says}; .* or name another folder"):
        open_study_directory(study_of(tmp_path, **first | changes))


def test_a_study_may_grow_by_seeds_and_arms_and_change_its_processes(tmp_path):
    study = study_of(tmp_path, seeds=[1, 2], arms=[STAR])
    open_study_directory(study).begin(study, {})
    assert open_study_directory(study_of(tmp_path, seeds=[3, 1, 2], arms=[NAIVE, STAR], data__workers=1)).begun


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds files of something else than a study; name another folder"):
        open_study_directory(study_of(tmp_path))


def test_bad_input_ends_the_command_with_status_2_and_trains_nothing(base, pairs, tmp_path, capsys):
    # What `three` says of its pairs is what is asked for, so that nothing is rendered.
    asked = {f"{table}__{key}": value for table in ("data", "test") for key, value in SMALL.items()}
    asked |= {f"{table}__{key}": value for table in ("data", "test") for key, value in recipe(pairs / "one").items()}
    asked |= {"data__path": str(pairs / "one"), "test__path": str(pairs / "three"), "model": str(base)}
    path = write_study(tmp_path / "study.toml", out=str(tmp_path / "out"), **asked)
    with pytest.raises(SystemExit) as ended:
        main(["study", str(path)])
    error = capsys.readouterr().err
    assert ended.value.code == 2, error
    assert "6 scenes are also in" in error
    assert not (tmp_path / "out").exists()


def recipe(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "recipe.json").read_text())
    return {key: found[key] for key in ("settings", "objects", "changes", "field_of_view", "seed")}


def test_the_page_of_a_study_that_never_began_is_refused(tmp_path, capsys):
    path = write_study(tmp_path / "study.toml", out=str(tmp_path / "out"))
    with pytest.raises(SystemExit) as ended:
        main(["study", str(path), "--page"])
    assert ended.value.code == 2
    assert f"holds no study yet; run `star-r1 study {path}`" in capsys.readouterr().err


def test_the_shipped_base_is_good():
    study = load_study_config(SHIPPED)
    check_processor(study.model, study.test.objects[1])
