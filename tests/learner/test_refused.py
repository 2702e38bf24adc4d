"""A refused step as it is kept: read back exactly, and never run."""

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learner.config import LearnerConfig, LearnerJob
from learner.refused import load_refused, save_refused
from records.samples import PolicyVersion, Score, ScoredGroup, VersionSpan
from tasks.tvr.language.gold import Gold
from tasks.tvr.language.scene import SceneObject, Transformation
from tasks.tvr.task import TASK
from tests.fakes import GOLD, TRUE_REPLY

CONFIG = LearnerConfig(ranks=2, lora_rank=4, learning_rate=1e-3)
JOB = LearnerJob(model="m", reference="r", folder="f", temperature=0.8, max_answer_tokens=9, steps=2, seed=5)


@pytest.fixture
def group(make_group: Callable[..., Any]) -> ScoredGroup:
    """With all that a record can hold: two versions in a trace, an answer that was read, rewards that no decimal is."""
    made = make_group(3, [4, 2], rewards=[1 / 3, -2e-9])
    first, second = made.group.samples
    spans = (
        VersionSpan(version=PolicyVersion(6), start=0, end=1),
        VersionSpan(version=PolicyVersion(7), start=1, end=4),
    )
    samples = (
        replace(first, text='"\ud7ff\n\x00', trace=replace(first.trace, versions=spans, finish="length")),
        second,
    )
    gold = Gold(
        setting="event",
        scene=(SceneObject(color="red", shape="cube", size="large", material="metal", position=(0.1, -2.7)),),
        transformations=(Transformation(index=0, attribute="color", value="blue"),),
    )
    answered = Score(total=0.1 + 0.2, parts={"a": 0.1, "b": 0.2}, judgement=TASK.judge(TRUE_REPLY, GOLD, {}))
    return replace(
        made,
        group=replace(made.group, samples=samples, prompt=replace(made.group.prompt, gold=gold)),
        scores=(answered, made.scores[1]),
    )


@pytest.fixture
def folder(group: ScoredGroup, tmp_path: Path) -> Path:
    save_refused(tmp_path / "step-000001", [group, group], [], CONFIG, JOB)
    (tmp_path / "step-000001" / "model").mkdir()
    return tmp_path / "step-000001"


def test_a_kept_step_is_read_back_exactly(group: ScoredGroup, folder: Path) -> None:
    groups, config, job = load_refused(folder)
    assert config == CONFIG.model_copy(update={"ranks": 1, "lora_rank": 0})
    assert job == replace(JOB, model=str(folder / "model"), folder=str(folder))
    assert len(groups) == 2
    for kept in groups:
        assert kept.group.prompt == replace(group.group.prompt, gold=None)
        assert kept.scores == tuple(replace(score, judgement=None) for score in group.scores)
        assert kept.group.prompt.messages == group.group.prompt.messages
        for ours, theirs in zip(kept.group.samples, group.group.samples, strict=True):
            assert (ours.id, ours.text, ours.trace.finish) == (theirs.id, theirs.text, theirs.trace.finish)
            assert ours.trace.versions == theirs.trace.versions
            for name in ("prompt_token_ids", "token_ids", "logprobs"):
                kept_array, array = getattr(ours.trace, name), getattr(theirs.trace, name)
                assert kept_array.dtype == array.dtype
                np.testing.assert_array_equal(kept_array, array)


@pytest.mark.parametrize(("missing", "device"), [("no driver", "cpu"), (None, "gpu")])
def test_a_step_is_done_again_on_what_there_is_here(
    missing: str | None, device: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("learner.refused.missing_cuda", lambda: missing)
    _, _, job = load_refused(folder)
    assert job.device == device


class Hostile:
    def __init__(self, touches: Path) -> None:
        self.touches = touches

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.touches,)


@pytest.mark.parametrize("beside_good_groups", [False, True])
def test_a_hostile_pickle_is_not_opened(folder: Path, beside_good_groups: bool) -> None:
    touched = folder / "pwned"
    (folder / "groups.pickle").write_bytes(pickle.dumps(Hostile(touched)))
    if beside_good_groups:
        load_refused(folder)
    else:
        (folder / "groups.json").unlink()
        with pytest.raises(ValueError, match=r"its groups are in groups\.pickle, which could run anything"):
            load_refused(folder)
    assert not touched.exists()
    pickle.loads((folder / "groups.pickle").read_bytes())
    assert touched.exists()  # it was loaded


def without(key: str) -> Callable[[str], str]:
    return lambda text: json.dumps({name: value for name, value in json.loads(text).items() if name != key})


@pytest.mark.parametrize(
    ("name", "spoil", "cause"),
    [
        ("refused.json", lambda text: "", "JSONDecodeError: Expecting value"),
        ("refused.json", lambda text: text[:-20], "JSONDecodeError"),
        ("refused.json", lambda text: "[]", "TypeError"),
        ("refused.json", without("learner"), "KeyError: 'learner'"),
        ("refused.json", lambda text: text.replace('"seed"', '"sead"'), "TypeError: .* 'sead'"),
        ("refused.json", lambda text: text.replace('"beta1"', '"beta9"'), "ValidationError"),
        ("groups.json", lambda text: "[" * 100_000, "RecursionError"),
        ("groups.json", lambda text: text.replace("array 2", "array 9999"), "KeyError: 'array 9999'"),
        ("groups.json", lambda text: text.replace('"length"', '"so"'), "ValidationError"),
        ("groups.json", lambda text: text.replace('"end": 4', '"end": 3'), "ValidationError"),
        ("groups.safetensors", lambda text: "no tensors", "SafetensorError"),
    ],
)
def test_a_damaged_file_is_said_in_one_sentence(
    folder: Path, name: str, spoil: Callable[[str], str], cause: str
) -> None:
    text = "" if name.endswith(".safetensors") else (folder / name).read_text()
    assert spoil(text) != text
    (folder / name).write_text(spoil(text))
    with pytest.raises(ValueError, match=rf"step-000001: the refused step in it cannot be read \({cause}") as raised:
        load_refused(folder)
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_said_in_one_sentence(folder: Path) -> None:
    (folder / "groups.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"cannot be read \(FileNotFoundError: .*groups\.safetensors.*give a folder as"
    ):
        load_refused(folder)
