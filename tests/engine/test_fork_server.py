"""Workers are copies of one process; they die, and it dies, without a trace in the results."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from fedsim import simulation
from fedsim.engine import fork_client, fork_server, launch
from fedsim.results import Run
from fedsim.scenario import EngineSection, ModelSection
from tests.engine.killing import (
    RAY,
    Drivers,
    copies_of,
    name,
    parent,
    slow_scenario,
    wait_for,
    workers_of,
)
from tests.engine.runs import outcome

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="copies are made on Linux only")

WORKER = """
    import json, os, sys
    from threadpoolctl import threadpool_info
    print(json.dumps({
        "arguments": sys.argv[1:], "folder": os.getcwd(), "variable": os.environ.get("VARIABLE"),
        "pid": os.getpid(), "parent": os.getppid(), "loaded": "colorsys" in sys.modules,
        "name": __name__, "read": sys.stdin.read(), "secret": os.environ.get("SECRET"),
        "threads": [pool["num_threads"] for pool in threadpool_info()],
    }))
    print("to stderr", file=sys.stderr)
    if "--fails" in sys.argv:
        raise RuntimeError("as asked")
"""
SERVER = """
    import atexit, os, sys
    from fedsim.engine.fork_server import ForkServer
    assert "colorsys" not in sys.modules
    os.environ["SECRET"] = "of the server"
    atexit.register(print, "end of the process that is copied")
    server = ForkServer(["colorsys", "no_such_module", "numpy"])
    print(server.address, flush=True)
    sys.stdin.readline()
"""


def write(folder: Path, name: str, code: str) -> Path:
    """A program in a file."""
    (folder / name).write_text(textwrap.dedent(code))
    return folder / name


@pytest.fixture
def worker(tmp_path):
    """A program that tells what it is, in the place of Ray's worker."""
    write(tmp_path, "setup_worker.py", "import sys; print('as Ray does', sys.argv[1:])")
    return write(tmp_path, "default_worker.py", WORKER)


@pytest.fixture
def server(tmp_path):
    """A process with a fork server; its address is the first line it prints."""
    program = write(tmp_path, "server.py", SERVER)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, program], **pipes) as process:
        process.address = process.stdout.readline().strip()
        yield process
        process.kill()
    shutil.rmtree(Path(process.address).parent, ignore_errors=True)


def start(
    worker: Path, address: str, *options: str, **variables: str
) -> subprocess.CompletedProcess:
    """Start a worker as Ray does; returns when it has closed its output."""
    environment = {**os.environ, fork_client.SERVER: address, **variables}
    environment.pop("SECRET", None)
    given = [sys.executable, fork_client.__file__, worker, *options]
    about = {"env": environment, "cwd": worker.parent, "capture_output": True, "text": True}
    return subprocess.run([str(part) for part in given], input="for it", timeout=60, **about)


@LINUX
def test_a_copy_runs_the_program_as_if_it_had_been_started_so(worker, server):
    for number in ("1", "2"):
        done = start(worker, server.address, "--a=1", "--language=PYTHON", VARIABLE=number)
        told = json.loads(done.stdout)
        copy, parent = told.pop("pid"), told.pop("parent")
        assert parent in {p.pid for p in psutil.Process(server.pid).children()}
        assert copy != parent
        assert told == {
            "arguments": ["--a=1"],
            "folder": str(worker.parent),
            "variable": number,
            "loaded": True,
            "name": "__main__",
            "read": "for it",
            "secret": None,
            "threads": [1],
        }
        assert done.stderr == "to stderr\n"


@LINUX
def test_a_copy_that_fails_says_so_and_others_follow(worker, server):
    failed = start(worker, server.address, "--language=PYTHON", "--fails")
    assert "RuntimeError: as asked" in failed.stderr
    assert "end of the process" not in failed.stdout
    assert json.loads(start(worker, server.address, "--language=PYTHON").stdout)["loaded"]


@pytest.mark.slow_variants
@LINUX
@pytest.mark.parametrize("how", ["end", "kill"])
def test_the_server_ends_with_its_process_and_takes_its_folder_along(server, how):
    (copy,) = psutil.Process(server.pid).children()
    folder = Path(server.address).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    if how == "kill":
        server.kill()
    else:
        server.communicate("\n")
    copy.wait(20)
    assert not folder.exists()


@LINUX
def test_noise_and_silence_do_not_stop_the_server(worker, server):
    import socket

    for noise in (b"", b"x", b"{}", b"\xff" * 100_000):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(server.address)
            client.sendall(noise)
    assert json.loads(start(worker, server.address, "--language=PYTHON").stdout)["loaded"]


@LINUX
@pytest.mark.parametrize(
    "options", [["--language=JAVA"], ["--language=PYTHON", "--serialized-runtime-env-context={}"]]
)
def test_what_no_copy_can_do_is_left_to_ray(worker, server, options):
    done = start(worker, server.address, *options)
    assert done.stdout == f"as Ray does {[str(worker), *options]}\n"


