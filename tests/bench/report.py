"""A run's page with as many samples as one holds: how long it takes to make, how large it is, how quick in a browser.

    python -m tests.bench.report

Made-up samples, each of 200 tokens; 1,250 prompts with two pictures of noise, which pack worse than any real ones.
"""

import io
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

from orchestrator.report.gallery import MOST_SAMPLES
from orchestrator.report.page import make_page
from records.samples import Prompt
from tests.fakes import make_prompt
from tests.orchestrator.report.runs_by_hand import event, made_up, sample
from tests.orchestrator.report.test_browser import CHROMIUM, FLAGS

GROUP, GROUPS_PER_STEP, TOKENS = 8, 16, 200
SIZE = (144, 192)
STEPS = MOST_SAMPLES // GROUP // GROUPS_PER_STEP
WALK = 50


def main() -> None:
    rng = np.random.default_rng(1)
    groups = MOST_SAMPLES // GROUP
    prompts = {f"{ticket}/basic/center": with_noise(f"{ticket}/basic/center", rng) for ticket in range(groups)}
    samples = [sampled(ticket, index, rng) for ticket in range(groups) for index in range(GROUP)]
    rows = [{"step": step, "reward": 1.0, "loss": 0.0, "step_s": 1.0, "learn_s": 0.5} for step in range(1, STEPS + 1)]
    events = [event("began", 90.0, version=0)]
    events += [event("served", 100.0 * step + 10, version=step) for step in range(1, STEPS + 1)]
    began = time.perf_counter()
    page = make_page([made_up(rows, events, samples, prompts)], now=0.0)
    found = {"samples": len(samples), "make_s": time.perf_counter() - began, "page_mb": len(page) / 1e6}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.html"
        path.write_text(page)
        found |= in_browser(path)
    print(json.dumps({name: round(value, 3) for name, value in found.items()}))


def sampled(ticket: int, index: int, rng: np.random.Generator) -> dict[str, Any]:
    step = 1 + ticket // GROUPS_PER_STEP
    sampler = -rng.exponential(0.3, TOKENS)
    words = " ".join(f"word{number}" for number in rng.integers(0, 5000, TOKENS))
    return sample(
        step,
        ticket,
        index,
        prompt_id=f"{ticket}/basic/center",
        token_ids=rng.integers(0, 50_000, TOKENS).tolist(),
        versions=[max(0, step - 2)] * 90 + [step - 1] * (TOKENS - 90),
        logprobs=sampler.tolist(),
        learner_logprobs=(sampler + rng.normal(0, 0.02, TOKENS)).tolist(),
        reply=f"<think>{words}</think><answer>{index}.color.blue</answer>",
    )


def with_noise(name: str, rng: np.random.Generator) -> Prompt:
    pictures = []
    for _ in range(2):
        out = io.BytesIO()
        grey = np.clip(rng.normal(128, 12, (*SIZE, 1)) + np.zeros(3), 0, 255).astype(np.uint8)
        Image.fromarray(grey).save(out, "PNG")
        pictures.append(out.getvalue())
    return replace(make_prompt(name), images=tuple(pictures))


def in_browser(path: Path) -> dict[str, float]:
    """Seconds until the gallery answers, and milliseconds of one key and of a filter over all samples."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=list(FLAGS))
        page = browser.new_page(viewport={"width": 1500, "height": 900})
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]")
        ready_s = float(page.evaluate("document.documentElement.dataset.ready")) / 1000
        page.locator("#samples").scroll_into_view_if_needed()
        press = "new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true})"
        took = "(() => {{ const began = performance.now(); {}; return performance.now() - began; }})()"
        walk = page.evaluate(took.format(f"for (let i = 0; i < {WALK}; i++) document.body.dispatchEvent({press})"))
        field = "const field = document.querySelector('[name=from]'); field.value = '40'"
        filtered = page.evaluate(took.format(f"{field}; field.dispatchEvent(new Event('input'))"))
        browser.close()
    return {"ready_s": ready_s, "key_ms": walk / WALK, "filter_ms": filtered}


if __name__ == "__main__":
    main()
