"""Pretraining goes on where it was killed, as if nothing had happened, and its examples say the truth."""

import json
import random
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tiny_policy.pretrain
import tiny_policy.teaching
from tasks.tvr.data.scene_states import load_states, make_states
from tasks.tvr.language.answer import Answer, parse
from tasks.tvr.language.scene import apply
from tiny_policy.behaviours import CAREFUL_START
from tiny_policy.examples import ExampleSource
from tiny_policy.make import build_processor
from tiny_policy.pretrain import PretrainConfig, Teacher, pretrain

STEPS = {"steps": 2, "batch": 2, "matrix_rate": 1e-3, "other_rate": 1e-3}
SHARES = {"careful": 0.2, "guess": 0.35, "enumerate": 0.25, "silent": 0.15, "broken": 0.05}
SCENES = 4


def silent(what: str) -> nullcontext:
    return nullcontext(lambda done, total, note: None)


def config_for(states: Path, out: Path) -> PretrainConfig:
    return PretrainConfig.model_validate(
        {
            "out": out,
            "seed": 1,
            "threads": 1,
            "compile": False,
            "states": {
                **{"folder": states, "scenes": SCENES, "objects": (2, 3), "size": (48, 48), "spp": 2},
                **{"field_of_view": 32.0, "seed": 0, "workers": 1},
            },
            "see": {**STEPS, "side_share": 0.5},
            "speak": {**STEPS, "nearby_share": 0.5},
            "behave": {**STEPS, "matrix_rate": 0, "begun": 2, "shares": SHARES},
        }
    )


@pytest.fixture(autouse=True)
def measure_few_pairs(monkeypatch):
    monkeypatch.setattr(tiny_policy.pretrain, "HELD_OUT_PAIRS", 2)


