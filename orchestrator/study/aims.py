"""What the paper found, and whether a study finds it too, in words with the study's own figures.

The paper's figures are here to be compared with, under their own name; none of them is a result of this project.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

from orchestrator.study.config import ArmConfig
from orchestrator.study.results import CHANGED_VIEW, HALF_GAIN, SAME_VIEW, ArmResult, MeanError, StudyResult

SOURCE = "STAR-R1 on Qwen2.5-VL-7B, one node of 8 GPUs, up to 10 objects; taken from notes on the paper"
MET, NOT_MET, UNKNOWN = "met", "not met", "not yet known"


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperRow:
    """What the paper says of one way to train, in percent as printed there, but for NDiff. None: nothing is said."""

    tacc: float | None = None
    ndiff: float | None = None
    same_view: float | None = None
    changed_view: float | None = None
    careful_same_view: float | None = None
    careful_changed_view: float | None = None


PAPER = {
    "star": PaperRow(
        tacc=61.4, ndiff=0.31, same_view=76.3, changed_view=53.9, careful_same_view=67.0, careful_changed_view=81.0
    ),
    "naive": PaperRow(tacc=54.5, ndiff=0.43),
    "no_object_tier": PaperRow(tacc=58.0, ndiff=0.37),
    "no_attribute_tier": PaperRow(tacc=56.8, ndiff=0.40),
    "no_wrong_penalty": PaperRow(tacc=54.3, ndiff=0.44),
    "no_inaction_penalty": PaperRow(tacc=58.2, ndiff=0.41),
    "answer": PaperRow(same_view=84.2, changed_view=30.9),
}
"""By rule, or by what is imitated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Aim:
    """*aim* in words, the *paper*'s figures for it, *ours* as far as there are any, and the *verdict*."""

    aim: str
    paper: str
    ours: str
    verdict: str


def paper_row(arm: ArmConfig) -> PaperRow:
    return PAPER.get(arm.rule or arm.imitation or "", PaperRow())


def judge_aims(study: StudyResult) -> list[Aim]:
    """A verdict is given once every seed of the arms that it compares is complete."""
    star, naive, sft = (_find(study, role) for role in ("star", "naive", "answer"))
    wrong, inaction = (_find(study, role) for role in ("no_wrong_penalty", "no_inaction_penalty"))
    return [
        _aim(
            study,
            "STAR-R1 is over naive GRPO by 5 points of TAcc or more",
            "61.4 against 54.5: +6.9 points",
            (star, naive),
            lambda ours, other: _points(ours, other, "TAcc", at_least=5.0),
        ),
        _aim(
            study,
            "STAR-R1 is over STAR-SFT in changed views (left and right) by 20 points of TAcc or more; in the same view "
            "SFT may win",
            "changed views 53.9 against 30.9: +23.0 points; same view 76.3 against 84.2: -7.9 points",
            (star, sft),
            _views,
        ),
        _aim(
            study,
            "Without the wrong-prediction penalty more triplets are predicted than by STAR-R1",
            "the model enumerates (no figure)",
            (wrong, star),
            lambda ours, other: _triplets(ours, other, sign=1),
        ),
        _aim(
            study,
            "Without the inaction penalty fewer triplets are predicted than by STAR-R1",
            "the model stays silent (no figure)",
            (inaction, star),
            lambda ours, other: _triplets(ours, other, sign=-1),
        ),
        _aim(
            study,
            "STAR-R1 has half of its gain in at most half of the samples of naive GRPO",
            "STAR-R1 learns faster (no figure)",
            (star, naive),
            _half_gain,
        ),
    ]


def in_points(value: float, digits: int = 1) -> str:
    """A share in percent, as the paper prints it."""
    return f"{100 * value:.{digits}f}"


Compare = Callable[[ArmResult, ArmResult], tuple[str, bool | None]]
"""Our figures in words, and whether the aim is met; None where the figures cannot say."""


def _aim(
    study: StudyResult, aim: str, paper: str, arms: tuple[ArmResult | None, ArmResult | None], compare: Compare
) -> Aim:
    one, other = arms
    if one is None or other is None:
        return Aim(aim=aim, paper=paper, ours="the study has no such arm", verdict=UNKNOWN)
    if not one.cells or not other.cells:
        return Aim(aim=aim, paper=paper, ours="no cell of one of the arms is complete", verdict=UNKNOWN)
    ours, met = compare(one, other)
    seeds = len(study.study["seeds"])
    done = min(len(one.cells), len(other.cells))
    if done < seeds:
        return Aim(aim=aim, paper=paper, ours=f"{ours}, after {done} of {seeds} seeds", verdict=UNKNOWN)
    verdict = UNKNOWN if met is None else MET if met else NOT_MET
    return Aim(aim=aim, paper=paper, ours=ours, verdict=verdict)


def _find(study: StudyResult, role: str) -> ArmResult | None:
    """The first arm with the rule, or that imitates so."""
    return next((arm for arm in study.arms if role in (arm.arm.rule, arm.arm.imitation)), None)


def _points(one: ArmResult, other: ArmResult, name: str, at_least: float) -> tuple[str, bool | None]:
    if name not in one.summary or name not in other.summary:
        return "no test pair says", None
    ours, theirs = one.summary[name], other.summary[name]
    over = 100 * (ours.mean - theirs.mean)
    text = f"{_with_error(ours)} against {_with_error(theirs)}: {over:+.1f} points"
    return text, over >= at_least - 1e-9  # a difference of binary fractions may miss a round number by a hair


def _views(star: ArmResult, sft: ArmResult) -> tuple[str, bool | None]:
    changed, met = _points(star, sft, f"TAcc, {CHANGED_VIEW}", at_least=20.0)
    same, _ = _points(star, sft, f"TAcc, {SAME_VIEW}", at_least=0.0)
    return f"changed views {changed}; same view {same}", met


def _triplets(without: ArmResult, star: ArmResult, sign: int) -> tuple[str, bool | None]:
    """Met if the difference has the sign and is larger than its own standard error."""
    ours, theirs = without.summary["triplets a reply"], star.summary["triplets a reply"]
    error = sqrt((ours.error or 0.0) ** 2 + (theirs.error or 0.0) ** 2)
    more = ours.mean - theirs.mean
    text = f"{ours.mean:.2f} against {theirs.mean:.2f} a reply: {more:+.2f} ± {error:.2f}"
    return text, sign * more > error


def _half_gain(star: ArmResult, naive: ArmResult) -> tuple[str, bool | None]:
    ours, theirs = star.summary.get(HALF_GAIN), naive.summary.get(HALF_GAIN)
    if ours is None or theirs is None:
        idle = star if ours is None else naive
        return f"{idle.arm.name} gained nothing on the validation pairs, so that there is no half of it", None
    share = ours.mean / theirs.mean
    return f"{ours.mean:,.0f} samples against {theirs.mean:,.0f}: {share:.0%}", share <= 0.5


def _with_error(value: MeanError) -> str:
    return in_points(value.mean) + ("" if value.error is None else f" ± {in_points(value.error)}")
