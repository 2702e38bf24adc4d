"""What a base can do and what it does: TAcc of its greedy and of its sampled replies, and of careful ones.

Careful replies are greedy ones that are made to begin with `<think> 0`; of these also the share of cells (object and
attribute of the final picture) that the reasoning names right, by attribute and by view. By transformers' own
generation, without the engine. One JSON line last.

python -m tests.bench.base deploy/models/tiny data/tiny [number of pairs]
"""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from records.pictures import decode_all
from records.samples import Prompt
from tasks.tvr.data.dataset import load
from tasks.tvr.language.answer import Answer, Malformed, parse
from tasks.tvr.language.behaviour import goes_through_objects
from tasks.tvr.language.metrics import judge, summarise
from tasks.tvr.language.reasoning import SPOKEN
from tasks.tvr.language.scene import VIEWS, apply
from tiny_policy.behaviours import CAREFUL_START

BATCH = 50
MAX_TOKENS = 96
MODES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0},
    "careful": {"do_sample": False},
}


@torch.no_grad()
def reply(model: Any, processor: Any, prompts: Sequence[Prompt], mode: str) -> list[str]:
    begin = CAREFUL_START if mode == "careful" else ""
    texts = [
        processor.apply_chat_template(list(prompt.messages), tokenize=False, add_generation_prompt=True) + begin
        for prompt in prompts
    ]
    pictures = [decode_all(prompt) for prompt in prompts]
    inputs = processor(text=texts, images=pictures, return_tensors="pt", padding=True, padding_side="left")
    made = model.generate(**inputs, **MODES[mode], max_new_tokens=MAX_TOKENS)[:, inputs["input_ids"].shape[1] :]
    return [f"{begin} {text}" for text in processor.batch_decode(made, skip_special_tokens=True)]


def named_right(reasoning: str, prompt: Prompt) -> dict[str, list[bool]]:
    """Of each attribute, whether the value after the change is named right, for every object of the final scene."""
    after = apply(prompt.gold.scene, prompt.gold.changes)
    words = re.sub(r"\d \. \w+ \. \w+", "", reasoning).split()
    found: dict[str, list[bool]] = {attribute: [] for attribute in SPOKEN}
    for index, item in enumerate(after):
        said = words[9 * index + 1 : 9 * index + 9]  # the index, then each attribute before and after
        for place, attribute in enumerate(SPOKEN):
            found[attribute].append(said[2 * place + 1 : 2 * place + 2] == [getattr(item, attribute)])
    return found


def count_cells(answers: Sequence[Answer | Malformed], prompts: Sequence[Prompt]) -> dict[str, dict[str, float]]:
    """Shares of `named_right` over all pairs and over those of each view; a malformed reply names nothing right."""
    table: dict[str, dict[str, float]] = {}
    for view in ("all", *VIEWS):
        hits: dict[str, list[bool]] = {attribute: [] for attribute in SPOKEN}
        for answer, prompt in zip(answers, prompts, strict=True):
            if view in ("all", prompt.gold.view):
                for attribute, right in named_right(getattr(answer, "reasoning", ""), prompt).items():
                    hits[attribute] += right
        if hits[SPOKEN[0]]:
            table[view] = {attribute: round(sum(right) / len(right), 4) for attribute, right in hits.items()}
    return table


def main() -> None:
    folder, data, *count = sys.argv[1:]
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)
    prompts = load(Path(data), "test")[: int(count[0]) if count else None]
    result: dict[str, Any] = {}
    for mode in MODES:
        torch.manual_seed(0)
        replies = [
            text
            for first in range(0, len(prompts), BATCH)
            for text in reply(model, processor, prompts[first : first + BATCH], mode)
        ]
        answers = [parse(text) for text in replies]
        judged = [judge(answer, prompt.gold, num_tokens=None) for answer, prompt in zip(answers, prompts, strict=True)]
        report = asdict(summarise(judged))
        careful = [
            goes_through_objects(getattr(answer, "reasoning", ""), prompt.gold.scene)
            for answer, prompt in zip(answers, prompts, strict=True)
        ]
        result[mode] = {
            "TAcc": report["metrics"]["TAcc"],
            **{key: report[key] for key in ("by_view", "by_objects", "by_changes", "well_formed")},
            "careful": sum(careful) / len(careful),
        }
        if mode == "careful":
            result[mode]["cells"] = count_cells(answers, prompts)
        print(mode, json.dumps(result[mode]), "\n  e.g.", replies[0], flush=True)
    print(json.dumps({"model": folder, "data": data, "pairs": len(prompts), **result}))


if __name__ == "__main__":
    main()
