"""Scenario files: parents, overrides, short forms, paths, and the way back to YAML."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from fedsim import layers, scenario
from fedsim.errors import PluginError, ScenarioError
from fedsim.scenario import Scenario, load
from tests.bad_scenarios import GOOD

SHIPPED = {path.stem: path for path in layers.shipped_scenarios()}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a file below an empty current folder."""
    monkeypatch.chdir(tmp_path)

    def write_file(text: str, name: str = "study.yaml") -> Path:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write_file


# Parents


def test_local_keys_win_over_the_parent_and_sections_merge(write):
    write(GOOD, "parent.yaml")
    child = write("extends: parent.yaml\nnum_rounds: 9\nclient: {batch_size: 4}\n")
    loaded = load(child)
    assert (loaded.num_rounds, loaded.num_clients) == (9, 6)
    assert loaded.client.section == {"name": "sgd", "learning_rate": 0.1, "batch_size": 4}


def test_later_parents_win_over_earlier_ones_and_grandparents_count(write):
    write(GOOD, "base/a.yaml")
    write("extends: a.yaml\nnum_rounds: 2\nseed: 2\n", "base/b.yaml")
    write("num_rounds: 5\n", "more.yaml")
    loaded = load(write("extends: [base/b.yaml, more.yaml]\n"))
    assert (loaded.num_rounds, loaded.seed, loaded.num_clients) == (5, 2, 6)


def test_one_parent_may_be_reached_twice(write):
    write(GOOD, "a.yaml")
    write("extends: a.yaml\nseed: 1\n", "b.yaml")
    write("extends: a.yaml\nnum_rounds: 7\n", "c.yaml")
    loaded = load(write("extends: [b.yaml, c.yaml]\n"))
    assert (loaded.seed, loaded.num_rounds) == (3, 7)


def test_a_shipped_parent_is_found_and_one_beside_the_file_wins(write):
    child = write("extends: base/digits_vit.yaml\n")
    assert load(child).data.path == "sklearn:digits"
    write(GOOD, "base/digits_vit.yaml")
    assert load(child).data.path == "tests.problems:blobs"


def test_the_name_is_that_of_the_file_unless_a_file_says_it(write):
    write(GOOD.replace("name: tiny\n", ""), "parent.yaml")
    assert load(write("extends: parent.yaml\n", "my study.yaml")).name == "my study"
    write(GOOD, "parent.yaml")
    assert load(write("extends: parent.yaml\n")).name == "tiny"


# Plug-ins in short, replaced and merged


@pytest.mark.parametrize("top", ["strategy: fedavgm", "strategy: {name: fedavgm}"])
def test_another_plugin_drops_the_parents_options(write, top):
    write(GOOD.replace("name: fedavg\n", "name: fedadam\n  tau: 0.5\n"), "parent.yaml")
    assert load(write(f"extends: parent.yaml\n{top}\n")).strategy.section == {"name": "fedavgm"}


@pytest.mark.parametrize("top", ["strategy: fedadam", "strategy: {name: fedadam}", "strategy: {}"])
def test_the_same_plugin_keeps_the_parents_options(write, top):
    write(GOOD.replace("name: fedavg\n", "name: fedadam\n  tau: 0.5\n"), "parent.yaml")
    loaded = load(write(f"extends: parent.yaml\n{top}\n"))
    assert loaded.strategy.section == {"name": "fedadam", "tau": 0.5}


def test_options_join_a_parent_in_short_form(write):
    write(GOOD.replace("strategy:\n  name: fedavg\n", "strategy: fedadam\n"), "parent.yaml")
    loaded = load(write("extends: parent.yaml\nstrategy: {tau: 0.5}\n"))
    assert loaded.strategy.section == {"name": "fedadam", "tau": 0.5}


def test_the_short_form_is_for_plugins_only(write):
    write(GOOD + "x: {files: a.csv}\n", "parent.yaml")
    layer = layers.read(write("extends: parent.yaml\nx: {files: {train: b.csv}}\n"))
    assert layer.values["x"] == {"files": {"train": "b.csv"}}


