"""Of runs in which faults are made: small, without a race between sampling and learning, and soon to suspect."""

from pathlib import Path


def settings(data: Path, steps: int, *more: str) -> list[str]:
    return [
        f"data.path={data}",
        f"loop.steps={steps}",
        "loop.max_staleness=0",
        "checkpoint.every_steps=3",
        "evaluation.max_samples=0",
        "evaluation.every_steps=0",
        "supervision.silent_s=8",
        "supervision.grace_s=2",
        "supervision.backoff_s=0.5",
        *more,
    ]
