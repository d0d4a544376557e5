"""Runs that end early: whatever the moment, the run folder says how, and can be resumed."""

import pytest

from fedsim import simulation
from fedsim.errors import DataError
from tests.problems import tiny


def test_an_error_in_the_scenario_s_devices_leaves_no_folder(tmp_path):
    process = {"name": "bernoulli", "label_alpha": 0.5, "label_column": "nope"}
    devices = {"mix": [{"profile": "phone-mid", "share": 1.0}], "availability": process}
    with pytest.raises(DataError, match="nope"):
        simulation.run(tiny(devices=devices), out=tmp_path)
    assert not list(tmp_path.iterdir())
