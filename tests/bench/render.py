"""How fast pairs are rendered: in one process, the renderer's own time and that of whole pairs with everything.

    taskset -c 0 python -m tests.bench.render [PAIRS]

Pictures of 160x120 at 16 samples a pixel, 1 to 10 objects. Medians over five blocks of pairs; JSON on the last line.
"""

import json
import statistics
import sys
import time
from pathlib import Path

from tasks.tvr.data.config import DataConfig
from tasks.tvr.data.rendered import render_pair

BLOCKS = 5


def main() -> None:
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    config = DataConfig(
        path=Path("unused"), train=pairs, test=1, objects=(1, 10), changes=(1, 4), size=(160, 120), spp=16
    )
    render_pair(config, "train", 0)
    speeds, sizes = [], []
    for block in range(BLOCKS):
        started = time.perf_counter()
        numbers = range(block, pairs, BLOCKS)
        for number in numbers:
            row = render_pair(config, "train", number)
            sizes.append(len(row["initial"]["bytes"]) + len(row["final"]["bytes"]))
        speeds.append(2 * len(numbers) / (time.perf_counter() - started))
    result = {
        "pictures_per_s_per_core": round(statistics.median(speeds), 2),
        "slowest_block": round(min(speeds), 2),
        "fastest_block": round(max(speeds), 2),
        "kib_per_pair": round(statistics.mean(sizes) / 1024, 1),
        "pairs": pairs,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
