"""Makes the finished example runs in ``tests/examples``: ``python -m tests.make_examples``.

Each is the quickstart with another method and everything else as it is, so that ``make demo`` can
compare them with a run of one's own. Takes about a minute each on two cores. What names the machine
is left out of the folders, and so are checkpoints and pages.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from fedsim import simulation
from fedsim.progress import Lines
from fedsim.records import dumps, read_json
from fedsim.results import Run
from fedsim.scenario import load

FOLDER = Path(__file__).parent / "examples"
TOPK = "codec.up=[{name: topk, density: 0.05, error_feedback: ef21}]"
FLEET = "devices={mix: [{profile: jetson-tx2, share: 0.5}, {profile: jetson-nx, share: 0.5}]}"
METHODS: dict[str, tuple[str, ...]] = {
    "fedavg": ("seeds=[0, 1]",),
    "fedavgm": ("strategy={name: fedavgm, server_momentum: 0.5}",),
    "fedadam": ("strategy={name: fedadam, eta: 0.01}",),
    "topk-ef21": (TOPK,),
    "boards": (FLEET,),
}
"""By name, the overrides of the quickstart."""
KEPT = (
    "STATUS", "scenario.yaml", "resolved.yaml", "rounds.jsonl", "clients.jsonl", "summary.json",
    "events.log",
)  # fmt: skip
KEPT_ENV = ("schema_version", "started", "run", "versions")


def make(name: str) -> None:
    """Run a method with each of its seeds, and put what is kept in place of the last time's."""
    overrides = [f"name=example-{name}", "tags=[example]", *METHODS[name]]
    scenario = load("quickstart", overrides)
    shutil.rmtree(FOLDER / scenario.name, ignore_errors=True)
    for seed in scenario.seeds or (scenario.seed,):
        one = scenario.model_copy(update={"seed": seed, "seeds": ()})
        with TemporaryDirectory() as out:
            run = simulation.run(one, out=Path(out), reporter=Lines())
            _keep(run, ["fedsim run quickstart", *map(repr, overrides)])


def _keep(run: Run, command: list[str]) -> None:
    target = FOLDER / run.name / run.path.name
    target.mkdir(parents=True)
    for file in KEPT:
        shutil.copyfile(run.path / file, target / file)
    env = read_json(run.path / "env.json", []) or {}
    kept = {key: env[key] for key in KEPT_ENV} | {"command": " ".join(command)}
    (target / "env.json").write_text(dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for chosen in sys.argv[1:] or METHODS:
        make(chosen)
