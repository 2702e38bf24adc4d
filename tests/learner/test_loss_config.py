"""The loss's section: algorithms are names for choices of its fields."""

import math
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from learner.loss_config import PRESETS, LossConfig, with_algorithm

ALGORITHMS = ["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo"]
PAPERS: dict[str, list[Any]] = {
    "objective": ["clip", "clip", "clip", "sequence_clip", "cispo", "reinforce"],
    "weighting": ["sample", "constant", "token", "sample", "token", "sum"],
    "baseline": ["group_mean", "group_mean", "group_mean", "group_mean", "group_mean", "leave_one_out"],
    "advantage_scaling": ["group_std", "none", "group_std", "group_std", "group_std", "none"],
    "clip_low": [0.2, 0.2, 0.2, 0.03, 1.0, 0.2],  # gspo's paper has 3e-4 and 4e-4, see its preset
    "clip_high": [0.2, 0.2, 0.28, 0.04, 4.0, 0.2],
    "ratio_bound": [3.0] * 6,
    "equal_groups": ["count", "count", "leave_out", "count", "count", "count"],
    "kl_in": ["loss", "loss", "loss", "loss", "loss", "reward"],
    "kl_estimator": ["k3", "k3", "k3", "k3", "k3", "k1"],
    "proximal": ["sampler", "sampler", "sampler", "sampler", "sampler", "learner"],  # rloo's paper learns on policy
    "correction": ["none", "none", "none", "none", "none", "truncate"],
}


def test_every_field_says_what_it_does() -> None:
    assert [name for name, field in LossConfig.model_fields.items() if not field.description] == []


@pytest.mark.parametrize(("index", "algorithm"), list(enumerate(ALGORITHMS)))
def test_an_algorithm_sets_the_fields_of_its_paper(index: int, algorithm: str) -> None:
    config = LossConfig.model_validate({"algorithm": algorithm})
    assert {name: getattr(config, name) for name in PAPERS} == {name: values[index] for name, values in PAPERS.items()}


def test_it_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        LossConfig().clip_low = 0.5  # type: ignore[misc]


def test_every_algorithm_has_a_preset() -> None:
    assert list(PRESETS) == ALGORITHMS


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_preset_turns_on_what_costs_or_depends_on_the_run(algorithm: str) -> None:
    config = LossConfig.model_validate({"algorithm": algorithm})
    assert (config.kl_weight, config.overlong_buffer_tokens) == (0, 0)
    assert (config.sequence_mask_low, config.sequence_mask_high) == (None, None)


def test_grpo_is_the_default() -> None:
    assert LossConfig() == LossConfig(algorithm="grpo")


def test_a_field_that_is_given_wins_over_the_algorithm() -> None:
    config = LossConfig(algorithm="dapo", clip_high=0.2, equal_groups="count")
    assert (config.clip_high, config.equal_groups, config.weighting) == (0.2, "count", "token")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_dumped_section_reads_back_the_same(algorithm: str) -> None:
    # Also where a field that is given equals the default and differs from the preset.
    for given in ({}, {"weighting": "sample", "clip_high": 0.2, "advantage_scaling": "group_std", "kl_in": "loss"}):
        config = LossConfig.model_validate({"algorithm": algorithm} | given)
        assert LossConfig.model_validate(config.model_dump()) == config
        assert LossConfig.model_validate_json(config.model_dump_json()) == config


