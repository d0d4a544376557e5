"""The warm start: public rows, cached by content, equal bits with and without the cache."""

import pytest

from fedsim import simulation
from fedsim.data import partition
from fedsim.engine.worker import Recipe, Worker
from fedsim.errors import ModelError
from tests.problems import tiny

WARM = {"warm_start": {"fraction": 0.3, "epochs": 3, "learning_rate": 0.05}}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))


def start_loss(**changes) -> float:
    scenario = tiny(**changes)
    split = partition.make(scenario, scenario.seed)
    built = Worker(Recipe(scenario, split.ownership, scenario.seed))
    return built.metrics(built.test(built.like, 0, 1))["loss"]


def test_it_improves_the_start_and_takes_its_rows_from_no_client(tmp_path):
    assert start_loss(model=WARM) < start_loss() - 0.1
    split = partition.make(tiny(model=WARM), 3)
    public = set(split.ownership.public.tolist())
    assert len(public) == 36
    assert not public & set(split.ownership.train.indices.tolist())
    assert len(split.ownership.train.indices) == 120 - 36


def test_the_second_run_reads_the_cache_and_gets_the_same_bits(tmp_path):
    first = simulation.run(tiny(model=WARM), out=tmp_path)
    files = list((tmp_path / "cache" / "warm_start").glob("*.safetensors"))
    written = files[0].stat().st_mtime_ns
    second = simulation.run(tiny(model=WARM), out=tmp_path)
    assert len(files) == 1
    assert files[0].stat().st_mtime_ns == written
    assert first.summary["weights_sha256"] == second.summary["weights_sha256"]


@pytest.mark.slow_variants
@pytest.mark.parametrize(
    "change",
    [{"epochs": 4}, {"learning_rate": 0.04}, {"fraction": 0.31}, {"optimizer": "SGD"}],
)
def test_anything_that_matters_makes_another_entry(tmp_path, change):
    start_loss(model=WARM)
    start_loss(model={"warm_start": {**WARM["warm_start"], **change}})
    assert len(list((tmp_path / "cache" / "warm_start").glob("*.safetensors"))) == 2


def test_seeds_make_other_entries(tmp_path):
    start_loss(model=WARM)
    start_loss(model=WARM, seed=4)
    assert len(list((tmp_path / "cache" / "warm_start").glob("*.safetensors"))) == 2


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ModelError, match="Did you mean 'AdamW'"):
        start_loss(model={"warm_start": {"optimizer": "AdamWW"}})
