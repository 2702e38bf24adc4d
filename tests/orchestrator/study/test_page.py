"""The page of a study, its verdicts, and that it holds everything itself."""

import re
import subprocess
import sys

import pytest

from orchestrator.study.aims import MET, NOT_MET, PAPER, UNKNOWN, judge_aims
from orchestrator.study.cells import Study
from orchestrator.study.config import load_study_config
from orchestrator.study.directory import open_study_directory
from orchestrator.study.page import show, write_page
from orchestrator.study.results import CHANGED_VIEW, HALF_GAIN, SAME_VIEW, ArmResult, StudyResult, summarise_cells
from tests.orchestrator.study.small_studies import write_study, write_synthetic


@pytest.fixture(scope="module")
def page(study_result, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("page") / "study.html"
    write_page(study_result, path)
    return path.read_text()


def with_numbers(study: StudyResult, **numbers: tuple[str, float]) -> StudyResult:
    """*study* with the number of a name for the arm with each role, the same in every seed."""

    def changed(arm: ArmResult) -> ArmResult:
        role = arm.arm.rule or arm.arm.imitation or ""
        if role not in numbers:
            return arm
        name, value = numbers[role]
        done = tuple(cell.model_copy(update={"numbers": cell.numbers | {name: value}}) for cell in arm.cells)
        return arm.model_copy(update={"cells": done, "summary": summarise_cells(done)})

    return study.model_copy(update={"arms": tuple(map(changed, study.arms))})


def test_the_page_has_every_arm_in_every_table_and_chart(page, study_result):
    tables = re.findall(r"<tbody>.*?</tbody>", page, re.DOTALL)[:3]
    svgs = re.findall(r"<svg .*?</svg>", page, re.DOTALL)
    assert (len(tables), len(svgs)) == (3, 3)
    for arm in study_result.arms:
        for part in (*tables, *svgs):
            assert arm.arm.name in part
        assert f"<summary>{arm.arm.name}</summary>" in page
    assert "base policy" in tables[0]
    assert "<strong>25 of 25</strong> cells are done" in page
    assert "commit abc1234" in page
    assert "star-r1 study study.toml" in page


def test_the_page_needs_nothing_but_itself(page):
    assert "http" not in page
    assert not re.search(r"<(script|link|iframe|img|object|embed)\b|@import|\bsrc=", page)
    assert set(re.findall(r'href="(.)', page)) == {"#"}
    assert all(target.startswith("#") for target in re.findall(r"url\((.*?)\)", page))


def test_ids_in_the_page_are_its_only_ones_and_references_find_theirs(page):
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) | set(re.findall(r"url\(#(.*?)\)", page)) <= set(ids)


def test_the_papers_figures_stand_in_columns_of_their_own(page):
    row = re.search(r'<tr><td class="name">naive GRPO</td>.*?</tr>', page, re.DOTALL).group()
    ours, papers = re.findall(r'<td class="(?!name)[^"]*"', row), re.findall(r'<td class="[^"]*paper"', row)
    assert (len(ours), len(papers)) == (11 + 2, 2)
    assert re.search(r'paper">54\.5</td>\s*<td class=" paper">0\.43', row)
    assert not re.search(r'<td class="(edge|)">54\.5', row)


def test_the_papers_figures_are_those_of_the_notes():
    assert {rule: (row.tacc, row.ndiff) for rule, row in PAPER.items() if row.tacc} == {
        "star": (61.4, 0.31),
        "naive": (54.5, 0.43),
        "no_object_tier": (58.0, 0.37),
        "no_attribute_tier": (56.8, 0.40),
        "no_inaction_penalty": (58.2, 0.41),
        "no_wrong_penalty": (54.3, 0.44),
    }
    assert (PAPER["star"].same_view, PAPER["star"].changed_view) == (76.3, 53.9)
    assert (PAPER["answer"].same_view, PAPER["answer"].changed_view) == (84.2, 30.9)


