"""What people get wrong: one paragraph that says where, what, what is allowed and what to try."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import pytest

from fedsim.engine import launch
from fedsim.errors import RunError
from fedsim.results import Run
from fedsim.scenario import EngineSection
from tests import bad_data, bad_plugins, bad_scenarios
from tests.bad_scenarios import END, GOOD, RATE
from tests.command import Command, real

PLUGIN_FILES = {
    "raises_at_import": "\n\nraise RuntimeError('no licence\\nfound')\n",
    "syntax_at_import": "def f(:\n",
    "exits_at_import": "import sys; sys.exit(4)\n",
    "sends_seeds": "from fedsim.clients.sgd import SGD\nclass Sender(SGD):\n    sends = 'seeds'\n",
    "inherits": "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    "from typing import TYPE_CHECKING\nfrom fedsim.clients.sgd import SGD\n"
    "if TYPE_CHECKING:\n    from nowhere import Unknown\n"
    "@dataclass(kw_only=True)\nclass Child(SGD):\n    mine: Unknown | None = None\n",
    "bring_texts": "from datasets import Dataset\ndef texts():\n"
    "    return Dataset.from_dict({'text': ['a', 'b'] * 60, 'label': [0, 1] * 60})\n",
}


@pytest.fixture
def fedsim(tmp_path, monkeypatch, capfd):
    return Command(tmp_path, monkeypatch, capfd)


def write(text: str, name: str = "bad.yaml") -> str:
    Path(name).write_text(text)
    return name


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) == 1, old
    return GOOD.replace(old, new)


def marked(text: str, name: str = "bad.yaml") -> str:
    """``file:line`` of the line with the mark."""
    (line,) = [i for i, row in enumerate(text.splitlines(), start=1) if "# <-" in row]
    return f"{name}:{line}: "


def cases(*tables):
    return [pytest.param(*case, id=name) for table in tables for name, case in table.items()]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    cases(
        bad_scenarios.YAML,
        bad_scenarios.KEYS,
        bad_scenarios.VALUES,
        bad_plugins.PLUGINS,
        bad_data.DATA_AND_MODEL,
    ),
)
def test_a_bad_scenario_is_refused_with_place_and_advice(fedsim, old, new, says):
    for module, source in PLUGIN_FILES.items():
        write(source, f"{module}.py")
    text = changed(old, new)
    paragraph = fedsim.refuses("validate", write(text))
    if "# <-" in text:
        assert paragraph.startswith(marked(text))
    for words in says:
        assert words in paragraph


def test_the_good_scenario_is_good(fedsim):
    code, out, err = fedsim("validate", write(GOOD))
    assert (code, err) == (0, "")
    assert out.startswith("tiny: ok\n")


# Files

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in pairwise("abcdefgh")
)


@pytest.mark.parametrize(
    ("content", "says"),
    {
        "empty": (b"", "bad.yaml:1: the file is empty; a scenario is a mapping"),
        "comment": (b"# later\n", "the file is empty"),
        "list": (b"- name: a\n", "bad.yaml:1: the file holds a list"),
        "word": (b"hello\n", "the file holds a plain value"),
        "binary": (b"\x80\x81\x00\xff", "bad.yaml: is not a text file: byte 0 is not UTF-8"),
        "nul": (b"name: \x00\n", "malformed YAML: unacceptable character #x0000"),
        "deep": (b"name: " + b"[" * 5000 + b"]" * 5000, "bad.yaml: is nested too deeply"),
        "bomb": (BOMB.encode(), "bad.yaml: has more than 100,000 values. Do its aliases multiply?"),
    }.values(),
)
def test_a_file_that_is_no_scenario(fedsim, content, says):
    Path("bad.yaml").write_bytes(content)
    assert says in fedsim.refuses("validate", "bad.yaml")


def test_a_scenario_that_is_not_there(fedsim):
    write(GOOD, "mine.yaml")
    paragraph = fedsim.refuses("run", "quikstart")
    assert paragraph.startswith("quikstart: there is no such scenario file. Did you mean")
    assert "'quickstart'? Give a YAML file or a shipped scenario: async_vs_sync" in paragraph
    assert "Did you mean 'mine.yaml'?" in fedsim.refuses("run", "mine.yml")
    assert fedsim.refuses("run", ".").startswith(".: is a folder, not a file. Give a YAML file")


def test_anchors_and_merge_keys_work(fedsim):
    text = changed("client:\n  name: sgd\n", "client:\n  <<: &common {name: sgd}\n")
    assert fedsim("validate", write(text))[0] == 0


# Parents and overrides


def test_a_fault_of_the_parent_names_the_parents_line(fedsim):
    parent = changed(RATE, "  learning_rat: 0.1  # <-\n")
    write(parent, "parent.yaml")
    child = write("extends: parent.yaml\nclient: {batch_size: 4}\n", "child.yaml")
    assert fedsim.refuses("validate", child).startswith(marked(parent, "parent.yaml"))
    child = write("extends: parent.yaml\nclient: {name: sdg}\n", "child.yaml")
    assert fedsim.refuses("validate", child).startswith("child.yaml:2: there is no client")


@pytest.mark.parametrize("name", ["3", "no_such.yaml", "{a: b}", "", "[parent.yaml, no_such.yaml]"])
def test_a_parent_that_is_not_there(fedsim, name):
    write(GOOD, "parent.yaml")
    paragraph = fedsim.refuses("validate", write(f"name: x\nextends: {name}\n"))
    assert paragraph.startswith("bad.yaml:2: 'extends' names ")
    assert "Shipped: async_vs_sync.yaml" in paragraph


def test_a_parent_with_a_typo(fedsim):
    write(GOOD, "parent.yaml")
    paragraph = fedsim.refuses("validate", write("extends: parnt.yaml\n"))
    assert "Did you mean 'parent.yaml'?" in paragraph


def test_parents_in_a_circle(fedsim):
    write("name: a\nextends: b.yaml\n", "a.yaml")
    write("extends: a.yaml\n", "b.yaml")
    paragraph = fedsim.refuses("validate", "a.yaml")
    assert paragraph.startswith("b.yaml:1: 'extends' goes round in a circle: a.yaml -> b.yaml -> a")


@pytest.mark.parametrize(
    ("override", "says"),
    {
        "no value": ("strategy", "an override is written key=value"),
        "no key": ("=3", "an override is written key=value or a.b=value"),
        "half a key": ("a..b=3", "an override is written key=value or a.b=value"),
        "half a list": ("seeds=[0, 1", "the value is not YAML. Close its brackets"),
        "a parent": ("extends=base.yaml", "'extends' is for files"),
        "key": ("strateg.name=fedavg", "unknown key 'strateg'. Did you mean 'strategy'?"),
        "option": ("data.partitioner.alfa=3", "Did you mean 'alpha'?"),
        "value": ("num_rounds=-3", "'num_rounds' must be greater than 0, not -3"),
        "nothing": ("num_rounds=", "'num_rounds' must be a valid integer, not empty"),
        "too deep": ("num_rounds.x=3", "'num_rounds' must be a valid integer, not {'x': 3}"),
        "short form": ("strategy=fedavgmm", "Did you mean 'fedavgm'?"),
        "member of a list": ("seeds=[0, -1]", "'seeds.1' must be greater than or equal to 0"),
        "two keys": ("clients_per_round=20", "is more than num_clients (6)"),
    }.values(),
)
def test_a_bad_override_is_named(fedsim, override, says):
    paragraph = fedsim.refuses("validate", write(GOOD), override)
    assert paragraph.startswith(f"override '{override}': ")
    assert says in paragraph


@pytest.mark.parametrize("later", ["client.name=fedprox", "client={name: fedprox}"])
def test_an_override_that_undoes_one_before_it(fedsim, later):
    write(GOOD)
    paragraph = fedsim.refuses("validate", "bad.yaml", "client.learning_rate=0.5", later)
    assert paragraph.startswith(f"override '{later}': leaves nothing of 'client.learning_rate=0.5'")
    assert "Put the name first" in paragraph
    assert fedsim("validate", "bad.yaml", later, "client.learning_rate=0.5")[0] == 0
    assert fedsim("validate", "bad.yaml", "client.batch_size=4", "client.name=sgd")[0] == 0


# While running


def read_only_run() -> Run:
    (folder,) = Path("runs").glob("tiny/*/")
    return Run.open(folder)


def misbehaving(fault: str, victims: str) -> str:
    name = '"tests.engine.clients_that_misbehave:Faulty"'
    return changed("name: sgd", f"name: {name}\n  fault: {fault}\n  victims: {victims}")


@pytest.mark.parametrize(
    ("fault", "says"),
    [("raise", "ValueError: the dog ate it"), ("nan", "the update's weight holds NaN")],
)
def test_too_many_failing_clients_end_the_run(fedsim, fault, says):
    scenario = write(misbehaving(fault, "[1, 2, 3, 4]"))
    paragraph = fedsim.refuses("run", scenario, code=3)
    assert "4 of 6 clients failed in round 1, more than max_failed_fraction = 0.5" in paragraph
    assert f"client 1, round 1, train: {says}" in paragraph
    run = read_only_run()
    assert (run.status, run.summary["exit_code"]) == ("failed", 3)
    assert says in "\n".join(run.events)
    assert fedsim("compare", "runs")[0] == fedsim("report", "runs")[0] == 0


def test_ctrl_c_ends_the_run_and_leaves_a_readable_folder(fedsim):
    paragraph = fedsim.refuses("run", write(misbehaving("interrupt", "[5]")), code=3)
    assert paragraph.startswith("interrupted. ")
    run = read_only_run()
    assert (run.status, run.summary["exit_code"]) == ("interrupted", 3)
    assert [record["round"] for record in run.rounds] == [0]
    assert fedsim("compare", "runs")[0] == 0


def test_a_wrong_option_found_while_running_leaves_a_readable_folder(fedsim):
    text = changed("{name: module}", "{name: module, label_column: lable}  # <-")
    assert fedsim.refuses("run", write(text)).startswith(marked(text))
    run = read_only_run()
    assert (run.status, run.summary["exit_code"]) == ("failed", 2)


def test_a_bug_is_a_traceback(fedsim, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("fedsim.simulation.describe", broken)
    with pytest.raises(ZeroDivisionError):
        fedsim("run", write(GOOD))
    run = read_only_run()
    assert (run.status, run.summary["exit_code"]) == ("failed", 1)


@pytest.mark.slow
def test_a_bug_has_exit_code_1_and_shows_where_it_is(tmp_path):
    (tmp_path / "bad.yaml").write_text(GOOD)
    code = "from fedsim import cli, ledger; ledger.Ledger.add = lambda *_: 1 / 0; cli.main()"
    done = real(tmp_path, sys.executable, "-c", code, "run", "bad.yaml")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert "ZeroDivisionError" in done.stderr


def test_more_workers_than_processors(monkeypatch):
    import ray

    stopped = []
    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(ray, "shutdown", lambda: stopped.append(True))
    with pytest.raises(RunError, match="8 workers with 1 CPUs each need 8; the cluster has 2"):
        launch._start(EngineSection(address="auto"), 8, None)
    assert stopped


# Commands


@pytest.mark.parametrize("place", ["taken", "taken/below", "/proc/runs"])
def test_an_output_folder_that_cannot_be(fedsim, place):
    write("", "taken")
    paragraph = fedsim.refuses("run", write(GOOD), "--out", place)
    assert paragraph.startswith(place)
    assert "cannot be written" in paragraph
    assert "--out DIR" in paragraph


@pytest.mark.parametrize("command", ["compare", "report"])
def test_a_folder_that_is_no_run(fedsim, command):
    Path("empty").mkdir()
    paragraph = fedsim.refuses(command, "empty")
    assert paragraph.startswith("empty: is no run folder, nor above one")
    assert "fedsim run" in paragraph
    assert "there is no such run folder" in fedsim.refuses(command, "nowhere")


def test_a_page_that_cannot_be_written(fedsim):
    assert fedsim("run", write(GOOD))[0] == 0
    write("", "taken")
    paragraph = fedsim.refuses("report", "runs", "-o", "taken/page.html")
    assert paragraph.startswith("taken: cannot be written")


def test_names_that_mean_nothing(fedsim):
    assert fedsim.refuses("list", "strategy").startswith("there is no kind 'strategy'. Did you")
    paragraph = fedsim.refuses("show", "fedavgn")
    assert paragraph.startswith("nothing is called 'fedavgn'. Did you mean 'fedavg")
    assert "fedsim list" in paragraph
    assert "Did you mean 'LORA'?" in fedsim.refuses("show", "peft:LORRA")
    assert "Did you mean 'iid'?" in fedsim.refuses("show", "partitioner:iidd")
    assert "Did you mean 'sgd'?" in fedsim.refuses("show", "clients:sdg")


@pytest.mark.parametrize("place", [".", ""])
def test_a_page_that_is_a_folder(fedsim, place):
    assert fedsim("run", write(GOOD))[0] == 0
    paragraph = fedsim.refuses("report", "runs", "-o", place)
    assert paragraph.startswith(".: is a folder. Name the page: -o report.html")


def test_a_page_is_written_through_a_link(fedsim):
    assert fedsim("run", write(GOOD))[0] == 0
    Path("link.html").symlink_to("page.html")
    assert fedsim("report", "runs", "-o", "link.html")[0] == 0
    assert Path("link.html").is_symlink()
    assert Path("page.html").stat().st_size


def test_a_new_strategy_hides_no_module(fedsim):
    paragraph = fedsim.refuses("new", "strategy", "random")
    assert paragraph.startswith("there is a module 'random' already, which this file would hide")
    assert not list(Path().iterdir())


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "no-such-host.invalid:1"])
def test_a_cluster_that_does_not_answer(fedsim, address):
    text = changed(END, f"engine: {{address: '{address}'}}\n")
    paragraph = fedsim.refuses("run", write(text), code=3)
    assert paragraph.startswith(f"engine.address: no Ray cluster answers at {address}: ")
    assert "ray start --head" in paragraph


@pytest.mark.parametrize("name", ["Not-A-Name", "3d", "class", "MyAvg", "a.b"])
def test_a_new_strategy_needs_a_module_name(fedsim, name):
    paragraph = fedsim.refuses("new", "strategy", name)
    assert paragraph.startswith(f"'{name}' is no module name. Lower-case letters")
    assert not list(Path().iterdir())


def test_a_new_strategy_overwrites_nothing(fedsim):
    write("precious", "my_avg.py")
    paragraph = fedsim.refuses("new", "strategy", "my_avg")
    assert paragraph.startswith("my_avg.py: exists already. Choose another name")
    assert Path("my_avg.py").read_text() == "precious"
    assert not Path("test_my_avg.py").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    {
        "command": (["runn"], "No such command 'runn'. Did you mean 'run'? See `fedsim --help`"),
        "option": (["run", "--jsn"], "No such option '--jsn'. Did you mean '--json'?"),
        "argument": (["run"], "Missing argument 'SCENARIO'. See `fedsim run --help`"),
        "too much": (["show", "a", "b"], "unexpected extra argument (b). See `fedsim show --help`"),
        "nested": (["new", "strateg"], "Did you mean 'strategy'? See `fedsim new --help`"),
    }.values(),
)
def test_wrong_usage_is_one_paragraph_too(fedsim, arguments, says):
    assert says in fedsim.refuses(*arguments)


# Through real processes


@pytest.mark.slow
def test_acceptance_a_typo_in_a_scenario_file(tmp_path):
    text = changed("alpha: 1.0", "alfa: 0.1  # <-")
    (tmp_path / "news.yaml").write_text(text)
    done = real(tmp_path, sys.executable, "-m", "fedsim", "validate", "news.yaml")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"fedsim: {marked(text, 'news.yaml')}unknown option 'alfa'")
    assert "Did you mean 'alpha'? Options: " in done.stderr


@pytest.mark.slow
def test_ray_workers_report_like_the_process_itself(tmp_path):
    text = changed(END, "engine: {workers: 1}\n").replace(RATE, "  optimizer: sgdd  # <-\n")
    (tmp_path / "bad.yaml").write_text(text)
    done = real(tmp_path, sys.executable, "-m", "fedsim", "run", "bad.yaml")
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"fedsim: {marked(text)}torch.optim has no optimizer 'sgdd'")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "command", ["list", "compare", pytest.param("run", marks=pytest.mark.slow)]
)
def test_a_reader_that_goes_away(tmp_path, command):
    (tmp_path / "good.yaml").write_text(GOOD)
    examples = Path(__file__).parent / "examples"
    arguments = f"{command} { {'run': 'good.yaml', 'compare': examples}.get(command, '') }"
    shell = f"{sys.executable} -m fedsim {arguments} | true; echo ${{PIPESTATUS[0]}}"
    done = real(tmp_path, "bash", "-c", shell)
    assert done.stdout == "3\n"
    assert "Traceback" not in done.stderr
    assert "BrokenPipeError" not in done.stderr
