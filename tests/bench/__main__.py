"""``python -m tests.bench``: the same works by the bare loop, fedsim, Flower and pfl-research."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from tests.bench import table
from tests.bench.measuring import measure, measure_command, measure_startup
from tests.bench.running import PEERS
from tests.bench.works import WORKS

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Measure what was asked for, write it, print the page."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # ends what runs, too
    arguments = _parse()
    failed = []
    for name in [n for n in arguments.only if n in WORKS]:
        work = WORKS[name]
        rounds = 1 if arguments.quick else arguments.rounds or work.rounds
        record = measure(work, arguments.peers, rounds, arguments.repeats, arguments.patience)
        if name == "logistic" and "fedsim" in arguments.peers:
            record["command"] = measure_command(work, arguments.repeats, arguments.patience)
        table.write(arguments.out, name, record)
        failed += record["differences"]
    if "startup" in arguments.only:
        works = [WORKS["cnn"], WORKS["lora_bert"]]
        starts = measure_startup(works, arguments.repeats, arguments.patience)
        table.write(arguments.out, "startup", starts)
    print(table.page(arguments.out))
    if failed:
        sys.exit("the peers did not do the same: " + "; ".join(failed))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    everything = [*WORKS, "startup"]
    parser.add_argument("--only", type=_list_of(everything), default=everything)
    parser.add_argument("--peers", type=_list_of(list(PEERS)), default=list(PEERS))
    parser.add_argument("--rounds", type=int, help="timed rounds instead of the work's own")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round, once")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument(
        "--patience", type=float, default=60.0, help="seconds to wait for a quiet machine"
    )
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.repeats, arguments.patience = 1, 0.0
    return arguments


def _list_of(known: list[str]):  # type: ignore[no-untyped-def]
    def parse(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"'{name}' is not one of {', '.join(known)}")
        return names

    return parse


if __name__ == "__main__":
    main()
