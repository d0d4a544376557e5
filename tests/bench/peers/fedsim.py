"""fedsim itself: ``fedsim.simulation.run`` on a scenario, started as the command starts it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.bench.options import OPTIONS
from tests.bench.peers.program import Arguments, ImportClock, Meter, Result, main, since_start
from tests.bench.works import BERTS, LORA, Work


def scenario(work: Work, rounds: int, workers: int, backend: str = "ray") -> dict[str, Any]:
    """The work as a scenario; tests happen before the first and after the last round only."""
    client = {"name": "sgd", "learning_rate": work.learning_rate, "batch_size": work.batch_size}
    return {
        "name": work.name.replace("_", "-"),
        "num_rounds": rounds,
        "num_clients": work.num_clients,
        "clients_per_round": work.cohort,
        **(_tokens(work) if work.vocabulary else _images(work)),
        "data": {"path": "tests.bench.works:dataset", "options": {"work": work.name}},
        "client": client if work.trains else {"name": "tests.bench.plugins:Nothing"},
        "strategy": {"name": "fedavg"},
        "evaluate": {"every": 1_000_000},
        "engine": {"backend": backend, "workers": workers},
    }


def changed(values: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A scenario with some of its dotted keys set."""
    for key, value in changes.items():
        *sections, last = key.split(".")
        inner = values
        for name in sections:
            inner = inner.setdefault(name, {})
        inner[last] = value
    return values


def _images(work: Work) -> dict[str, Any]:
    channels = work.shape[0] if len(work.shape) == 3 else 1
    return {
        "task": {
            "name": "image_classification",
            "mean": [0.5] * channels,
            "std": [0.25] * channels,
        },
        "model": {"name": f"tests.bench.models:{'cnn' if work.name == 'cnn' else 'logistic'}"},
    }


def _tokens(work: Work) -> dict[str, Any]:
    return {
        "task": {"name": "tests.bench.plugins:TokenClassification"},
        "model": {
            "config": {"model_type": "bert", **BERTS[work.name]},
            "peft": {"peft_type": "LORA", **LORA},
        },
    }


def run(arguments: Arguments) -> Result:
    """Run the scenario with a reporter that reads the clock."""
    parts = {"interpreter": since_start()}
    imports = ImportClock()
    work, meter = arguments.work, Meter(arguments.rounds)
    # One round more: the last one ends with tests.
    values = scenario(work, arguments.rounds + 1, arguments.workers, arguments.backend)
    if arguments.option:
        values = changed(values, OPTIONS[arguments.option].changes)
    from fedsim.engine.launch import launching
    from fedsim.loading import loading
    from fedsim.scenario import EngineSection, ModelSection

    engine = EngineSection.model_validate(values["engine"])
    with (
        launching(engine, ModelSection.model_validate(values["model"])) as launch,
        tempfile.TemporaryDirectory() as out,
    ):
        with loading():
            from fedsim import simulation
            from fedsim.codec import HEADER
            from fedsim.progress import Reporter
            from fedsim.scenario import Scenario

        class Clock(Reporter):
            def round_done(self, record: Mapping[str, Any]) -> None:
                if record["round"]:
                    meter.round_done()
                else:
                    parts["imports"] = imports.seconds
                    meter.begin()

        done = simulation.run(
            Scenario.model_validate(values), out=Path(out), reporter=Clock(), launch=launch
        )
        rounds = done.rounds[1:-1]
        examples = {row["num_examples"] for row in done.clients}
    assert examples == {work.rows}, f"clients trained on {examples} rows"
    finished = {record["clients/completed"] for record in rounds}
    assert finished == {work.cohort}, f"{finished} clients completed"
    return Result(
        seconds=meter.seconds[:-1],
        losses=[record["train/loss"] for record in rounds],
        steps=work.steps,
        num_trainable=(rounds[0]["comm/up_bytes"] // work.cohort - HEADER.size) // 4,
        startup_s=meter.startup_s,
        cpu_per_round=meter.cpu_per_round,
        others_cpu_per_round=meter.others_cpu_per_round,
        parts_s=parts,
        accuracy=done.rounds[-1].get("eval/accuracy"),
    )


if __name__ == "__main__":
    main(run, "flwr", "ray", "transformers", "peft", "datasets")
