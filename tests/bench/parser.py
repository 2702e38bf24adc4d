"""Time of the reply parser on 1 MB of what could be slow: one JSON line last.

*ms*: milliseconds for 1 MB, median of 5, the slowest of three replies: the text alone, as reasoning, as answer.
*growth*: the time of 4 MB divided by that; 4 is linear, 16 quadratic. From about 1 MB on, the memory of each copy of
the text is fetched anew from the system, a step of some 10 ms: a family that takes less may seem to grow faster.

python -m tests.bench.parser
"""

import json
from statistics import median
from time import perf_counter

from tasks.tvr.language.answer import parse

MEGABYTE = 1_000_000
UNITS = {
    "opening brackets": "<",
    "opening tags": "<think>",
    "tags by turns": "<think></answer>",
    "one triplet, many times": "0.color.red,",
    "commas": ",",
    "digits": "9",
    "digits and dots": "1.",
    "letters and dots": "a.",
    "one long word": "a",
    "spaces": " ",
    "wide spaces": "\u3000",
    "cut-off tags": "<answer",
    "look-alike tags": "<thin\N{KELVIN SIGN}>",
}


def texts(size: int) -> dict[str, str]:
    """Each *size* characters long, give or take one unit."""
    families = {name: unit * (size // len(unit)) for name, unit in UNITS.items()}
    return families | {
        "nested tags": "<think>" * (size // 15) + "</think>" * (size // 15),
        "different triplets": ",".join(f"{index}.color.red" for index in range(size // 16)),
        "different long indices": ",".join(f"{index:0>100}.color.red" for index in range(size // 111)),
        "a bad triplet at the end": "0.color.red," * (size // 12) + "0.color",
    }


def slowest_ms(text: str) -> float:
    replies = (text, f"<think>{text}</think><answer></answer>", f"<think></think><answer>{text}</answer>")
    return max(median(milliseconds(reply) for _ in range(5)) for reply in replies)


def milliseconds(reply: str) -> float:
    start = perf_counter()
    parse(reply)
    return 1000 * (perf_counter() - start)


def main() -> None:
    ms = {name: slowest_ms(text) for name, text in texts(MEGABYTE).items()}
    growth = {name: slowest_ms(text) / ms[name] for name, text in texts(4 * MEGABYTE).items()}
    for name in ms:
        print(f"{name:<24} {ms[name]:8.2f} ms, x {growth[name]:.2f}")
    rounded = {name: round(value, 2) for name, value in ms.items()}
    growth = {name: round(value, 2) for name, value in growth.items()}
    print(json.dumps({"worst_ms": max(rounded.values()), "ms": rounded, "growth": growth}))


if __name__ == "__main__":
    main()