def test_what_is_given_is_not_changed() -> None:
    given = {"algorithm": "dapo"}
    LossConfig.model_validate(given)
    assert given == {"algorithm": "dapo"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"clip_hihg": 0.3}, "clip_hihg"),
        ({"algorithm": "ppo"}, "algorithm"),
        ({"algorithm": ["grpo"]}, "algorithm"),
        ({"clip_low": 0}, "clip_low"),
        ({"clip_low": 1.5}, "clip_low"),
        ({"clip_high": 0}, "clip_high"),
        ({"clip_high": math.inf}, "finite number"),
        ({"ratio_bound": 1.0}, "ratio_bound"),
        ({"kl_weight": -0.1}, "kl_weight"),
        ({"overlong_buffer_tokens": -1}, "overlong_buffer_tokens"),
        ({"correction_low": 1.5}, "correction_low"),
        ({"correction_high": 0.5}, "correction_high"),
        ({"sequence_mask_low": 1.5}, "sequence_mask_low"),
        ({"sequence_mask_low": 0}, "sequence_mask_low"),
        ({"sequence_mask_high": 0.5}, "sequence_mask_high"),
        ({"correction": "truncate"}, "set proximal to learner, or correction to none"),
        ({"correction": "mask"}, "set proximal to learner, or correction to none"),
        ({"algorithm": "rloo", "proximal": "sampler"}, "set proximal to learner, or correction to none"),
        ({"proximal": "learner", "clip_low": 0.1}, "clip_low 0.1 has no effect .* proximal = learner.* set it to 0.2"),
        ({"proximal": "learner", "clip_high": 0.28}, "clip_high 0.28 has no effect .* set it to 0.2"),
        ({"proximal": "learner", "algorithm": "dapo", "clip_high": 0.2}, "clip_high 0.2 has no .* set it to 0.28"),
        ({"proximal": "learner", "ratio_bound": 5.0}, "ratio_bound 5.0 has no effect .* set it to 3.0"),
        ({"objective": "reinforce", "clip_high": 0.28}, "clip_high 0.28 has no effect with objective = reinforce"),
        ({"algorithm": "cispo", "ratio_bound": 5.0}, "ratio_bound 5.0 has no effect with objective = cispo"),
        ({"kl_weight": 0.1, "kl_estimator": "k1"}, "take k2 or k3, or set kl_in to reward"),
        ({"algorithm": "rloo", "kl_weight": 0.1, "kl_in": "loss"}, "take k2 or k3, or set kl_in to reward"),
    ],
)
def test_what_cannot_be_meant_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LossConfig.model_validate(given)


@pytest.mark.parametrize(
    "given",
    [
        {"correction": "mask", "proximal": "learner"},
        {"kl_weight": 0.1, "kl_estimator": "k1", "kl_in": "reward"},
        {"kl_weight": 0.0, "kl_estimator": "k1"},
        {"clip_low": 1},
        {"algorithm": "cispo", "clip_high": 0.28},
        {"algorithm": "gspo", "proximal": "learner", "clip_low": 0.03, "clip_high": 0.04, "ratio_bound": 3.0},
        {"sequence_mask_high": 2.0},
    ],
)
def test_what_can_be_meant_is_taken(given: dict[str, Any]) -> None:
    LossConfig.model_validate(given)


RESOLVED = {name: LossConfig.model_validate({"algorithm": name}).model_dump(exclude_none=True) for name in PRESETS}


@pytest.mark.parametrize("old", ALGORITHMS)
@pytest.mark.parametrize("new", ALGORITHMS)
def test_a_resolved_section_becomes_that_of_another_algorithm(old: str, new: str) -> None:
    ready, contradictions = with_algorithm(RESOLVED[old], new, ["algorithm"])
    assert contradictions == {}
    assert LossConfig.model_validate(ready | {"algorithm": new}) == LossConfig.model_validate({"algorithm": new})


def test_choices_that_no_preset_contradicts_stay() -> None:
    # dapo has clip_high 0.28 as well; no preset of the two speaks of the rest.
    choices = {"clip_high": 0.28, "clip_low": 0.1, "kl_weight": 0.04, "sequence_mask_high": 2.0}
    assert with_algorithm(RESOLVED["grpo"] | choices, "dapo", ["algorithm"]) == ({"algorithm": "grpo"} | choices, {})


def test_a_choice_that_contradicts_the_new_algorithm_is_told_with_both_values() -> None:
    _, contradictions = with_algorithm({"clip_high": 0.28}, "cispo", ["algorithm"])
    assert contradictions == {"clip_high": (0.28, 4.0)}
    # What was chosen against the old algorithm is a choice too: dr_grpo has 0.2, which dapo would have overruled.
    _, contradictions = with_algorithm({"algorithm": "dapo", "clip_high": 0.3}, "dr_grpo", ["algorithm"])
    assert contradictions == {"clip_high": (0.3, 0.2)}


def test_a_setting_given_beside_the_new_algorithm_is_no_contradiction() -> None:
    _, contradictions = with_algorithm({"clip_high": 0.28}, "cispo", ["algorithm", "clip_high"])
    assert contradictions == {}


@pytest.mark.parametrize("new", ["grpo", "no such", ["grpo"]])
def test_without_another_known_algorithm_a_section_stays_as_it_is(new: Any) -> None:
    section = {"clip_high": 0.2, "clip_hihg": 0.3}
    assert with_algorithm(section, new, ["algorithm"]) == (section, {})


def test_the_reference_is_needed_for_the_kl_only() -> None:
    assert LossConfig(kl_weight=0.1).needs_reference
    assert LossConfig(algorithm="rloo", kl_weight=0.1).needs_reference
    assert not LossConfig().needs_reference


def test_importing_it_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'numpy', 'transformers', 'deepspeed', 'ray'}"
    code = f"import sys, learner.loss_config; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
