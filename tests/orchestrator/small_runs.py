"""Commands for whole runs that are small enough for tests."""

import sys
from collections.abc import Sequence
from pathlib import Path

TINY = Path("deploy/runs/tiny_cpu.toml")
SFT = Path("deploy/runs/tiny_sft.toml")
SMALL = [
    "loop.groups_per_step=4",
    "data.train=12",
    "data.test=6",
    "rollout.samples_per_prompt=8",
    "rollout.kv_cache_mib=64",
]


def command(kind: str, run_file: Path, out: Path, settings: Sequence[str], *flags: str) -> list[str]:
    """`star-r1` *kind* (train or sft) with *settings* beside SMALL."""
    overrides = [part for setting in [*SMALL, *settings] for part in ("--set", setting)]
    return [
        sys.executable,
        "-m",
        "orchestrator.commands.cli",
        kind,
        str(run_file),
        "--out",
        str(out),
        *overrides,
        *flags,
    ]