def test_an_adapters_options_merge_until_its_type_changes(write):
    peft = "  peft: {peft_type: LORA, lora_alpha: 16, target_modules: all-linear}\n"
    write(GOOD.replace("data:\n", f"{peft}data:\n"), "parent.yaml")
    merged = load(write("extends: parent.yaml\nmodel: {peft: {r: 4}}\n")).model.peft
    assert merged == {"peft_type": "LORA", "lora_alpha": 16, "target_modules": "all-linear", "r": 4}
    replaced = load(write("extends: parent.yaml\nmodel: {peft: {peft_type: LN_TUNING}}\n"))
    assert replaced.model.peft == {"peft_type": "LN_TUNING"}
    assert load(write("extends: parent.yaml\nmodel: {peft: none}\n")).model.peft is None


@pytest.mark.parametrize(
    ("written", "names"),
    {
        "none": ("none", []),
        "nothing": ("", []),
        "one": ("{name: none}", ["none"]),
        "list": ("[none, {name: none}]", ["none", "none"]),
    }.values(),
)
def test_codecs_are_a_chain_however_they_are_written(write, written, names):
    loaded = load(write(f"{GOOD}codec:\n  up: {written}\n"))
    assert [codec.name for codec in loaded.codec.up] == names


TOPK = "{name: topk, density: 0.1, error_feedback: ef21}"


@pytest.mark.parametrize(
    ("top", "kept"),
    {
        "short": ("topk", {"name": "topk"}),
        "section": ("{name: topk}", {"name": "topk"}),
        "list": ("[{name: topk}]", {"name": "topk"}),
        "another": ("{name: sign}", {"name": "sign"}),
        "option": ("{density: 0.2}", {"name": "topk", "density": 0.2, "error_feedback": "ef21"}),
    }.values(),
)
def test_a_named_codec_replaces_the_parents_chain_however_it_is_written(write, top, kept):
    parent = write(f"{GOOD}codec: {{up: {TOPK}}}\n", "parent.yaml")
    child = load(write(f"extends: parent.yaml\ncodec: {{up: {top}}}\n"))
    assert [plugin.section for plugin in child.codec.up] == [kept]
    assert load(parent, [f"codec.up={top}"]).codec.up == child.codec.up


def test_a_strategy_inside_a_strategy_may_be_short(write):
    wrapper = "flwr.serverapp.strategy:DifferentialPrivacyServerSideFixedClipping"
    text = (
        f'name: "{wrapper}"\n  strategy: fedavg\n  noise_multiplier: 0.1\n'
        "  clipping_norm: 1.0\n  num_sampled_clients: 6\n"
    )
    loaded = load(write(GOOD.replace("name: fedavg\n", text)))
    assert loaded.strategy.options["strategy"] == {"name": "fedavg"}


# Overrides


@pytest.mark.parametrize(
    ("override", "key", "value"),
    {
        "number": ("num_rounds=4", ("num_rounds",), 4),
        "nested": ("client.learning_rate=1e-3", ("client", "learning_rate"), 1e-3),
        "new section": ("evaluate.every=2", ("evaluate", "every"), 2),
        "list": ("seeds=[0, 1]", ("seeds",), [0, 1]),
        "mapping": ("engine={workers: 2}", ("engine",), {"backend": "inline", "workers": 2}),
        "text": ("name=a b", ("name",), "a b"),
        "quoted": ("name='1'", ("name",), "1"),
        "equals sign": ("name=a=b", ("name",), "a=b"),
        "truth": ("evaluate.personal=true", ("evaluate", "personal"), True),
        "no is a word": ("name=no", ("name",), "no"),
        "nothing": ("model.peft=", ("model", "peft"), None),
    }.values(),
)
def test_overrides_are_yaml_at_a_dotted_key(write, override, key, value):
    found = layers.read(write(GOOD), [override])
    for part in key:
        found = found[part] if isinstance(found, dict) else found.values[part]
    assert found == value
    assert type(found) is type(value)


