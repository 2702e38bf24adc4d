"""Makes `deploy/demo/tiny_run`, which `star-r1 report --demo` shows: a short run of the tiny policy; and its data.

    python deploy/demo/make.py    (a minute; from the checkout)

What the page does not read is left out, and pictures are JPEG: all of it is some hundred KB.
"""

import io
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import datasets
import tomli_w
from PIL import Image

DEMO = Path(__file__).parent
KEPT = ("run.json", "metrics.jsonl", "journal.jsonl", "evaluation.json", "traces")
SETTINGS = (
    *("loop.steps=12", "loop.groups_per_step=4", "evaluation.every_steps=4", "evaluation.max_samples=24"),
    *("data.train=18", "data.test=24", "data.spp=24", "rollout.workers=2", "rollout.kv_cache_mib=64"),
)
QUALITY = 80


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run, data = Path(folder) / "run", Path(folder) / "data"
        settings = [part for value in (*SETTINGS, f"data.path={data}") for part in ("--set", value)]
        cli = [sys.executable, "-m", "orchestrator.commands.cli"]
        subprocess.run([*cli, "train", "deploy/runs/tiny_cpu.toml", *settings, "--out", str(run)], check=True)
        for name in ("tiny_run", "data"):
            shutil.rmtree(DEMO / name, ignore_errors=True)
        keep_run(run, DEMO / "tiny_run")
        keep_data(data, DEMO / "data")


def keep_run(run: Path, out: Path) -> None:
    out.mkdir()
    for name in KEPT:
        copy = shutil.copytree if (run / name).is_dir() else shutil.copy
        copy(run / name, out / name)
    config = tomllib.loads((run / "config.toml").read_text())
    config["model"], config["data"]["path"] = "../../models/tiny", "../data"  # from the run, wherever the checkout is
    (out / "config.toml").write_text(tomli_w.dumps(config))


def keep_data(data: Path, out: Path) -> None:
    """The training pairs."""
    rows = datasets.load_from_disk(data)["train"]
    for column in ("initial", "final"):
        rows = rows.cast_column(column, datasets.Image(decode=False))
    smaller = rows.map(
        lambda row: {name: to_jpeg(row[name]) for name in ("initial", "final")}, load_from_cache_file=False
    )
    datasets.DatasetDict({"train": smaller.cast(datasets.load_from_disk(data)["train"].features)}).save_to_disk(out)
    shutil.copy(data / "recipe.json", out)


def to_jpeg(image: dict) -> dict:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(image["bytes"])).convert("RGB").save(buffer, "JPEG", quality=QUALITY)
    return {"bytes": buffer.getvalue(), "path": None}


if __name__ == "__main__":
    main()
