"""Pretraining goes on where it was killed, as if nothing had happened, and its examples say the truth."""

import json
from pathlib import Path
from typing import Literal

import pytest
import torch

import learner.pretrain
from learner.pretrain import ExampleSource, PhaseConfig, PretrainConfig, StatesConfig, pretrain
from learner.tiny_policy import build_processor
from tvr.scene_states import load_states, make_states


def phase(optimizer: Literal["adamw", "muon"], name_share: float, compare_share: float) -> PhaseConfig:
    return PhaseConfig(
        steps=2,
        batch=4,
        optimizer=optimizer,
        learning_rate=1e-3,
        name_share=name_share,
        compare_share=compare_share,
        nearby_share=0.5,
    )


PHASES = [phase("adamw", 1.0, 0.0), phase("muon", 0.0, 0.0)]


@pytest.fixture(scope="module")
def states(tmp_path_factory) -> StatesConfig:
    folder = tmp_path_factory.mktemp("states")
    states = StatesConfig(
        folder=folder, scenes=4, objects=(2, 3), size=(32, 32), spp=1, field_of_view=38.0, seed=0, workers=1
    )
    arguments = states.model_dump(exclude={"folder", "scenes"})
    assert list(make_states(folder, num_scenes=4, **arguments)) == [4]
    return states


def config_for(states: StatesConfig, out: Path) -> PretrainConfig:
    return PretrainConfig(out=out, seed=1, threads=1, precision="float32", states=states, phases=PHASES)


def test_a_killed_run_ends_with_the_same_weights(states, tmp_path, monkeypatch):
    monkeypatch.setattr(learner.pretrain, "CHECKPOINT_EVERY", 1)
    pretrain(config_for(states, tmp_path / "whole"))

    measured = learner.pretrain.measure

    def killed_in_step_3(*arguments):
        if len((tmp_path / "killed" / "curve.jsonl").read_text().splitlines()) == 2:
            raise KeyboardInterrupt
        return measured(*arguments)

    config = config_for(states, tmp_path / "killed")
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "curve.jsonl").touch()
    monkeypatch.setattr(learner.pretrain, "measure", killed_in_step_3)
    with pytest.raises(KeyboardInterrupt):
        pretrain(config)
    monkeypatch.setattr(learner.pretrain, "measure", measured)
    pretrain(config)

    whole, resumed = (torch.load(tmp_path / name / "checkpoint.pt")["model"] for name in ("whole", "killed"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    steps = [json.loads(line)["step"] for line in (tmp_path / "killed" / "curve.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


def test_labels_are_the_reply_and_nothing_else(states):
    source = ExampleSource(load_states(states.folder), build_processor(), seed=0)
    batch = source.batch(PHASES[1], "key", source.training)
    tokenizer = source.processor.tokenizer
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        reply = tokenizer.decode(labels[labels >= 0])
        assert reply.startswith("<think> 0 ")
        assert reply.endswith("</answer> <|im_end|>")
        assert torch.equal(ids[labels >= 0], labels[labels >= 0])
    assert len(batch["pixel_values"]) == 2 * len(batch["input_ids"]) * source.patches.shape[1]


def test_a_comparison_without_pictures_teaches_the_answer_alone(states):
    source = ExampleSource(load_states(states.folder), build_processor(), seed=0)
    batch = source.batch(phase("muon", 0.0, 1.0), "key", source.training)
    assert "pixel_values" not in batch
    tokenizer = source.processor.tokenizer
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        assert tokenizer.decode(labels[labels >= 0]).startswith("<answer>")
        assert "<think> 0 " in tokenizer.decode(ids)


def test_held_out_scenes_are_not_trained_on(states):
    source = ExampleSource(load_states(states.folder), build_processor(), seed=0)
    assert source.held_out
    assert not set(source.held_out) & set(source.training)
