"""Every shipped strategy goes on after an interruption to the same bits, with clients that drop."""

import pytest

from fedsim import registry, simulation
from tests.engine.runs import outcome, stopped
from tests.problems import tiny

NAMES = list(registry.available("strategies"))
KSEED = {"name": "kseed", "local_steps": 3, "batch_size": 8}
CLIENTS = {
    "fedkseed": KSEED,
    "fedbuff_kseed": KSEED,
    "fedmezo": {"name": "fedmezo", "local_steps": 3, "batch_size": 8},
    "ferret": {"name": "ferret", "learning_rate": 0.1, "batch_size": 8},
}
"""Clients of strategies whose messages are of their own."""
OPTIONS = {
    "fedbuff": {"buffer_size": 2},
    "afa_cd": {"buffer_size": 2},
    "afa_cs": {"buffer_size": 2},
    "fedbuff_kseed": {"buffer_size": 2, "num_seeds": 16},
    "fedkseed": {"num_seeds": 16},
    "ferret": {"num_bases": 8},
    "known_participation": {"rates": [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]},
}
FLEET = {"mix": [{"profile": "phone-spread", "share": 1.0}], "speed_sigma": 1.5}
LOSSY = {**FLEET, "dropout": 0.2}


def devices(name: str) -> dict:
    """Clients that drop, and come and go where a strategy has rounds; co2 waits for all."""
    if name == "co2":
        return FLEET
    if getattr(registry.find("strategies", name), "by_events", False):
        return LOSSY
    return {**LOSSY, "availability": {"name": "bernoulli", "rate": 0.6}}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_resume_gives_the_same_bits(tmp_path, name):
    scenario = tiny(
        strategy={"name": name, **OPTIONS.get(name, {})},
        client=CLIENTS.get(name, {}),
        devices=devices(name),
        num_rounds=6,
        clients_per_round=4,
        checkpoint={"every": 1},
    )
    whole = simulation.run(scenario, out=tmp_path / "whole")
    resumed = simulation.resume(stopped(scenario, tmp_path / "runs", 4))
    assert resumed.status == "done"
    assert outcome(resumed) == outcome(whole)
