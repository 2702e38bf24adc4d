"""Replies scored in a second on one core, golds, judgement, rule star and the JSON file included: one JSON line last.

python -m tests.bench.score [replies]
"""

import json
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from orchestrator.evaluation.score import score_replies, write_json
from reward_service.rules import load_rule
from tasks.tvr.data.dataset import load_golds, write_folder
from tasks.tvr.language.answer import format_answer
from tasks.tvr.language.scene import ATTRIBUTES, MAX_OBJECTS, SETTINGS, VIEWS, Transformation
from tasks.tvr.rules import StarOptions
from tasks.tvr.task import TASK

REASONING = "object 0 is a large red metal cube in both pictures ; object 1 was blue and turned cyan ; " * 4
PICTURE = {"bytes": b"never decoded"}


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with ProcessPoolExecutor(1) as pool:  # so that its memory does not count
            pool.submit(write_data, folder / "data", folder / "replies.jsonl", count).result()
        print(f"wrote {count} rows and replies, {(folder / 'replies.jsonl').stat().st_size / count:.0f} bytes a reply")
        rule = load_rule(TASK, "star", StarOptions())
        began, cpu_began = time.perf_counter(), time.process_time()
        report = score_replies(
            TASK, load_golds(folder / "data", "test"), folder / "replies.jsonl", rule, where="the test split"
        )
        scored = time.perf_counter()
        write_json(report, folder / "scores.json")
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    found = report.found
    print(f"TAcc {found['metrics']['TAcc']:.3f}, well-formed {found['well_formed']:.3f}, reward {report.reward}")
    result = {
        "replies": count,
        "seconds": round(seconds, 2),
        "seconds_scoring": round(scored - began, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "replies_per_s": round(count / seconds),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    print(json.dumps(result))


def write_data(data: Path, replies: Path, count: int) -> None:
    """A data set of *count* rows without pictures, and a reply to each, in another order."""
    rng = random.Random(0)
    lines = []

    def rows() -> Iterator[dict[str, Any]]:
        for number in range(count):
            row = make_row(rng, number)
            yield row
            changes = tuple(Transformation(**change) for change in row["transformations"])
            lines.append(json.dumps({"id": row["id"], "reply": make_reply(rng, len(row["objects"]), changes)}) + "\n")

    write_folder(data, {"test": rows()}, {"seed": 0})
    rng.shuffle(lines)
    replies.write_text("".join(lines))


def make_row(rng: random.Random, number: int) -> dict[str, Any]:
    setting = SETTINGS[number % len(SETTINGS)]
    view = rng.choice(VIEWS) if setting == "view" else "center"
    objects = [make_object(rng) for _ in range(rng.randint(1, MAX_OBJECTS))]
    cells = [(index, attribute) for index in range(len(objects)) for attribute in ATTRIBUTES]
    changes = [
        {"index": index, "attribute": attribute, "value": other_value(rng, attribute, objects[index][attribute])}
        for index, attribute in rng.sample(cells, 1 if setting == "basic" else rng.randint(1, 4))
    ]
    return {
        "id": f"test-{number}/{setting}/{view}",
        "setting": setting,
        "view": view,
        "initial": PICTURE,
        "final": PICTURE,
        "objects": objects,
        "transformations": changes,
    }


def make_object(rng: random.Random) -> dict[str, Any]:
    looks = {attribute: rng.choice(values) for attribute, values in ATTRIBUTES.items()}
    return {**looks, "position": [rng.uniform(-3, 3), rng.uniform(-3, 3)], "rotation": rng.uniform(0, 360)}


def other_value(rng: random.Random, attribute: str, old: str) -> str:
    return rng.choice([value for value in ATTRIBUTES[attribute] if value != old])


def make_reply(rng: random.Random, num_objects: int, changes: tuple[Transformation, ...]) -> str:
    """Right (4 of 10), one triplet wrong (2), one too few (1), one too many (1), cut off (1) or without tags (1)."""
    kind = rng.randrange(10)
    first = changes[0]
    attribute = rng.choice(list(ATTRIBUTES))
    wrong = Transformation(rng.randrange(num_objects + 1), attribute, rng.choice(ATTRIBUTES[attribute]))
    if kind < 4:
        return format_answer(changes, REASONING)
    if kind < 6:
        return format_answer((wrong, *changes[1:]), REASONING)
    if kind == 6:
        return format_answer(changes[1:], REASONING)
    if kind == 7:
        return format_answer((*changes, wrong), REASONING)
    return format_answer(changes, REASONING)[:-12] if kind == 8 else f"{REASONING} so it is {first}"


if __name__ == "__main__":
    main()