@pytest.fixture(scope="module")
def states(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("states")
    arguments = config_for(folder, folder).states.model_dump(exclude={"folder", "scenes"})
    assert list(make_states(folder, num_scenes=SCENES, **arguments)) == [0, SCENES]
    assert list(make_states(folder, num_scenes=SCENES, **arguments)) == [SCENES]  # nothing is rendered twice
    with pytest.raises(ValueError, match="was rendered with"):
        list(make_states(folder, num_scenes=SCENES, **{**arguments, "spp": 3}))
    return folder


def test_fewer_and_more_scenes_are_the_same_scenes_and_none_twice(states, tmp_path):
    arguments = config_for(tmp_path, tmp_path).states.model_dump(exclude={"folder", "scenes"})
    for scenes in (SCENES - 2, SCENES, SCENES - 2):
        list(make_states(tmp_path / "states", num_scenes=scenes, **arguments))
        found, whole = load_states(tmp_path / "states", scenes), load_states(states, SCENES)
        assert {state.scene_id for state in found} == set(range(scenes))
        assert [(state.scene, state.view) for state in found] == [
            (state.scene, state.view) for state in whole if state.scene_id < scenes
        ]
        assert all(
            (ours.picture == theirs.picture).all() for ours, theirs in zip(found, whole[: len(found)], strict=True)
        )


@pytest.mark.parametrize("other", [{"size": (24, 16)}, {"seed": 1}, {"objects": (3, 3)}, {"field_of_view": 40.0}])
def test_pictures_of_other_arguments_are_not_taken(states, other):
    arguments = config_for(states, states).states.model_dump(exclude={"folder", "scenes"})
    with pytest.raises(ValueError, match="was rendered with"):
        list(make_states(states, num_scenes=SCENES, **{**arguments, **other}))


def test_pictures_without_a_recipe_are_not_taken(tmp_path):
    arguments = config_for(tmp_path, tmp_path).states.model_dump(exclude={"folder", "scenes"})
    (tmp_path / "000000-000020.npz").touch()
    with pytest.raises(ValueError, match=r"has pictures and no recipe\.json .*; remove the folder"):
        list(make_states(tmp_path, num_scenes=20, **arguments))


@pytest.fixture(scope="module")
def source(states) -> ExampleSource:
    pictures = load_states(states, SCENES)
    seen = torch.arange(2 * len(pictures)).view(2, -1, 1, 1).expand(-1, -1, 4, 8)  # says which picture it is
    return ExampleSource(pictures, seen, build_processor())


@pytest.mark.parametrize("stretch", ["see", "speak", "behave"])
def test_a_killed_run_ends_with_the_same_weights(states, tmp_path, monkeypatch, stretch):
    monkeypatch.setattr(tiny_policy.teaching, "MEASURE_EVERY", 1)
    whole = pretrain(config_for(states, tmp_path / "whole"), silent)

    taught = tiny_policy.pretrain.teach

    def killed(config, name, out, module, loss_of, measure, progress):
        def loss_or_death(step):
            if (name, step) == (stretch, 1):
                raise KeyboardInterrupt
            return loss_of(step)

        taught(config, name, out, module, loss_or_death, measure, progress)

    config = config_for(states, tmp_path / "killed")
    with monkeypatch.context() as patched:
        patched.setattr(tiny_policy.pretrain, "teach", killed)
        with pytest.raises(KeyboardInterrupt):
            pretrain(config, silent)
    resumed = pretrain(config, silent)

    before, after = (load_file(folder / "model.safetensors") for folder in (whole, resumed))
    assert all(torch.equal(before[key], after[key]) for key in before)
    rows = [json.loads(line) for line in (resumed / "curve.jsonl").read_text().splitlines()]
    assert [(row["phase"], row["step"]) for row in rows] == [
        (part, n) for part in ("see", "speak", "behave") for n in (1, 2)
    ]
    for name in ("curve.png", "mistakes.jpg", "perception.json", "recipe.json", "processor_config.json"):
        assert (resumed / name).stat().st_size > 0


def test_the_tower_is_frozen_once_it_sees(states, tmp_path):
    folder = pretrain(config_for(states, tmp_path), silent)
    careful, model = (load_file(part / "model.safetensors") for part in (tmp_path / "careful", folder))
    changed = {name for name in model if not torch.equal(model[name], careful[name])}
    assert changed
    assert not any("visual" in name for name in changed)


def test_labels_are_the_reply_and_nothing_else(source):
    batch = source.pairs(random.Random(0), [0, 1, 2], 6, nearby_share=0.5)
    tokenizer = source.processor.tokenizer
    for ids, labels in zip(batch.input_ids, batch.labels, strict=True):
        reply = tokenizer.decode(labels[labels >= 0])
        assert reply.startswith("<think> 0 ")
        assert reply.endswith("</answer> <|im_end|>")
        assert torch.equal(ids[labels >= 0], labels[labels >= 0])


@pytest.mark.parametrize("scene", range(SCENES))
def test_examples_are_of_the_scenes_that_were_asked_for(source, scene):
    rng = random.Random(0)
    batches = [source.pairs(rng, [scene], 10, nearby_share=0.5), source.names(rng, [scene], 10)]
    for batch in batches:
        numbers = {int(number) % len(source.states) for number in batch.seen[::4, 0]}  # as in `source`
        assert {source.states[number].scene_id for number in numbers} == {scene}
    tokenizer = source.processor.tokenizer
    lists = [f"objects : 0 : {state.scene[0]} ;" for state in source.states if state.scene_id == scene]
    for ids in source.comparisons(rng, [scene], 10, nearby_share=0.5).input_ids:
        assert any(each in tokenizer.decode(ids) for each in lists)


def test_a_begun_reply_is_learnt_from_where_it_was_left(source):
    whole, begun = (
        source.pairs(random.Random(0), [0, 1, 2], 6, nearby_share=0.5, begun=words) for words in ("", CAREFUL_START)
    )
    assert torch.equal(begun.input_ids, whole.input_ids)
    first, second = (whole.labels >= 0).int().argmax(1), (begun.labels >= 0).int().argmax(1)
    assert (second - first).tolist() == [2] * 6  # `<think>` and `0`
    for row, place in enumerate(second):
        assert torch.equal(begun.labels[row, place:], whole.labels[row, place:])


def test_begun_replies_are_rehearsed_while_it_learns_to_behave(states, tmp_path):
    config = config_for(states, tmp_path / "with")
    without = config.model_copy(
        update={"out": tmp_path / "without", "behave": config.behave.model_copy(update={"begun": 0})}
    )
    folders = [pretrain(each, silent).parent for each in (config, without)]
    for name, same in (("careful", True), ("model", False)):
        one, other = (load_file(folder / name / "model.safetensors") for folder in folders)
        assert all(torch.equal(one[key], other[key]) for key in one) == same


def test_a_pair_is_answered_by_what_leads_from_its_first_picture_to_its_second(source):
    tokenizer = source.processor.tokenizer
    rng = random.Random(0)
    mirrored = 0
    for _ in range(30):
        batch = source.pairs(rng, [0, 1, 2, 3], 1, nearby_share=0.5)
        # Four tokens a picture, each of which is the picture's number; mirrored ones are counted on.
        first, last = batch.seen[::4, 0].tolist()
        count = len(source.states)
        mirrored += first >= count
        old, new = (source.states[number % count].scene[:: -1 if first >= count else 1] for number in (first, last))
        assert (first >= count) == (last >= count)
        assert source.states[first % count].view == "center"
        answer = parse(tokenizer.decode(batch.labels[batch.labels >= 0], skip_special_tokens=True))
        assert isinstance(answer, Answer)
        assert apply(old, answer.triplets) == new
        assert f"objects : 0 : {old[0]} ;" in tokenizer.decode(batch.input_ids[0])
    assert 5 < mirrored < 25


def test_a_comparison_without_pictures_teaches_the_answer_alone(source):
    batch = source.comparisons(random.Random(0), [0, 1, 2], 4, nearby_share=0.5)
    assert batch.seen is None
    tokenizer = source.processor.tokenizer
    for ids, labels in zip(batch.input_ids, batch.labels, strict=True):
        assert tokenizer.decode(labels[labels >= 0]).startswith("<answer>")
        assert "<think> 0 " in tokenizer.decode(ids)


def test_held_out_scenes_are_not_trained_on(states, tmp_path):
    pretrain(config_for(states, tmp_path), silent)
    config = config_for(states, tmp_path)
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", dtype=torch.float32)
    teacher = Teacher(
        config, model, AutoProcessor.from_pretrained(tmp_path / "model"), load_states(states, SCENES), silent
    )
    assert teacher.held_out == [3]
    assert teacher.training == [0, 1, 2]


def test_the_loss_of_examples_is_the_models_own(states, tmp_path):
    """Against the whole model on the same tokens and pictures, in float32 but for the autocast."""
    config = config_for(states, tmp_path)
    pretrain(config, silent)
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    pictures = load_states(states, SCENES)
    teacher = Teacher(config, model, processor, pictures, silent)
    source = teacher.source()
    (index,) = source.scenes[0][0][:1]
    (other,) = source.scenes[0][1][:1]
    rng = random.Random(3)
    rng.random = lambda: 0.9  # type: ignore[method-assign]  # not nearby, not mirrored
    rng.sample = lambda states, count: [0, 1]  # type: ignore[method-assign]
    rng.choice = lambda options: options[0]  # type: ignore[method-assign]
    batch = source.pairs(rng, [0], 1, nearby_share=0.5)
    loss, *_ = teacher.loss(batch)
    encoded = processor.image_processor(images=[pictures[i].picture for i in (index, other)], return_tensors="pt")
    image = batch.input_ids == processor.image_token_id
    with torch.no_grad():
        whole = model(input_ids=batch.input_ids, labels=batch.labels, mm_token_type_ids=image.int(), **encoded).loss
    assert loss.item() == pytest.approx(whole.item(), rel=0.01)  # bfloat16
