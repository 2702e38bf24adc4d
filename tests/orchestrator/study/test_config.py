"""Study files: the shipped one, what is wrong in others, and the run file of each cell."""

import pytest

from orchestrator.config import ConfigError
from orchestrator.study.config import answers_per_step, cell_config, cells, load_study_config
from tests.orchestrator.study.small_studies import SHIPPED, arm, write_study


def test_the_shipped_study_has_eight_arms_and_three_seeds():
    study = load_study_config(SHIPPED)
    roles = [each.rule or each.imitation for each in study.arms]
    ablations = ["no_object_tier", "no_attribute_tier", "no_wrong_penalty", "no_inaction_penalty"]
    assert roles == ["star", "naive", *ablations, "answer", "reasoning"]
    assert [cell.name for cell in cells(study)][7:10] == [
        "sft-with-reasoning-seed1",
        "star-r1-seed2",
        "naive-grpo-seed2",
    ]
    assert len(cells(study)) == 24


def test_training_pairs_are_seen_from_the_centre_and_test_pairs_from_everywhere():
    study = load_study_config(SHIPPED)
    assert (study.data.settings, study.test.settings) == (("basic", "event"), ("basic", "event", "view"))
    assert study.test.test == 1200
    assert study.test.train == 1  # every data set has both splits


def test_every_field_is_documented():
    study = load_study_config(SHIPPED)
    for model in (type(study), type(study.test), type(study.arms[0])):
        for name, field in model.model_fields.items():
            assert field.description or hasattr(field.annotation, "model_fields"), (
                name
            )  # a section has fields of its own


def test_every_arm_learns_from_the_same_number_of_answers():
    # 32 steps x 16 prompts x 8 answers to each = 32 steps x 128 prompts x their right answer = 4,096.
    study = load_study_config(SHIPPED)
    assert answers_per_step(study) == 16 * 8 == 128
    star, sft = (cell_config(study, cells(study)[place]) for place in (0, 6))
    assert star.loop.steps * star.loop.groups_per_step * star.rollout.samples_per_prompt == 4096
    assert sft.loop.steps * sft.loop.groups_per_step == 4096


def test_a_cell_has_its_arms_rule_imitation_learning_rate_and_seed(tmp_path):
    slow = arm("slow", "reasoning") | {"learning_rate": 1e-5}
    study = load_study_config(write_study(tmp_path / "s.toml", seeds=[4, 9], arms=[arm("one", "naive"), slow]))
    one, two = (cell_config(study, cell) for cell in cells(study)[:2])
    assert (one.seed, one.reward_service.rule, one.learner.learning_rate) == (4, "naive", study.learner.learning_rate)
    assert (two.seed, two.learner.imitation, two.learner.learning_rate) == (4, "reasoning", 1e-5)
    assert [cell_config(study, cell).seed for cell in cells(study)] == [4, 4, 9, 9]
    assert one.data == two.data == study.data
    assert one.evaluation == two.evaluation == study.evaluation


STAR = arm("STAR-R1", "star")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"arms": [arm("a", "starr")]}, "arms.0.rule = 'starr': no such rule; give one of star, naive, no_object_tier"),
        ({"arms": [STAR | {"kind": "dpo"}]}, "arms.0.kind = 'dpo': input should be 'rl' or 'sft'"),
        ({"arms": [STAR | {"rule": "my.module:rule"}]}, "arms.0.rule = 'my.module:rule': no such rule"),
        ({"arms": [STAR, {"name": "b", "kind": "rl"}]}, "arms.1: arm 'b' is of kind rl and has no rule; add it"),
        ({"arms": [STAR | {"kind": "sft"}]}, "arms.0: arm 'STAR-R1' is of kind sft and has no imitation; add it"),
        ({"arms": [STAR | {"imitation": "answer"}]}, "kind rl, which has no use for imitation; remove it"),
        ({"arms": [STAR | {"name": "?"}]}, "arm name '?' has no letter and no digit"),
        ({"arms": [STAR, arm("star r1", "naive")]}, "the arms STAR-R1, star r1 would share a folder"),
        ({"arms": [STAR | {"ruel": "star"}]}, "arms.0.ruel = 'star': unknown key; did you mean rule?"),
        ({"arms": []}, "arms = []: tuple should have at least 1 item"),
        ({"seeds": [1, 1]}, "seeds are 1, 1; name each once"),
        ({"test__tests": 3}, "test.tests = 3: unknown key; did you mean test?"),
        ({"test__path": "data/study"}, "test.path and data.path are both 'data/study'"),
        ({"evaluation__every_steps": 0}, "evaluation.every_steps is 0, and there would be no curve"),
        ({"reward_service__rule": "star"}, "rule is a setting of each arm; remove it from its section"),
        ({"learner__imitation": "answer"}, "imitation is a setting of each arm; remove it from its section"),
        ({"learner__ranks": 99}, "learner.ranks 99 exceeds loop.groups_per_step 16"),
        ({"model": "no/such"}, "model = 'no/such': has no config.json"),
    ],
)
def test_a_wrong_study_file_says_file_key_value_and_remedy(changes, says, tmp_path):
    path = write_study(tmp_path / "study.toml", **changes)
    with pytest.raises(ConfigError) as error:
        load_study_config(path)
    assert str(error.value).startswith(f"{path}: ")
    assert says in str(error.value)