def test_later_overrides_win_and_another_plugin_drops_options(write):
    overrides = ["strategy.name=fedavgm", "strategy.server_momentum=0.5", "strategy.name=fedadam"]
    assert load(write(GOOD), overrides).strategy.section == {"name": "fedadam"}
    overrides = ["num_rounds=2", "num_rounds=3"]
    assert load(write(GOOD), overrides).num_rounds == 3


def test_places_follow_the_value_that_counts(write):
    write(GOOD, "parent.yaml")
    loaded = load(write("extends: parent.yaml\nstrategy: fedavgm\n"), ["client.batch_size=4"])
    assert loaded.where(("num_rounds",)) == "parent.yaml:3"
    assert loaded.where(("strategy", "name")) == "study.yaml:2"
    assert loaded.where(("client", "learning_rate")) == "parent.yaml:16"
    assert loaded.where(("client", "batch_size")) == "override 'client.batch_size=4'"
    assert loaded.where(("client", "no_such_key")) == "override 'client.batch_size=4'"
    assert loaded.where(("data", "partitioner", "seed")) == "parent.yaml:10"
    assert loaded.where(("mods", 0)) == ""


# Values


@pytest.mark.parametrize(
    ("written", "value"),
    [("1e-3", 1e-3), ("1.0e-3", 1e-3), ("1E5", 1e5), ("1_000", 1000), ("010", 10), ("5", 5.0)],
)
def test_numbers_are_those_of_yaml_1_2(write, written, value):
    loaded = load(write(GOOD.replace("learning_rate: 0.1", f"learning_rate: {written}")))
    assert loaded.client.options["learning_rate"] == value
    assert not isinstance(loaded.client.options["learning_rate"], str)


def test_values_are_plain_python(write):
    text = GOOD.replace("alpha: 1.0", "alpha: &a 1.0").replace(
        "learning_rate: 0.1", "learning_rate: *a"
    )
    layer = layers.read(write(text))

    def kinds(node):
        if isinstance(node, dict):
            return {type(node)}.union(*map(kinds, node.values()))
        return {type(node)}.union(*map(kinds, node)) if isinstance(node, list) else {type(node)}

    assert kinds(layer.values) == {dict, str, int, float}


def test_a_scenario_cannot_be_changed(write):
    loaded = load(write(GOOD))
    with pytest.raises(ValueError, match="frozen"):
        loaded.num_rounds = 2


def test_scenarios_from_python_are_checked_like_files():
    with pytest.raises(ScenarioError, match="never both") as caught:
        Scenario.model_validate(
            {
                "num_rounds": 1,
                "clients_per_round": 2,
                "fraction_train": 0.5,
                "task": "module",
                "model": {"name": "a:b"},
                "data": {"path": "a:b"},
            }
        )
    assert caught.value.key == ("fraction_train",)


@pytest.mark.parametrize(
    ("keys", "size"), [("", 6), ("clients_per_round: 4", 4), ("fraction_train: 0.34", 2)]
)
def test_the_cohort(write, keys, size):
    assert load(write(GOOD + keys + "\n")).cohort_size(6) == size


# Paths


def csv(files: str) -> str:
    return GOOD.replace('path: "tests.problems:blobs"', f"path: csv\n  data_files: {files}")


def here(file: str) -> str:
    return str(Path.cwd() / file)


def test_data_files_lie_beside_the_scenario_or_in_the_current_folder(write):
    write("a", "study/near.csv")
    write("a", "far.csv")
    write("a", "study/both.csv")
    write("a", "both.csv")
    text = csv("{train: [near.csv, far.csv, both.csv], test: no.csv, more: near*.csv}")
    files = load(write(text, "study/s.yaml")).data.data_files
    assert files == {
        "train": [
            here("study/near.csv"),
            here("far.csv"),
            here("study/both.csv"),
        ],
        "test": here("no.csv"),
        "more": here("study/near*.csv"),
    }


def test_a_parents_files_lie_beside_the_parent(write):
    write("a", "base/near.csv")
    write(csv("near.csv"), "base/parent.yaml")
    child = write("extends: ../base/parent.yaml\n", "studies/child.yaml")
    assert Path(load(child).data.data_files).resolve() == Path("base/near.csv").resolve()


