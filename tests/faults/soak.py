"""Many faults, drawn from a seed, in one run: `make soak`, or python -m tests.faults.soak --faults 100 --seed 1.

Prints a line for each fault, then a table of fault and stage, and one JSON line last. Ends with status 1 unless the
ledger balances and the prompts, the rows and the parameters are those of the run that nothing happened to.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

from orchestrator.config import load_run_config
from tasks.tvr.data.rendered import ensure
from tests.faults.faulty_run import STAGES, Fault, FaultyRun, Outcome, Witness, run_undisturbed
from tests.faults.settings import settings
from tests.orchestrator.small_runs import SMALL, TINY

POSSIBLE = (
    *(("kill", kind) for kind in ("rollout", "reward", "learner", "driver")),
    *(("stop", kind) for kind in ("rollout", "reward", "learner")),
    ("break", "rollout"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("output/soak"))
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    options = parser.parse_args()
    data = ensure(load_run_config(TINY, [*SMALL, "data.path=data/soak"]).data)
    options.out.mkdir(parents=True)
    # More steps than faults: one more or two pass until the next is made.
    given = settings(data, 3 * options.faults + 4, *options.set)
    run = FaultyRun(options.out / "faulty", given)
    began = time.monotonic()
    try:
        run.start()
        soak(run, random.Random(options.seed), options.faults)
        run.finish()
    finally:
        run.end()
    faulty_s = time.monotonic() - began
    show(run.witnesses)
    outcome, undisturbed = Outcome.of(run.out), run_undisturbed(options.out / "undisturbed", given)
    same = {name: getattr(outcome, name) == getattr(undisturbed, name) for name in ("parameters", "prompts", "rows")}
    result = {
        "faults": len(run.witnesses),
        "seed": options.seed,
        "kinds": len({(witness.fault.how, witness.fault.kind) for witness in run.witnesses}),
        "groups": sum(outcome.prompts.values()),
        "same": same,
        "parameters": outcome.parameters,
        "seconds": round(faulty_s),
    }
    print(json.dumps(result))
    sys.exit(not all(same.values()))


def soak(run: FaultyRun, rng: random.Random, faults: int) -> None:
    version = 0
    for number in range(faults):
        # Every kind comes as often as the others, in an order that is drawn.
        how, kind = rng.choice(POSSIBLE) if number >= len(POSSIBLE) else POSSIBLE[number]
        stage = rng.choice(list(STAGES))
        print(f"{number + 1:4} {how} {kind} at {stage}", end="", flush=True)
        witness = run.strike(Fault(how, kind, stage), version, rng.choice)
        run.await_recovery(witness)
        version = run.served()
        print(
            f": {witness.worker}, {witness.recovered_s:.1f} s, {witness.asked_again} asked again, version {version}",
            flush=True,
        )


def show(witnesses: list[Witness]) -> None:
    """By fault and stage: how often, median seconds to recover, groups asked again."""
    cells: dict[tuple[str, str], list[Witness]] = defaultdict(list)
    for witness in witnesses:
        cells[f"{witness.fault.how} {witness.fault.kind}", witness.fault.stage].append(witness)
    print(f"| fault | {' | '.join(STAGES)} |\n|---|{'---|' * len(STAGES)}")
    for fault in sorted({fault for fault, _ in cells}):
        said = []
        for stage in STAGES:
            found = cells.get((fault, stage), [])
            median = statistics.median(it.recovered_s for it in found) if found else 0.0
            said.append(f"{len(found)}: {median:.0f} s, {sum(it.asked_again for it in found)}" if found else "")
        print(f"| {fault} | {' | '.join(said)} |")


if __name__ == "__main__":
    main()
