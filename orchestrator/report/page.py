"""The page of one run or of several: everything that it shows and needs is in it, and it asks no network.

What comes from replies and data reaches it as packed data, never as HTML, and is put on it as text. The page's own
Content-Security-Policy names its scripts by their hashes: no other is run, whatever stands in a reply.
"""

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

from orchestrator.report.advice import Advice, Standing, advise
from orchestrator.report.behaviour import behaviour, look
from orchestrator.report.gallery import Shelf, gallery
from orchestrator.report.run_data import RunData
from orchestrator.report.series import series
from orchestrator.report.timeline import timeline

RUNNING_S = 15.0
"""A driver whose status is older has ended, or hangs."""
SCRIPTS = ("gallery.js", "charts.js", "main.js")


def make_page(runs: Sequence[RunData], now: float, stamp: str | None = None) -> str:
    """At the time *now*, in seconds since 1970. One with a *stamp* asks its server for what is newer (`serve.py`)."""
    payload = make_payload(runs, now)
    pictures = payload.pop("pictures")
    script = "\n".join(_asset(name) for name in SCRIPTS)
    page = _ENVIRONMENT.from_string(_asset("page.html"))
    return page.render(
        title=", ".join(run.name for run in runs),
        style=_asset("style.css"),
        script=script,
        hashes=[_hash(text) for text in (script, get_plotlyjs())],
        plotly=_plotly(),
        payload=base64.b64encode(pack(payload)).decode(),
        pictures=json.dumps(pictures),  # in base64, which no HTML can be; packed once more they would only take longer
        stamp=stamp,
    )


def make_payload(runs: Sequence[RunData], now: float) -> dict[str, Any]:
    """All that the page's scripts show, as JSON."""
    shelf = Shelf()
    found = [_run(run, now, shelf) for run in runs]
    return {"runs": found, "prompts": shelf.prompts, "pictures": shelf.pictures}


def pack(content: Any) -> bytes:
    """As gzipped JSON, without Infinity and NaN, which no browser reads: whoever made *content* left them out."""
    return gzip.compress(json.dumps(content, separators=(",", ":"), allow_nan=False).encode(), 6)


def stand(run: RunData, now: float) -> Standing:
    """How *run* stands at *now*."""
    return Standing(
        rows=run.rows,
        events=run.events,
        steps=run.steps,
        max_staleness=run.max_staleness,
        running=run.status_at is not None and now - run.status_at < RUNNING_S,
        now=now,
    )


def _run(run: RunData, now: float, shelf: Shelf) -> dict[str, Any]:
    found = behaviour(look(run))
    time = timeline(run)
    return {
        "name": run.name,
        "status": said(advise(stand(run, now))),
        "notes": [*run.notes, *_missing(run, time)],
        "timeline": time,
        "series": series(run, found),
        "gallery": gallery(run, shelf),
    }


def said(advice: Advice) -> dict[str, Any]:
    return {"headline": advice.headline, "alarms": list(advice.alarms), "hints": list(advice.hints)}


def _missing(run: RunData, time: dict[str, Any] | None) -> list[str]:
    """Parts of the page that the run has nothing for, and why."""
    notes = []
    if time is None:
        notes.append("There is no journal: lanes, window and events are left out.")
    elif time["goodput"] is None and run.rows:
        notes.append("The rows do not say how time was spent (productive_s ...): the goodput row is left out.")
    if len(run.traces) < run.traces_total:
        notes.append(f"{len(run.traces):,} of {run.traces_total:,} samples are on this page, evenly over the steps.")
    return notes


def _asset(name: str) -> str:
    return (files(__package__) / "assets" / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """As a Content-Security-Policy names a script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


@cache
def _plotly() -> str:
    """A third of its size, unpacked by the page once the rest is there."""
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9)).decode()


_ENVIRONMENT = jinja2.Environment(
    autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
