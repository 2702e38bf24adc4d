"""A study as one self-contained HTML page. Imported only when a page is made: the charts bring matplotlib."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import tomli_w

from orchestrator.run.folders import write_whole
from orchestrator.study.aims import MET, NOT_MET, SOURCE, UNKNOWN, PaperRow, in_points, judge_aims, paper_row
from orchestrator.study.charts import behaviour_chart, tacc_chart, validation_chart
from orchestrator.study.results import CHANGED_VIEW, HALF_GAIN, SAME_VIEW, ArmResult, MeanError, StudyResult
from orchestrator.study.template import PAGE, STYLE
from tasks.tvr.language.metrics import METRICS
from tasks.tvr.language.scene import VIEWS

TITLE = "STAR-R1: the paper's comparison, repeated from a base policy"
PAPER = "The paper's"
CAREFUL = "careful replies"
CHARTS = (
    (
        validation_chart,
        "TAcc on the validation pairs, greedy, over what was learned from and over time. Lines are means of the seeds, "
        "bands go from the lowest to the highest seed.",
    ),
    (
        tacc_chart,
        "TAcc on the test pairs, greedy. Bars are means of the seeds, whiskers standard errors, dots the seeds.",
    ),
    (
        behaviour_chart,
        "Behaviour over training: greedy replies to the validation pairs above; what was learned from below, a few "
        "steps a point. A reply is careful if it is well-formed and goes through the objects one by one.",
    ),
)
Cell = tuple[str, str]
"""Mean and standard error as they are printed; empty where there is none."""
Group = tuple[str, list[str]]
"""A title over columns, and their titles."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """*rows*: the name of an arm, and for each of *groups* its cells."""

    title: str
    note: str
    groups: list[Group]
    rows: list[tuple[str, list[list[Cell]]]]


def write_page(study: StudyResult, path: Path) -> None:
    """Replace the page at *path*, whole or not at all."""
    page = _ENVIRONMENT.from_string(PAGE).render(
        title=TITLE,
        style=STYLE,
        study=study,
        setting=_setting(study),
        aims=judge_aims(study),
        verdict_class={MET: "met", NOT_MET: "not-met", UNKNOWN: "unknown"},
        paper=PAPER,
        tables=[_metrics_table(study), _breakdown_table(study), _behaviour_table(study)],
        charts=[(caption, chart(study)) for chart, caption in CHARTS] if _has_cells(study) else [],
        seeds=[_seeds(arm) for arm in study.arms if arm.cells],
        study_file=tomli_w.dumps(study.study),
    )
    write_whole(path, page)


def show(name: str, value: float | None) -> str:
    """The number *name* as the page prints it: shares in percent, counts whole."""
    if value is None:
        return "–"
    if "Acc" in name or "replies" in name:
        return in_points(value)
    if name == HALF_GAIN or name.startswith("seconds"):
        return f"{value:,.0f}"
    return f"{value:.1f}" if "length" in name else f"{value:.2f}"


def _setting(study: StudyResult) -> str:
    file = study.study
    answers = file["loop"]["steps"] * file["loop"]["groups_per_step"] * file["rollout"]["samples_per_prompt"]
    return (
        f"Every arm begins with the same base policy and learns from {answers:,} answers to {file['data']['train']:,} "
        f"training pairs ({', '.join(file['data']['settings'])}), with {len(file['seeds'])} seeds. The table is of "
        f"greedy replies to {file['test']['test']:,} test pairs ({', '.join(file['test']['settings'])}), whose scenes "
        f"nobody trained on; curves are of {file['evaluation']['max_samples']:,} validation pairs. "
        f"{PAPER} figures: {SOURCE}."
    )


def _has_cells(study: StudyResult) -> bool:
    return any(arm.cells for arm in study.arms)


def _metrics_table(study: StudyResult) -> Table:
    groups: dict[str, list[str]] = {}
    for name in METRICS:
        setting, _, metric = name.rpartition("/")
        groups.setdefault(setting or "All", []).append(metric)
    return Table(
        title="The 11 metrics on the test pairs",
        note="Accuracies in percent; Diff and NDiff are mean numbers of wrong cells, less is better. Mean ± standard "
        "error over the seeds.",
        groups=[*groups.items(), (PAPER, ["TAcc", "NDiff"])],
        rows=_rows(
            study,
            [[name for name in METRICS if (name.rpartition("/")[0] or "All") == group] for group in groups],
            lambda paper: [_percent(paper.tacc), ("–" if paper.ndiff is None else f"{paper.ndiff:.2f}", "")],
        ),
    )


def _breakdown_table(study: StudyResult) -> Table:
    known = [name for arm in study.arms for name in arm.summary] + list(study.base.numbers if study.base else ())
    objects = sorted({name for name in known if name.endswith(" objects")}, key=lambda name: int(name.split()[1]))
    changes = sorted(
        {name for name in known if name.startswith("TAcc, changes")}, key=lambda name: int(name.split()[-1])
    )
    cameras = [f"TAcc, {name}" for name in (SAME_VIEW, CHANGED_VIEW)] + [f"TAcc, view {view}" for view in VIEWS]
    return Table(
        title="TAcc by view, objects and changes",
        note="In percent. The same view is the centre camera; changed views are left and right together.",
        groups=[
            ("view", [SAME_VIEW, CHANGED_VIEW, *VIEWS]),
            ("objects", [name.split()[1] for name in objects]),
            ("changes", [name.split()[-1] for name in changes]),
            (PAPER, [SAME_VIEW, CHANGED_VIEW]),
        ],
        rows=_rows(
            study,
            [cameras, objects, changes],
            lambda paper: [_percent(paper.same_view), _percent(paper.changed_view)],
        ),
    )


def _behaviour_table(study: StudyResult) -> Table:
    careful = [CAREFUL, f"{CAREFUL}, {SAME_VIEW}", f"{CAREFUL}, {CHANGED_VIEW}"]
    replies = ["triplets a reply", "reply length, tokens", "well-formed replies"]
    seconds = ["seconds, training", "seconds, set_up", "seconds, test"]
    return Table(
        title="Behaviour, samples and time",
        note="Shares of the greedy replies to the test pairs in percent; samples until half of the gain on the "
        "validation pairs; wall seconds of a cell. Set-up is the start of the workers and the evaluations before and "
        "after.",
        groups=[
            ("careful replies", ["all", SAME_VIEW, CHANGED_VIEW]),
            ("replies", ["triplets", "tokens", "well-formed"]),
            ("samples", ["half of gain"]),
            ("seconds", ["training", "set-up", "test"]),
            (f"{PAPER} careful", [SAME_VIEW, CHANGED_VIEW]),
        ],
        rows=_rows(
            study,
            [careful, replies, [HALF_GAIN], seconds],
            lambda paper: [_percent(paper.careful_same_view), _percent(paper.careful_changed_view)],
        ),
    )


def _rows(study: StudyResult, groups: list[list[str]], of_paper: Any) -> list[tuple[str, list[list[Cell]]]]:
    """The base and each arm, whose cells are of the numbers named in *groups*, and last those that *of_paper* gives."""
    rows = []
    if study.base is not None:
        base = study.base.numbers | {"seconds, test": study.base.seconds.test}
        ours = [[(show(name, base.get(name)), "") for name in names] for names in groups]
        rows.append(("base policy", [*ours, of_paper(PaperRow())]))
    for arm in study.arms:
        ours = [[_cell(name, arm.summary.get(name)) for name in names] for names in groups]
        rows.append((arm.arm.name, [*ours, of_paper(paper_row(arm.arm))]))
    return rows


def _cell(name: str, value: MeanError | None) -> Cell:
    if value is None:
        return "–", ""
    return show(name, value.mean), "" if value.error is None else show(name, value.error)


def _percent(value: float | None) -> Cell:
    """As the paper prints it."""
    return "–" if value is None else f"{value:.1f}", ""


def _seeds(arm: ArmResult) -> dict[str, Any]:
    rows = []
    for name, summary in arm.summary.items():
        part = name.removeprefix("seconds, ")
        values: Sequence[float | None] = [
            getattr(cell.seconds, part) if name.startswith("seconds, ") else cell.numbers.get(name)
            for cell in arm.cells
        ]
        mean, error = _cell(name, summary)
        rows.append((name.replace("_", "-"), [*(show(name, value) for value in values), mean, error or "–"]))
    return {"name": arm.arm.name, "seeds": [cell.seed for cell in arm.cells], "rows": rows}


_ENVIRONMENT = jinja2.Environment(
    autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
