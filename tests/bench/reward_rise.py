"""Mean reward, total and by part, over the first and last 10 steps of a run file for three seeds: one JSON line last.

python -m tests.bench.reward_rise deploy/runs/tiny_cpu.toml [section.key=value ...]
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from orchestrator.run.metrics import read_rows

SEEDS = (1, 2, 3)
WINDOW = 10


def main() -> None:
    run_file, *settings = sys.argv[1:]
    results = {}
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "orchestrator.commands.cli", "train", run_file, "--out", f"{folder}/run"]
            for setting in [f"seed={seed}", *settings]:
                command += ["--set", setting]
            subprocess.run(command, check=True)
            rows = read_rows(Path(folder) / "run" / "metrics.jsonl")
            evaluation = json.loads((Path(folder) / "run" / "evaluation.json").read_text())
        parts = [key for key in rows[0] if key == "reward" or key.startswith("reward/")]
        first, last = (
            {key: round(sum(row[key] for row in part) / WINDOW, 3) for key in parts}
            for part in (rows[:WINDOW], rows[-WINDOW:])
        )
        rise = round(last["reward"] - first["reward"], 3)
        tacc = {when: report["metrics"]["TAcc"] for when, report in evaluation.items()}
        results[seed] = {"first": first, "last": last, "rise": rise, "TAcc": tacc, "seconds": rows[-1]["elapsed_s"]}
        print(json.dumps({"seed": seed, **results[seed]}), flush=True)
    print(json.dumps({"rise": {seed: result["rise"] for seed, result in results.items()}, "seeds": results}))


if __name__ == "__main__":
    main()
