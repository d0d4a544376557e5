"""Checkpoints: a run that was stopped anywhere continues to the same bits."""

import errno
import fcntl
import multiprocessing
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict

from fedsim import simulation, trees
from fedsim.engine.states import ClientStates
from fedsim.errors import OutputError, PayloadError, RunError
from fedsim.events import at_work
from fedsim.progress import Reporter
from fedsim.results import Run
from fedsim.strategies.fedavg import FedAvg
from tests.engine.runs import STOCK, comparable, outcome, six_rounds, stopped, stopping_after
from tests.problems import tiny

NOISY = {
    "name": STOCK + "DifferentialPrivacyServerSideAdaptiveClipping",
    "noise_multiplier": 0.1,
    "num_sampled_clients": 3,
    "strategy": {"name": STOCK + "FedAdam"},
}
STRATEGIES = {
    "fedavg": {"name": "fedavg"},
    "fedavgm": {"name": "fedavgm"},
    "fedadam": {"name": "fedadam"},
    "fedyogi": {"name": "fedyogi"},
    "fedadagrad": {"name": "fedadagrad"},
    "flower-avgm": {"name": STOCK + "FedAvgM", "server_momentum": 0.9},
    "flower-adam": {"name": STOCK + "FedAdam"},
    "flower-yogi": {"name": STOCK + "FedYogi"},
    "flower-krum": {"name": STOCK + "Krum", "num_malicious_nodes": 1},
    "flower-noise-around-adam": NOISY,
}


@pytest.mark.slow_variants
@pytest.mark.parametrize("name", STRATEGIES)
def test_resume_gives_the_same_bits(tmp_path, name):
    scenario = six_rounds(strategy=STRATEGIES[name])
    whole = simulation.run(scenario, out=tmp_path / "whole")
    resumed = simulation.resume(stopped(scenario, tmp_path, 4))
    assert outcome(resumed) == outcome(whole)
    assert resumed.status == "done"


@pytest.mark.slow_variants
@pytest.mark.parametrize("strategy", ["fedadam", "flower-adam"])
@pytest.mark.parametrize("server_round", range(1, 7))
def test_resume_after_every_round(tmp_path, server_round, strategy):
    scenario = six_rounds(strategy=STRATEGIES[strategy])
    whole = simulation.run(scenario, out=tmp_path / "whole")
    folder = stopped_after(scenario, tmp_path, server_round)
    assert [r["round"] for r in Run.open(folder).rounds] == [*range(server_round + 1)]
    resumed = simulation.resume(folder)
    assert outcome(resumed) == outcome(whole)
    assert resumed.status == "done"
    assert f"resumed after round {server_round}" in "\n".join(resumed.events)


