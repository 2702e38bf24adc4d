"""Curves of characters: what stands where, and how wide."""

from collections.abc import Callable

import pytest
from rich.console import Console
from rich.text import Text

from orchestrator.report.curves import loss_curve, reward_curve, shares_curve

ROWS = [{"step": step, "reward": step / 10, "loss": 1 / step, "careful": 1.0, "exact": 0.5} for step in range(1, 141)]
SHARES = ("exact", "careful")
HELD_OUT = [(0.0, 0.2), (70.0, 0.2), (140.0, 0.2)]


def printed(text: Text) -> list[str]:
    """Its lines where the output is no terminal."""
    console = Console(width=80, force_terminal=False, _environ={})
    with console.capture() as capture:
        console.print(text)
    return capture.get().rstrip("\n").split("\n")


def marks(line: str) -> str:
    """What is drawn on it."""
    return line.partition("┤")[2].rstrip("│").replace(" ", "")


CURVES: dict[str, tuple[str, Callable[..., Text]]] = {
    "reward": ("Mean reward of sampled answers (2 steps a point)", reward_curve),
    "loss": ("Loss (2 steps a point)", loss_curve),
    "share": (
        "Shares: c careful, e exact, T held-out TAcc (4 steps a point)",
        lambda rows, **more: shares_curve(rows, SHARES, HELD_OUT, "TAcc", **more),
    ),
}


@pytest.mark.parametrize("label", CURVES)
def test_a_curve_has_a_title_and_labels_and_fits_80_columns_without_colours(label: str):
    title, curve = CURVES[label]
    lines = printed(curve(ROWS))
    assert lines[0] == title
    assert lines[-1].split() == [label, "step"]
    assert len(lines) == 16
    assert max(map(len, lines)) <= 80
    assert not any("\x1b" in line for line in lines)
    assert lines[-2].split()[-1] in ("138", "139", "140")


@pytest.mark.parametrize("label", CURVES)
def test_a_curve_fits_a_narrow_terminal_and_is_coloured_there(label: str):
    curve = CURVES[label][1](ROWS, width=40)
    assert max(map(len, curve.plain.split("\n")[1:])) == 40
    console = Console(width=80, force_terminal=True, color_system="standard", _environ={})
    with console.capture() as capture:
        console.print(curve)
    assert "\x1b[34m" in capture.get()  # blue


@pytest.mark.parametrize("label", CURVES)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_run_of_few_steps_has_curves_too(label: str, steps: int):
    lines = printed(CURVES[label][1](ROWS[:steps]))
    assert "steps a point" not in lines[0]
    if label != "share":  # there the last version is 140
        assert lines[-2].split() == [str(step) for step in range(1, steps + 1)]


def test_shares_stand_at_their_height_of_a_scale_from_0_to_1():
    lines = printed(shares_curve(ROWS, SHARES, HELD_OUT, "TAcc"))
    drawn = {line.split("┤")[0].strip(): marks(line) for line in lines if "┤" in line}
    assert list(drawn) == ["1.00", "0.80", "0.60", "0.40", "0.20", "0.00"]
    assert drawn["1.00"] == "c" * 35  # 140 steps, 4 a point
    assert drawn["0.20"] == "TTT"
    assert (drawn["0.80"], drawn["0.60"], drawn["0.40"], drawn["0.00"]) == ("", "", "", "")
    assert sum(line.count("e") for line in lines if line.strip().startswith("│")) == 35  # 0.5 is between two of them


def test_without_evaluations_beside_there_are_no_points_of_them():
    lines = printed(shares_curve(ROWS, SHARES, [], "TAcc"))
    assert lines[0] == "Shares: c careful, e exact (4 steps a point)"
    assert "T" not in "".join(lines[1:])


def test_a_point_is_the_mean_of_its_steps():
    rows = [{"step": step, "careful": float(step % 2), "exact": float(step % 2)} for step in range(1, 81)]
    lines = printed(shares_curve(rows, SHARES, [], "TAcc"))  # 0 and 1 in turn: each mean of 2 steps is 0.5
    assert sum(line.count("e") for line in lines if line.strip().startswith("│")) == 40
    assert not any(marks(line) for line in lines)


def test_rows_of_an_older_run_without_the_columns_are_passed_over():
    old = [{"step": row["step"]} for row in ROWS]
    assert not any(marks(line) for line in printed(shares_curve(old, SHARES, [], "TAcc")))
    lines = printed(shares_curve([*old[:70], *ROWS[70:]], SHARES, [], "TAcc"))
    assert lines[-2].split()[0] == "72"  # steps 71 and 72