@LINUX
def test_a_server_that_ends_before_it_answers_is_no_server(worker, server):
    (copy,) = psutil.Process(server.pid).children()
    copy.suspend()  # as while it loads
    given = [sys.executable, fork_client.__file__, str(worker), "--language=PYTHON"]
    environment = {**os.environ, fork_client.SERVER: server.address}
    with subprocess.Popen(given, env=environment, stdout=subprocess.PIPE, text=True) as asking:
        with pytest.raises(subprocess.TimeoutExpired):
            asking.wait(1)
        copy.kill()
        assert asking.communicate(timeout=20)[0].startswith("as Ray does")


def test_without_a_server_workers_start_as_ray_starts_them(worker, tmp_path):
    done = start(worker, str(tmp_path / "nobody"), "--language=PYTHON")
    assert done.stdout == f"as Ray does {[str(worker), '--language=PYTHON']}\n"


@pytest.mark.parametrize(
    ("engine", "suits"),
    [
        ({}, True),
        ({"start_method": "spawn"}, False),
        ({"address": "auto"}, False),
        ({"gpus_per_worker": 0.5}, False),
        ({"threads_per_worker": 2}, False),
    ],
)
def test_only_what_survives_copying_is_copied(monkeypatch, engine, suits):
    made = []
    monkeypatch.setattr(launch, "_fork_server", None)
    monkeypatch.setattr(fork_server, "is_safe", lambda: True)
    monkeypatch.setattr(fork_server, "ForkServer", lambda modules: made.append(modules) or "it")
    found = launch._forks(EngineSection.model_validate(engine), ModelSection(name="bert"))
    assert found == ("it" if suits else None)
    assert made == [["transformers.modeling_utils"]] * suits


def test_where_no_copy_can_be_made_workers_load_for_themselves(monkeypatch, caplog):
    def full(modules):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(launch, "_fork_server", None)
    monkeypatch.setattr(fork_server, "is_safe", lambda: True)
    monkeypatch.setattr(fork_server, "ForkServer", full)
    with caplog.at_level("INFO", "fedsim"):
        assert launch._forks(EngineSection(), ModelSection(name="bert")) is None
    assert "each worker loads its libraries for itself: [Errno 12]" in caplog.text


@pytest.mark.parametrize(
    ("model", "libraries"),
    [
        ({"name": "module:function"}, []),
        ({"name": "sshleifer/tiny-gpt2"}, ["transformers.modeling_utils"]),
        ({"name": "package:module/folder"}, ["transformers.modeling_utils"]),
        (
            {"config": {"model_type": "bert"}, "peft": {"peft_type": "LORA"}},
            ["transformers.modeling_utils", "peft"],
        ),
    ],
)
def test_the_server_loads_what_the_model_needs(model, libraries):
    assert launch._libraries(ModelSection.model_validate(model)) == libraries


def test_a_process_with_threads_or_with_ray_is_not_copied(monkeypatch):
    import threading

    monkeypatch.setattr(threading, "active_count", lambda: 1)
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    assert fork_server.is_safe() == (sys.platform == "linux")
    monkeypatch.setitem(sys.modules, "ray", None)
    assert not fork_server.is_safe()
    monkeypatch.delitem(sys.modules, "ray")
    monkeypatch.setattr(threading, "active_count", lambda: 2)
    assert not fork_server.is_safe()


@LINUX
@pytest.mark.slow
def test_killed_copies_and_a_killed_server_change_nothing(tmp_path):
    expected = outcome(simulation.run(slow_scenario({"backend": "inline"}), out=tmp_path / "here"))
    drivers = Drivers()
    driver = drivers.start(slow_scenario(RAY), tmp_path / "there")
    me = psutil.Process(driver.pid)
    wait_for(lambda: len(workers_of(me)) == 2, driver)
    first = workers_of(me)
    (server,) = {p.parent() for p in first}
    assert server.parent() == me
    first[0].kill()
    wait_for(lambda: len([p for p in workers_of(me) if p not in first]) == 1, driver)
    again = workers_of(me)
    assert {p.parent() for p in again} == {server}
    server.kill()
    again[0].kill()
    wait_for(lambda: any(name(parent(p)) == "raylet" for p in workers_of(me)), driver)
    again = workers_of(me)
    driver.join(120)
    assert driver.exitcode == 0
    (folder,) = (tmp_path / "there").glob("tiny/*")
    assert outcome(Run.open(folder)) == expected
    _, left = psutil.wait_procs(again, timeout=20)
    assert not left


@LINUX
@pytest.mark.slow
def test_a_copy_that_dies_before_ray_knows_it_is_replaced(tmp_path):
    expected = outcome(simulation.run(slow_scenario({"backend": "inline"}), out=tmp_path / "here"))
    drivers = Drivers()
    driver = drivers.start(slow_scenario(RAY), tmp_path / "there")
    me = psutil.Process(driver.pid)
    first = wait_for(lambda: copies_of(me), driver)[0]
    first.kill()
    wait_for(lambda: len([p for p in workers_of(me) if p != first]) == 2, driver)
    driver.join(120)
    assert driver.exitcode == 0
    (folder,) = (tmp_path / "there").glob("tiny/*")
    assert outcome(Run.open(folder)) == expected