@pytest.mark.parametrize(
    ("place", "numbers", "verdict", "says"),
    [
        (0, {"star": ("TAcc", 0.55), "naive": ("TAcc", 0.50)}, MET, "55.0 ± 0.0 against 50.0 ± 0.0: +5.0 points"),
        (0, {"star": ("TAcc", 0.549), "naive": ("TAcc", 0.50)}, NOT_MET, "+4.9 points"),
        (
            1,
            {"star": (f"TAcc, {CHANGED_VIEW}", 0.5), "answer": (f"TAcc, {CHANGED_VIEW}", 0.3)},
            MET,
            "changed views 50.0 ± 0.0 against 30.0 ± 0.0: +20.0 points; same view",
        ),
        (1, {"star": (f"TAcc, {CHANGED_VIEW}", 0.49), "answer": (f"TAcc, {CHANGED_VIEW}", 0.3)}, NOT_MET, "+19.0"),
        (2, {"no_wrong_penalty": ("triplets a reply", 4.0)}, MET, "4.00 against 2.40 a reply: +1.60"),
        (2, {"no_wrong_penalty": ("triplets a reply", 2.0)}, NOT_MET, "-0.40"),
        (3, {"no_inaction_penalty": ("triplets a reply", 2.0)}, MET, "2.00 against 2.40 a reply: -0.40"),
        (3, {"no_inaction_penalty": ("triplets a reply", 2.4)}, NOT_MET, "+0.00"),
        (4, {"star": (HALF_GAIN, 1500.0), "naive": (HALF_GAIN, 3000.0)}, MET, "1,500 samples against 3,000: 50%"),
        (4, {"star": (HALF_GAIN, 1501.0), "naive": (HALF_GAIN, 3000.0)}, NOT_MET, "1,501 samples"),
        (4, {"naive": (HALF_GAIN, None)}, UNKNOWN, "naive GRPO gained nothing"),
    ],
)
def test_an_aim_is_judged_by_our_figures(place, numbers, verdict, says, study_result):
    aim = judge_aims(with_numbers(study_result, **numbers))[place]
    assert aim.verdict == verdict
    assert says in aim.ours


def test_more_triplets_by_less_than_the_error_are_not_more(study_result):
    star = study_result.arms[0]
    cells = tuple(
        cell.model_copy(update={"numbers": cell.numbers | {"triplets a reply": value}})
        for cell, value in zip(star.cells, (2.0, 2.4, 2.8), strict=True)  # error 0.4 / sqrt(3) = 0.23
    )
    noisy = star.model_copy(update={"cells": cells, "summary": summarise_cells(cells)})
    study = study_result.model_copy(update={"arms": (noisy, *study_result.arms[1:])})
    verdicts = [
        judge_aims(with_numbers(study, no_wrong_penalty=("triplets a reply", value)))[2].verdict
        for value in (2.6, 2.65)
    ]
    assert verdicts == [NOT_MET, MET]


def test_a_partial_study_makes_a_page_and_no_verdict(tmp_path):
    path = write_study(tmp_path / "study.toml", out=str(tmp_path / "out"))
    study = load_study_config(path)
    directory = open_study_directory(study)
    write_synthetic(study, directory, complete=["star-r1-seed1", "naive-grpo-seed1"])
    result = Study(study, directory, [], "star-r1 study study.toml").write()
    assert (result.cells_done, result.cells_total) == (3, 25)
    aims = judge_aims(result)
    assert {aim.verdict for aim in aims} == {UNKNOWN}
    assert "after 1 of 3 seeds" in aims[0].ours
    assert "no cell of one of the arms is complete" in aims[1].ours
    assert "<strong>3 of 25</strong>" in directory.page.read_text()
    assert StudyResult.model_validate_json(directory.results.read_text()) == result


def test_a_study_of_which_nothing_is_there_makes_a_page(tmp_path):
    study = load_study_config(write_study(tmp_path / "study.toml", out=str(tmp_path / "out")))
    directory = open_study_directory(study)
    directory.begin(study, {})
    Study(study, directory, [], "star-r1 study study.toml").write()
    assert "No cell is complete yet" in directory.page.read_text()


def test_numbers_are_printed_in_their_units():
    assert show("TAcc", 0.6137) == "61.4"
    assert show("Event/NDiff", 0.3149) == "0.31"
    assert show(f"careful replies, {SAME_VIEW}", 0.671) == "67.1"
    assert show("reply length, tokens", 60.04) == "60.0"
    assert show(HALF_GAIN, 1234.5) == "1,234"
    assert show("TAcc", None) == "–"


def test_matplotlib_comes_only_with_the_page():
    code = "import orchestrator.study.cells, sys; print('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