@pytest.mark.parametrize("name", ["https://example.org/a.csv", "hf://datasets/x/a.csv"])
def test_addresses_are_left_alone(write, name):
    assert load(write(csv(f'"{name}"'))).data.data_files == name


def test_odd_paths_do_not_fail(write):
    files = load(write(csv("{a: '', b: '**x', c: '~nobody-here/x', d: '[', e: ../up.csv}")))
    assert set(files.data.data_files) == set("abcde")


def test_overridden_files_lie_in_the_current_folder(write):
    write("a", "study/near.csv")
    file = write(csv("near.csv"), "study/s.yaml")
    loaded = load(file, ["data.data_files=near.csv"])
    assert loaded.data.data_files == here("near.csv")


# And back


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_scenario_survives_the_way_to_yaml_and_back(name, tmp_path):
    first = load(name)
    text = first.to_yaml()
    (tmp_path / "again.yaml").write_text(text)
    second = load(tmp_path / "again.yaml")
    assert second == first
    assert second.to_yaml() == text
    assert second.digest() == first.digest()
    assert re.fullmatch("[0-9a-f]{8}", first.digest())


def test_the_digest_is_frozen_and_follows_the_values(write):
    assert load(write(GOOD)).digest() == "03262074"
    same = GOOD.replace("strategy:\n  name: fedavg\n", "strategy: fedavg  # in short\n")
    assert load(write(same)).digest() == load(write(GOOD)).digest()
    assert load(write(GOOD), ["seed=4"]).digest() != load(write(GOOD)).digest()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_scenario_begins_with_a_question_and_its_cost(name):
    first = SHIPPED[name].read_text(encoding="utf-8").splitlines()[0]
    assert re.fullmatch(r"# [A-Z].+\?? {3}(about|under) (a minute|\d+ minutes) on 2 cores", first)


@pytest.mark.slow
def test_scenarios_are_checked_before_the_data_library_is_loaded():
    """Ray starts right after the check, beside what takes longer."""
    code = (
        "import sys\nfrom fedsim.scenario import load\n"
        f"[load(path) for path in {[str(path) for path in SHIPPED.values()]}]\n"
        "print([m for m in ('datasets', 'pandas', 'pyarrow', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# The schema for editors


def test_the_schema_accepts_every_shipped_file_and_names_every_key():
    jsonschema = pytest.importorskip("jsonschema")
    schema = scenario.json_schema()
    check = jsonschema.Draft202012Validator(schema)
    for path in (*layers.SHIPPED.glob("*.yaml"), *layers.SHIPPED.glob("base/*.yaml")):
        plain = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
        assert not list(check.iter_errors(plain)), path
    short = {"strategy": "fedavg", "codec": {"up": "none"}, "model": {"peft": "none"}}
    assert check.is_valid(short)
    for wrong in ({"num_round": 1}, {"engine": {"backend": "rai"}}, {"num_rounds": 0}):
        assert not check.is_valid(wrong)
    assert set(schema["properties"]) == {*Scenario.model_fields, "extends"}


def test_descriptions_are_the_strings_under_the_fields():
    schema = json.loads(json.dumps(scenario.json_schema()))
    assert schema["properties"]["num_rounds"]["description"] == "Rounds of training."
    for name in ("clients_per_round", "strategy", "max_failed_fraction", "mods", "seeds"):
        assert schema["properties"][name]["description"], name
    assert schema["$defs"]["DataSection"]["properties"]["path"]["description"].startswith("Hub id")


# What is checked when a file is loaded


def test_loading_checks_plugins_without_touching_data_and_model(write):
    text = GOOD.replace("tests.problems:blobs", "no.such:data").replace("tests.problems", "no.such")
    assert load(write(text)).model.name == "no.such:logistic"
    with pytest.raises(PluginError, match="no strategy called 'x'") as caught:
        load(write(text.replace("name: fedavg", "name: x")))
    assert caught.value.key == ("strategy", "name")
    assert caught.value.where == "study.yaml:19"
