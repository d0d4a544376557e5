"""Results as files: one JSON a work, and a page with all of them for the README."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.options import OPTIONS
from tests.bench.running import PEERS
from tests.bench.works import WORKS

Record = dict[str, Any]
TITLES = {
    "bare": "bare loop",
    "fedsim": "fedsim",
    "flower": "Flower simulation",
    "pfl": "pfl, 1 process",
    "pfl_processes": "pfl, a process per core",
}


def write(folder: Path, name: str, record: Record) -> None:
    """Write one result and the page of all results in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    (folder / "README.md").write_text(page(folder))


def page(folder: Path) -> str:
    """All results of a folder as markdown."""
    found = [json.loads(f.read_text()) for n in WORKS if (f := folder / f"{n}.json").exists()]
    startup = folder / "startup.json"
    starts = json.loads(startup.read_text()) if startup.exists() else None
    parts = [
        "# Speed",
        "Written by `python -m tests.bench`. Seconds per round (median over repeats of the median "
        "over rounds, after warm-up); in brackets the ratio to the bare loop, which resets a "
        "resident model, trains and adds up, with one process per core and nothing else.",
        _table(found, "work", _wall),
        "Processor seconds of all processes together per round, which say more on a busy machine:",
        _table(found, "work", _processor),
    ]
    parts += [_options(found)]
    parts += [_messages(record) for record in found if record["work"] == "nothing"]
    parts += [_command(record) for record in found if "command" in record]
    parts += [_startup(starts), _machine(starts, "Start-up was measured")] if starts else []
    parts += [_failures(found), *(_machine(record, "Measured") for record in found[:1])]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(found: list[Record], corner: str, cell: Callable[[Record], str]) -> str:
    head = [corner, *(TITLES[peer] for peer in PEERS)]
    rows = [head, ["---"] * len(head)]
    for record in found:
        peers = record["peers"]
        cells = [cell(peers[peer]) if peer in peers else "" for peer in PEERS]
        rows.append([record["title"], *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _wall(peer: Record) -> str:
    return _with_ratio(peer["seconds_per_round"], peer["ratio_to_bare"])


def _processor(peer: Record) -> str:
    return _with_ratio(peer["cpu_per_round"], peer["cpu_ratio"])


def _with_ratio(seconds: float | None, ratio: float | None) -> str:
    if seconds is None:
        return "none"
    return _seconds(seconds) + (f" ({ratio:.2f})" if ratio else "")


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.3g} ms"


def _title(name: str) -> str:
    return TITLES.get(name) or f"fedsim, {OPTIONS[name].title}"


def _options(found: list[Record]) -> str:
    """What goes below the floor, with the accuracy after the same rounds beside it."""
    head = "| work, option of fedsim | wall time | processor | accuracy | final loss |"
    rows = []
    for record in found:
        known = {n: o.title for n, o in OPTIONS.items() if n in record["peers"]}
        for name, title in {"fedsim": "as it is", **known}.items() if known else ():
            peer = record["peers"][name]
            accuracy = peer.get("accuracy")
            cells = [f"{record['title']}, {title}", _wall(peer), _processor(peer)]
            cells += ["" if x is None else f"{x:.3f}" for x in (accuracy, peer["final_loss"])]
            rows.append(f"| {' | '.join(cells)} |")
    if not rows:
        return ""
    text = "Options, in brackets the ratio to the bare loop of the same run:"
    return "\n".join([text, "", head, "|---|---|---|---|---|", *rows])


def _messages(record: Record) -> str:
    per_round = WORKS["nothing"].cohort
    cells = [
        f"{TITLES[name]} {peer['seconds_per_round'] / per_round * 1000:.2f} s"
        for name, peer in record["peers"].items()
        if peer["seconds_per_round"] is not None
    ]
    return f"1,000 messages to clients that do nothing: {', '.join(cells)}."


def _command(record: Record) -> str:
    command = record["command"]
    if command["seconds"] is None:
        return f"`fedsim run` of the logistic regression failed: {command['failed']}"
    return (
        f"`fedsim run`, {command['rounds']} rounds of {record['title']}, "
        f"from command to exit: {command['seconds']:.1f} s."
    )


def _startup(record: Record) -> str:
    rows = ["| start-up to first round | seconds | of which imports |", "|---|---|---|"]
    for name, start in record["starts"].items():
        if start["startup_s"] is None:
            rows.append(f"| {name} | failed | |")
            continue
        imports = sum(start["of_which"].values())
        rows.append(f"| {name} | {start['startup_s']:.1f} | {imports:.1f} |")
    return "\n".join(rows)


def _failures(found: list[Record]) -> str:
    lines = [
        f"- {record['title']}, {_title(name)}: {reason}"
        for record in found
        for name, peer in record["peers"].items()
        for reason in peer["failed"]
    ]
    lines += [f"- {record['title']}: {d}" for record in found for d in record["differences"]]
    return "\n".join(["What went wrong:", "", *lines]) if lines else ""


def _machine(record: Record, measured: str) -> str:
    facts = record["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return (
        f"{measured} {record['date']} on {facts['cpu']}, {facts['cores']} cores, "
        f"{facts['memory_gib']} GiB; Python {facts['python']}, {versions}."
    )