def stopped_after(scenario, out, server_round):
    """The folder of a run that ended when the checkpoint of a round had been written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulation, "Checkpoints", stopping_after(server_round))
        with pytest.raises(KeyboardInterrupt):
            simulation.run(scenario, out=out)
    return max(out.glob("tiny/*"))


def test_a_torn_checkpoint_is_noticed_and_the_one_before_is_used(tmp_path, caplog):
    scenario = six_rounds(strategy={"name": "fedadam"})
    whole = simulation.run(scenario, out=tmp_path / "whole")
    folder = stopped(scenario, tmp_path, 5)
    newest = max(folder.glob("checkpoints/round-*"))
    newest.write_bytes(newest.read_bytes()[:-40])
    resumed = simulation.resume(folder)
    assert "the checkpoint before it is used" in caplog.text
    assert comparable(resumed) == comparable(whole)


def damage(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1  # a value, behind the header
    path.write_bytes(data)


def test_a_resumed_run_keeps_what_its_older_checkpoint_needs(tmp_path):
    scenario = six_rounds()
    whole = simulation.run(scenario, out=tmp_path / "whole")
    folder = stopped_after(scenario, tmp_path, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulation, "Checkpoints", stopping_after(3))
        with pytest.raises(KeyboardInterrupt):
            simulation.resume(folder)
    damage(folder / "checkpoints" / "round-000003.safetensors")
    resumed = simulation.resume(folder)
    assert "resumed after round 2" in "\n".join(resumed.events)
    assert outcome(resumed) == outcome(whole)


def test_an_altered_client_state_spoils_its_checkpoint_but_not_the_one_before(tmp_path):
    scenario = six_rounds()
    whole = simulation.run(scenario, out=tmp_path / "whole")
    folder = stopped_after(scenario, tmp_path, 4)
    states = [*(folder / "checkpoints" / "clients").rglob("*-4.safetensors")]
    assert len(states) == 3
    damage(states[1])
    resumed = simulation.resume(folder)
    events = "\n".join(resumed.events)
    assert f"{states[1].name}: " in events
    assert "the checkpoint before it is used" in events
    assert "resumed after round 3" in events
    assert outcome(resumed) == outcome(whole)


def test_files_of_rounds_that_were_taken_back_are_deleted(tmp_path):
    scenario = six_rounds(engine={"client_state_mb": 1e-6})
    folder = stopped(scenario, tmp_path, 4)
    temporary = folder / "checkpoints" / "clients" / "00" / ".1-1.safetensors.77.tmp"
    temporary.parent.mkdir(exist_ok=True)
    temporary.write_bytes(b"half")
    run = simulation.resume(folder)
    needed = {(r["client"], r["round"]) for r in run.clients}
    left = {p.stem for p in (folder / "checkpoints" / "clients").rglob("*.safetensors")}
    assert left <= {f"{client}-{server_round}" for client, server_round in needed}
    assert len(left) <= 6 + 3
    assert not list(folder.rglob("*.tmp"))


def test_a_run_without_any_whole_checkpoint_says_so(tmp_path, caplog):
    folder = stopped_after(six_rounds(), tmp_path, 3)
    for path in folder.glob("checkpoints/round-*"):
        damage(path)
    with pytest.raises(OutputError, match="no checkpoint to resume from"):
        simulation.resume(folder)
    assert caplog.text.count("does not match its digest") == 2
    assert [r["round"] for r in Run.open(folder).rounds] == [0, 1, 2, 3], "nothing was taken back"


@pytest.mark.parametrize("name", ["rounds.jsonl", "clients.jsonl"])
def test_a_torn_last_line_is_no_obstacle(tmp_path, name):
    scenario = six_rounds()
    whole = simulation.run(scenario, out=tmp_path / "whole")
    folder = stopped(scenario, tmp_path, 4)
    path = folder / name
    path.write_bytes(path.read_bytes()[:-25])
    assert outcome(simulation.resume(folder)) == outcome(whole)


@pytest.mark.parametrize("name", ["rounds.jsonl", "clients.jsonl"])
def test_a_damaged_line_of_an_earlier_round_is_told(tmp_path, name):
    folder = stopped(six_rounds(), tmp_path, 4)
    path = folder / name
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], lines[1][:20] + "\n", *lines[2:]]))
    run = simulation.resume(folder)
    assert f"WARNING fedsim: {folder}: {name}:2 is not a record" in "\n".join(run.events)


class Resuming(Reporter):
    """Tries to resume the run that is at work."""

    def __init__(self, out: Path) -> None:
        self.out, self.refusal = out, ""

    def round_begins(self, server_round, num_clients):
        (folder,) = self.out.glob("tiny/*")
        with pytest.raises(RunError) as caught:
            simulation.resume(folder)
        self.refusal = str(caught.value)


def test_a_process_that_outlives_a_run_does_not_hold_its_lock(tmp_path):
    context = multiprocessing.get_context("fork")
    awake = context.Event()
    copy = context.Process(target=lambda: (awake.set(), time.sleep(60)))
    with at_work(tmp_path):
        copy.start()
        assert awake.wait(20)
    try:
        with at_work(tmp_path):
            pass
    finally:
        copy.kill()
        copy.join()


def test_a_run_at_work_cannot_be_resumed_by_another(tmp_path):
    whole = simulation.run(six_rounds(), out=tmp_path / "whole")
    reporter = Resuming(tmp_path / "runs")
    run = simulation.run(six_rounds(), out=tmp_path / "runs", reporter=reporter)
    assert "is at work in another process" in reporter.refusal
    assert outcome(run) == outcome(whole)


def test_folders_without_locks_are_no_obstacle(tmp_path, monkeypatch):
    def refuse(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert simulation.resume(stopped(six_rounds(), tmp_path, 4)).status == "done"


def test_there_may_be_nothing_to_resume(tmp_path):
    folder = stopped(six_rounds(checkpoint={"every": 10}), tmp_path, 2)
    with pytest.raises(OutputError, match="no checkpoint"):
        simulation.resume(folder)
    with pytest.raises(OutputError, match="is finished"):
        simulation.resume(simulation.run(tiny(), out=tmp_path / "b").path)


def test_the_first_ctrl_c_waits_for_the_round_and_saves_it(tmp_path):
    class Interrupting(Reporter):
        def round_begins(self, server_round, num_clients):
            if server_round == 3:
                signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)  # ignored where a shell runs this in the background
    scenario = six_rounds(checkpoint={"every": 100})
    whole = simulation.run(scenario, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        simulation.run(scenario, out=tmp_path, reporter=Interrupting())
    folder = max(tmp_path.glob("tiny/*"))
    assert Run.open(folder).status == "interrupted"
    assert [r["round"] for r in Run.open(folder).rounds] == [0, 1, 2, 3]
    assert comparable(simulation.resume(folder)) == comparable(whole)
    assert signal.getsignal(signal.SIGINT) is before


def test_old_checkpoints_and_client_states_are_deleted(tmp_path):
    run = simulation.run(six_rounds(), out=tmp_path)
    checkpoints = Path(run.path) / "checkpoints"
    assert len(list(checkpoints.glob("round-*"))) == 2
    states = list((checkpoints / "clients").rglob("*.safetensors"))
    assert 0 < len(states) <= 6 + 3


def test_states_spill_to_files_within_the_budget(tmp_path):
    states = ClientStates(tmp_path, budget_bytes=4000)
    for client in range(30):
        states.put(client, {"x": np.full(100, client, np.float64)}, 1)
    assert len(states._memory) == 5
    for client in (29, 3, 17, 0):
        assert states.get(client)["x"].tolist() == [client] * 100
    assert states.get(99) is None
    versions = states.flush()
    states.put(3, {"x": np.zeros(1)}, 2)
    again = ClientStates(tmp_path)
    again.restore(versions)
    assert again.get(3)["x"][0] == 3


VALUES = {
    "nested": {"a": [1, 2.5, None, True, "x", (1, 2)], 7: {"b": b"\x00\xff"}},
    "arrays": {"f": np.float32([1, np.nan]), "e": np.zeros((0, 3)), "s": np.array(2, np.int8)},
    "strided": np.arange(10)[::2],
    "of other machines": np.arange(10, dtype=">i4"),
    "scalars": [np.float64(1.5), np.float32(0.1), np.int64(3)],
    "records": RecordDict(
        {
            "a": ArrayRecord({"w": Array(np.ones((2, 2), np.float16))}),
            "m": MetricRecord({"x": [1.0, 2.0]}),
        }
    ),
}


@pytest.mark.parametrize("name", VALUES)
def test_trees_keep_values_types_and_dtypes(tmp_path, name):
    path = tmp_path / "x.safetensors"
    trees.save(path, VALUES[name])
    back = trees.load(path)
    assert type(back) is type(VALUES[name])
    np.testing.assert_equal(_plain(back), _plain(VALUES[name]))
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def _plain(value):
    if isinstance(value, RecordDict | ArrayRecord | MetricRecord):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, Array):
        return value.numpy(), value.numpy().dtype
    if isinstance(value, np.generic):
        return value.dtype, value
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value


OBJECTS = [
    object(),
    np.array(["a"]),
    np.array([b"a"]),
    np.array([None]),
    np.zeros(2, np.longdouble),
    np.zeros(2, "datetime64[s]"),
]


@pytest.mark.parametrize("value", OBJECTS)
def test_trees_refuse_objects(value):
    with pytest.raises(TypeError, match="no place in a checkpoint"):
        trees.pack({"x": value}, {})


class Named(FedAvg):
    """Has attributes that cannot be written."""

    def __init__(self) -> None:
        super().__init__()
        self.names, self.rest = np.array(["a", "b"]), object()


def test_checkpoints_leave_out_attributes_that_cannot_be_written_and_say_so(tmp_path):
    scenario = six_rounds(strategy={"name": "tests.engine.test_resume:Named"}, num_rounds=2)
    run = simulation.run(scenario, out=tmp_path)
    assert run.status == "done"
    for name, why in (("names", "an array of <U1"), ("rest", "object")):
        assert f"checkpoints leave out Named.{name}: {why}" in "\n".join(run.events)


@pytest.mark.parametrize("position", [0, 9, 60, 200, -1])
def test_an_altered_file_is_noticed(tmp_path, position):
    path = tmp_path / "x.safetensors"
    trees.save(path, {"w": np.arange(50.0), "round": 3})
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)
    with pytest.raises(PayloadError, match=r"torn or altered|does not match"):
        trees.load(path)


def test_a_full_disk_is_an_error_and_loses_nothing(tmp_path):
    path = tmp_path / "file" / "x.safetensors"
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OutputError, match="cannot be written"):
        trees.save(path, {"w": np.ones(3)})
    assert (tmp_path / "file").read_text() == "not a folder"
