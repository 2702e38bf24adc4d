"""The page in a headless Chromium: nothing in its console, what it shows, filters, keys, two runs, live."""

import json
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from orchestrator.commands.report import DEMO
from orchestrator.report.page import make_page
from orchestrator.report.serve import PageServer
from orchestrator.run.page import LivePages, read_run
from tests.orchestrator.report.runs_by_hand import BAD, event, made_up, sample, write_run

CHROMIUM = shutil.which("chromium")
INSTALL = "there is no chromium; apt-get install --no-install-recommends chromium brings these tests back"
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
WIDE, NARROW = 1500, 400


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        assert not os.environ.get("CI"), INSTALL
        pytest.skip(INSTALL)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=list(FLAGS))
        yield launched
        launched.close()


class Opened:
    """A page, and whatever came to its console or was asked of a network."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.said: list[str] = []
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self._asked(request.url))

    def _asked(self, url: str) -> None:
        if not url.startswith(("file:", "data:", "blob:", "http://127.0.0.1:")):
            self.said.append(f"asked {url}")

    def groups(self) -> str:
        return self.page.locator(".keys").inner_text().split("groups")[0].strip()

    def selected(self) -> str:
        return self.page.locator(".row[aria-selected=true]").inner_text()


@pytest.fixture(scope="module")
def tab(browser: Browser) -> Opened:
    """One for all tests: a browser takes longer to open another than to show another page."""
    return Opened(browser.new_page())


@pytest.fixture
def view(tab: Opened, tmp_path: Path) -> Iterator[Any]:
    """Shows HTML or an address, so many pixels wide; nothing may come to its console."""

    def show(what: str, width: int = WIDE, scheme: Any = "light") -> Opened:
        tab.page.set_viewport_size({"width": width, "height": 900})
        tab.page.emulate_media(color_scheme=scheme)
        if not what.startswith("http"):
            (tmp_path / "page.html").write_text(what)
            what = (tmp_path / "page.html").as_uri()
        tab.page.goto(what)
        tab.page.wait_for_selector("html[data-ready]")
        return tab

    yield show
    said, tab.said[:] = list(tab.said), []
    tab.page.goto("about:blank")
    assert said == []


@pytest.fixture(scope="module")
def demo() -> str:
    return make_page([read_run(DEMO)], now=0.0)


def samples(bad: bool = False) -> list[dict[str, Any]]:
    """Ten steps of two groups of two samples: the second of a group costs 1, and in step 3 is malformed."""
    found = []
    for step in range(1, 11):
        for ticket in (2 * step - 2, 2 * step - 1):
            found.append(sample(step, ticket, 0, reward=float(step)))
            malformed = {"reply": BAD if bad else "what?", "malformed": "no tags"} if step == 3 else {}
            found.append(sample(step, ticket, 1, reward=-1.0, **malformed))
    return found


@pytest.fixture(scope="module")
def ten_steps() -> str:
    return make_page([made_up(samples=samples())], now=0.0)


def scroll_through(page: Page) -> None:
    for place in page.locator(".plot").all():
        place.scroll_into_view_if_needed()
        expect(place).to_have_class("plot js-plotly-plot")


def test_the_demo_is_drawn_whole(view, demo):
    opened = view(demo)
    scroll_through(opened.page)
    assert opened.page.locator(".plot").count() >= 15
    assert opened.page.locator("#group img").count() == 2
    assert opened.page.locator("#group .mate").count() == 8
    assert opened.page.evaluate("[...document.images].every((image) => image.naturalWidth > 0)")


def test_a_narrow_screen_does_not_scroll_sideways_light_or_dark(view, demo):
    opened, backgrounds = view(demo, NARROW), []
    for scheme in ("light", "dark"):
        opened.page.emulate_media(color_scheme=scheme)
        expect(opened.page.locator("#time .plot")).to_have_class("plot js-plotly-plot")
        backgrounds.append(opened.page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert opened.page.evaluate("document.documentElement.scrollWidth") == NARROW
    assert backgrounds == ["rgb(246, 247, 249)", "rgb(18, 21, 27)"]


def test_what_a_reply_says_is_text_whatever_it_says(view):
    """As reply, as reasoning, as claim, as the name of a prompt and of a worker, and in an event."""
    hostile = [
        sample(1, 0, 0, reply=BAD, malformed=BAD),
        sample(1, 0, 1, reply=f"<think>{BAD}</think><answer>0.color.{BAD}</answer>", worker=BAD),
        sample(1, 1, 0, prompt_id=BAD, reply=BAD, terms=[{"name": BAD, "value": 1.0}]),
    ]
    events = [event("began", 1.0, version=0), event("ended", 2.0, worker=BAD, why=BAD)]
    rows = [{"step": 1, "step_s": 1.0, "loss": 0.0, f"reward/{BAD}": 1.0, "reward": 1.0}]
    run = made_up(rows, events, hostile, name=BAD, notes=(BAD,), tokens=lambda token: BAD)
    opened = view(make_page([run], now=3.0))
    scroll_through(opened.page)
    assert BAD in opened.page.locator("#group .reply").first.inner_text()
    opened.page.keyboard.press("ArrowRight")
    assert opened.page.locator("#group h3").first.inner_text() == BAD
    assert opened.page.locator("img[src=x]").count() == 0
    assert opened.page.locator("h1").inner_text() == f"STAR-R1 {BAD}"
    assert opened.page.locator(".note").first.inner_text() == BAD


def test_the_page_runs_no_script_but_its_own(view, ten_steps):
    """Even one that came into it: its policy names its own."""
    opened = view(ten_steps.replace("<header>", "<header><script>document.title = 'taken'</script>"))
    assert opened.page.title() == "try: STAR-R1 report"
    assert all("Content Security Policy" in line for line in opened.said)
    assert len(opened.said) == 1
    opened.said.clear()


FILTERS = [
    ("malformed", "only", "2 of 20"),  # those of step 3
    ("malformed", "no", "20 of 20"),  # whose other samples are well-formed
    ("low", "9.5", "2 of 20"),
    ("from", "7", "6 of 20"),  # versions 7 to 9 sampled for steps 8 to 10
    ("to", "1", "4 of 20"),
    ("high", "-2", "0 of 20"),
]


def test_a_filter_leaves_the_groups_with_a_sample_that_passes(view, ten_steps):
    opened = view(ten_steps)
    for name, value, groups in FILTERS:
        field = opened.page.locator(f"[name={name}]")
        field.select_option(value) if name == "malformed" else field.fill(value)
        assert opened.groups() == groups, (name, value)
        opened.page.get_by_role("button", name="clear").click()
        assert opened.groups() == "20 of 20"


def test_samples_that_do_not_pass_are_pale(view, ten_steps):
    opened = view(ten_steps)
    opened.page.locator("[name=low]").fill("1")
    assert opened.page.locator(".mate").nth(1).get_attribute("class") == "card mate mine out"


def test_the_view_is_a_filter_where_prompts_have_several(view, demo):
    opened = view(demo)
    opened.page.locator("[name=kind]").select_option("left")
    assert int(opened.groups().split()[0]) < 48
    assert "/left" in opened.selected()


def test_keys_walk_through_groups_and_samples(view, ten_steps):
    opened = view(ten_steps)
    opened.page.locator("#samples").scroll_into_view_if_needed()
    walk = {"ArrowRight": (1, 1), "End": (1, 10), "ArrowLeft": (0, 10), "Home": (0, 1)}
    for key, (prompt, step) in walk.items():
        opened.page.keyboard.press(key)
        assert f"{prompt}/basic/center\nstep {step}," in opened.selected()
    opened.page.keyboard.press("ArrowDown")
    assert opened.page.locator(".mate").nth(1).get_attribute("class").endswith(" at")
    opened.page.keyboard.press("ArrowUp")
    assert opened.page.locator(".mate").nth(0).get_attribute("class").endswith(" at")


def test_keys_in_a_field_are_the_fields(view, ten_steps):
    opened = view(ten_steps)
    before = opened.selected()
    opened.page.locator("[name=low]").focus()
    opened.page.keyboard.press("End")
    assert opened.selected() == before


def test_a_reload_keeps_filters_and_place(view, ten_steps):
    opened = view(ten_steps)
    opened.page.locator("[name=from]").fill("7")
    opened.page.keyboard.press("Tab")
    opened.page.locator(".row").nth(3).click()
    place = opened.selected()
    opened.page.reload()
    opened.page.wait_for_selector("html[data-ready]")
    assert (opened.groups(), opened.selected()) == ("6 of 20", place)


def test_a_token_says_its_text_version_and_difference(view, ten_steps):
    opened = view(ten_steps)
    strip = opened.page.locator("canvas").first
    strip.scroll_into_view_if_needed()
    strip.hover(position={"x": 10, "y": 8})
    said = opened.page.locator(".token").first.inner_text()
    assert said.startswith("2: “six”, version 0, learner − sampler +0.2")


def test_two_runs_stand_side_by_side_at_the_same_prompt(view):
    first = made_up(samples=samples(), name="first")
    second = made_up(samples=samples()[:8], name="second")
    opened = view(make_page([first, second], now=0.0))
    titles = opened.page.locator(".column > h3").all_inner_texts()
    assert [title.split(",")[0] for title in titles] == ["first", "second"]
    opened.page.locator("#samples").scroll_into_view_if_needed()
    opened.page.keyboard.press("End")  # step 2 of the second run: the last group of all
    assert opened.page.locator(".column").nth(0).locator("select").input_value() == "step 2"
    opened.page.locator("[name=beside]").uncheck()
    assert opened.page.locator(".column").count() == 1


def test_a_prompt_that_the_other_run_lacks_is_said(view):
    runs = [made_up(samples=samples(), name=name, data_identity=name) for name in ("first", "second")]
    opened = view(make_page(runs, now=0.0))
    assert "no group of this prompt" in opened.page.locator(".column").nth(1).inner_text()


def test_of_thousands_of_groups_only_those_in_sight_are_drawn(view):
    many = [sample(1 + ticket // 2, ticket, 0) for ticket in range(2000)]
    opened = view(make_page([made_up(samples=many)], now=0.0))
    opened.page.locator("#samples").scroll_into_view_if_needed()
    opened.page.keyboard.press("End")
    assert "step 1000" in opened.selected()
    assert opened.page.locator(".row").count() < 60


def test_a_run_without_traces_has_no_gallery_and_says_so(view):
    opened = view(make_page([made_up(rows=[{"step": 1, "reward": 1.0, "loss": 0.0, "step_s": 1.0}])], now=0.0))
    assert "No samples were kept" in opened.page.locator("#gallery").inner_text()
    assert opened.page.locator("#behaviour").is_hidden()


def test_goodput_is_drawn_where_rows_have_it(view):
    spent = {"productive_s": 6.0, "overhead_s": 1.0, "idle_s": 3.0, "wasted_s": 0.0}
    rows = [{"step": step, "reward": 1.0, "loss": 0.0, "step_s": 10.0, **spent} for step in (1, 2)]
    events = [event("began", 1.0, version=0), *(event("served", 10.0 * step, version=step) for step in (1, 2))]
    opened = view(make_page([made_up(rows, events)], now=30.0))
    scroll_through(opened.page)
    assert "productive 60.0 %" in opened.page.locator("#time .plot").inner_text()


def test_a_live_page_follows_its_run_and_keeps_filters_and_place(view, tmp_path):
    rows = [{"step": step, "reward": float(step), "loss": 0.0, "step_s": 1.0} for step in (1, 2, 3)]
    run = write_run(tmp_path / "run", rows[:2], [event("began", 1.0, version=0)], samples()[:8])
    with PageServer(LivePages([run]), 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        opened = view(server.url)
        opened.page.locator("[name=low]").fill("0")
        opened.page.locator(".row").nth(2).click()
        place = opened.selected()
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(rows[2]) + "\n")
        newer = write_run(tmp_path / "newer", samples=samples()[8:12])
        shutil.copy(newer / "traces" / "000003-000003.parquet", run / "traces")
        expect(opened.page.locator(".headline")).to_contain_text("step 3 of 4")
        expect(opened.page.locator(".keys")).to_contain_text("6 of 6 groups")
        assert opened.selected() == place
        assert opened.page.locator("[name=low]").input_value() == "0"
        server.shutdown()
        thread.join()
    expect(opened.page.locator(".alarm")).to_contain_text("star-r1 watch has ended")
    opened.said[:] = [line for line in opened.said if "ERR_CONNECTION_REFUSED" not in line]


def test_a_live_page_without_its_data_is_the_page_of_the_run(view, tmp_path):
    run = replace(made_up(samples=samples()[:4], prompts={}), notes=("its data are gone",))
    opened = view(make_page([run], now=0.0))
    assert "no pictures, no truth" in opened.page.locator(".truth").inner_text()
    assert opened.page.locator(".reply").count() == 2
