"""Choosing what is trained: adapters, patterns, heads, and errors a person can act on."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from fedsim.errors import ModelError
from fedsim.models import adapt
from fedsim.scenario import ModelSection
from tests.peft_table import build


def _section(peft: dict[str, Any] | None = None, trainable: tuple[str, ...] = ()) -> ModelSection:
    return ModelSection(name="tests:here", peft=peft, trainable=trainable)


def _trained(model: nn.Module) -> list[str]:
    return [n for n, p in model.named_parameters() if p.requires_grad]


def _network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))


def _faulty(model: nn.Module, **peft: Any) -> ModelError:
    with pytest.raises(ModelError) as caught:
        adapt.wrap(model, _section(peft))
    return caught.value


# Without an adapter


def test_without_peft_and_patterns_everything_is_trained() -> None:
    model = _network()
    assert adapt.wrap(model, _section()) is model
    assert _trained(model) == [n for n, _ in model.named_parameters()]


def test_patterns_choose_parameters_by_name() -> None:
    model = adapt.wrap(_network(), _section(trainable=("2.*", "*.bias")))
    assert _trained(model) == ["0.bias", "1.bias", "2.weight", "2.bias"]


def test_a_pattern_that_matches_nothing_names_what_there_is() -> None:
    with pytest.raises(ModelError, match=r"'2\.weigth' matches no parameter") as caught:
        adapt.wrap(_network(), _section(trainable=("0.*", "2.weigth")))
    assert caught.value.key == ("model", "trainable", 1)
    assert caught.value.hint == "Did you mean '2.weight'?"
    assert "0.weight, 0.bias" in caught.value.allowed


# Running statistics


def test_running_statistics_of_trained_norm_layers_are_exchanged() -> None:
    model = adapt.wrap(_network(), _section())
    found = adapt.running_statistics(model)
    assert list(found) == ["1.running_mean", "1.running_var"]
    assert found["1.running_mean"] is model[1].running_mean  # type: ignore[index]


def test_running_statistics_of_frozen_norm_layers_are_not() -> None:
    model = adapt.wrap(_network(), _section(trainable=("0.*",)))
    assert adapt.running_statistics(model) == {}
    lora = adapt.wrap(_network(), _section({"peft_type": "LORA", "target_modules": ["0"]}))
    assert adapt.running_statistics(lora) == {}


def test_running_statistics_without_own_parameters_follow_the_whole_model() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, affine=False))
    assert list(adapt.running_statistics(model)) == ["1.running_mean", "1.running_var"]
    adapt.wrap(model, _section(trainable=("0.bias",)))
    assert adapt.running_statistics(model) == {}


def test_layer_norm_has_none() -> None:
    assert adapt.running_statistics(nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6))) == {}


# Heads


@pytest.mark.parametrize(
    ("name", "peft"),
    [
        ("bert", {"peft_type": "LORA"}),
        ("bert", {"peft_type": "LORA", "task_type": "SEQ_CLS"}),
        ("bert", {"peft_type": "lora", "target_modules": "all-linear"}),
        ("bert", {"peft_type": "TRAINABLE_TOKENS", "token_indices": [1]}),
        ("bert", {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2}),
        ("vit", {"peft_type": "LORA", "target_modules": ["q_proj"]}),
        ("vit", {"peft_type": "LORA", "target_modules": "all-linear"}),
    ],
)
def test_the_head_is_trained_exactly_once(name: str, peft: dict[str, Any]) -> None:
    model = adapt.wrap(build(name), _section(peft))
    heads = [n for n in _trained(model) if ".classifier." in n]
    assert len(heads) == 2  # weight and bias, and no adapter on top of them
    shapes = {tuple(model.get_parameter(n).shape) for n in heads}
    assert shapes == {(3, 32), (3,)}


def test_the_user_s_own_modules_to_save_win() -> None:
    peft = {"peft_type": "LORA", "target_modules": ["q_proj"], "modules_to_save": ["layernorm"]}
    trained = _trained(adapt.wrap(build("vit"), _section(peft)))
    assert any("vit.layernorm." in n for n in trained)
    assert not any("classifier" in n for n in trained)


def test_an_adapter_on_the_head_replaces_training_it() -> None:
    peft = {"peft_type": "LORA", "target_modules": ["classifier"]}
    trained = _trained(adapt.wrap(build("vit"), _section(peft)))
    assert trained == [
        "base_model.model.classifier.lora_A.default.weight",
        "base_model.model.classifier.lora_B.default.weight",
    ]


def test_a_language_model_s_output_layer_is_no_head() -> None:
    model = build("llama")
    assert adapt.head_names(model) == []
    model.head = model.lm_head  # as some architectures call it
    assert adapt.head_names(model) == []
    trained = _trained(adapt.wrap(model, _section({"peft_type": "LORA"})))
    assert all(".lora_" in n for n in trained)


def test_a_plain_module_s_head_is_known_by_its_name() -> None:
    model = nn.Sequential()
    model.add_module("body", nn.Linear(4, 6))
    model.add_module("head", nn.Linear(6, 3))
    wrapped = adapt.wrap(
        model, _section({"peft_type": "IA3", "target_modules": ["body"], "feedforward_modules": []})
    )
    assert [n.split(".")[2] for n in _trained(wrapped)] == ["body", "head", "head"]


# Behaviour


def test_the_scenario_s_options_are_left_untouched() -> None:
    peft = {"peft_type": "LORA", "task_type": "SEQ_CLS", "modules_to_save": ["pooler"]}
    before = copy.deepcopy(peft)
    adapt.wrap(build("bert"), _section(peft))
    assert peft == before


@pytest.mark.parametrize("start", [True, "gaussian", "pissa", "pissa_niter_4", "olora"])
def test_equal_seeds_give_equal_adapters_and_equal_bases(start: Any) -> None:
    def make() -> nn.Module:
        model = build("vit")
        torch.manual_seed(9)
        peft = {"peft_type": "LORA", "target_modules": ["q_proj"], "init_lora_weights": start}
        return adapt.wrap(model, _section(peft))

    first, second = make().state_dict(), make().state_dict()
    assert all(torch.equal(first[n], second[n]) for n in first)


def test_kasa_changes_the_function_at_the_start_as_documented() -> None:
    model = build("vit").eval()
    pixels = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    before = model(pixels).logits
    peft = {"peft_type": "LORA", "target_modules": ["q_proj"], "kasa_config": {}}
    after = adapt.wrap(model, _section(peft)).eval()(pixels).logits
    assert (after - before).abs().max() > 1e-6


def test_all_rows_are_task_zero_for_multi_task_methods() -> None:
    peft = {"peft_type": "POLY", "target_modules": ["query"]}
    model = adapt.wrap(build("bert"), _section(peft)).eval()
    ids = torch.ones(3, 5, dtype=torch.long)
    assert model(input_ids=ids).logits.shape == (3, 3)


@pytest.mark.parametrize(
    ("name", "task_type"),
    [
        ("BertForSequenceClassification", "SEQ_CLS"),
        ("LlamaForCausalLM", "CAUSAL_LM"),
        ("GPT2LMHeadModel", "CAUSAL_LM"),
        ("T5ForConditionalGeneration", "SEQ_2_SEQ_LM"),
        ("BertForTokenClassification", "TOKEN_CLS"),
    ],
)
def test_the_task_type_of_a_prompt_method_follows_the_model(name: str, task_type: str) -> None:
    assert adapt._task_type(type(name, (nn.Module,), {})()) == task_type


# Errors


def test_an_unknown_type() -> None:
    error = _faulty(build("vit"), peft_type="LORAA")
    assert error.key == ("model", "peft", "peft_type")
    assert error.hint == "Did you mean 'LORA'?"
    assert "ADALORA, ADAMSS" in error.allowed


def test_an_unknown_option() -> None:
    error = _faulty(build("vit"), peft_type="LORA", rnak_pattern={})
    assert error.key == ("model", "peft", "rnak_pattern")
    assert error.hint == "Did you mean 'rank_pattern'?"
    assert "lora_alpha" in error.allowed
    assert "inference_mode" not in error.allowed


def test_an_internal_field_is_no_option() -> None:
    error = _faulty(build("vit"), peft_type="LORA", inference_mode=True)
    assert error.key == ("model", "peft", "inference_mode")


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("r", "eight", "input should be a valid integer, not 'eight'"),
        ("r", 2.5, "not 2.5"),
        ("lora_dropout", "0.1", "input should be a valid number"),
        ("use_dora", "yes", "input should be a valid boolean"),
    ],
)
def test_an_ill_typed_option(option: str, value: Any, words: str) -> None:
    error = _faulty(build("bert"), peft_type="LORA", **{option: value})
    assert error.key == ("model", "peft", option)
    assert words in str(error)


def test_an_option_out_of_range_keeps_peft_s_words() -> None:
    error = _faulty(build("bert"), peft_type="LORA", r=-1)
    assert error.key == ("model", "peft", "r")
    assert "should be a positive integer" in str(error)


def test_targets_that_match_nothing_name_the_model_s_layers() -> None:
    error = _faulty(build("vit"), peft_type="LORA", target_modules=["query", "value"])
    assert error.key == ("model", "peft", "target_modules")
    assert "['query', 'value'] match no layer of ViTForImageClassification" in str(error)
    assert "q_proj, k_proj, v_proj, o_proj, fc1, fc2" in error.hint


def test_targets_that_are_no_regular_expression() -> None:
    error = _faulty(build("vit"), peft_type="LORA", target_modules="*_proj")
    assert error.key == ("model", "peft", "target_modules")
    assert "'*_proj' is not a regular expression" in str(error)


@pytest.mark.parametrize("kind", ["LORA", "IA3", "VERA", "OFT"])
def test_missing_targets_name_the_model_s_layers(kind: str) -> None:
    error = _faulty(build("vit"), peft_type=kind)
    assert error.key == ("model", "peft", "target_modules")
    assert "q_proj" in error.hint


def test_missing_targets_of_norm_tuning_name_norm_layers() -> None:
    error = _faulty(build("vit"), peft_type="LN_TUNING")
    assert "layernorm_before, layernorm_after" in error.hint


@pytest.mark.parametrize(
    ("peft", "option", "words"),
    [
        ({"peft_type": "PROMPT_TUNING"}, "num_virtual_tokens", "needs the option"),
        ({"peft_type": "XLORA", "hidden_size": 32}, "adapters", "needs the option"),
        ({"peft_type": "ADALORA"}, "total_step", "total_step"),
        ({"peft_type": "POLY", "n_tasks": 2}, "n_tasks", "all clients are task 0"),
        ({"peft_type": "LORA", "init_lora_weights": "eva"}, "init_lora_weights", "look at data"),
        (
            {"peft_type": "LORA", "init_lora_weights": "xavier"},
            "init_lora_weights",
            "Unknown initialization",
        ),
        ({"peft_type": "LORA", "task_type": "CLS"}, "task_type", "Invalid task type"),
    ],
)
def test_what_peft_would_miss_or_refuse(peft: dict[str, Any], option: str, words: str) -> None:
    error = _faulty(build("bert"), **peft)
    assert error.key == ("model", "peft", option)
    assert words in str(error)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PROMPT_TUNING", {"num_virtual_tokens": 2}),
        ("SHADOW", {}),
        ("XLORA", {"adapters": {}, "hidden_size": 6}),
        ("TRAINABLE_TOKENS", {}),
    ],
)
def test_token_methods_need_a_model_with_tokens(kind: str, options: dict[str, Any]) -> None:
    error = _faulty(_network(), peft_type=kind, **options)
    assert "Sequential takes no token ids" in str(error)


def test_task_types_are_for_models_with_tokens() -> None:
    error = _faulty(build("vit"), peft_type="LORA", target_modules=["q_proj"], task_type="SEQ_CLS")
    assert error.key == ("model", "peft", "task_type")
    assert "Leave it out" in error.hint


def test_a_prompt_method_on_an_unknown_architecture_asks_for_the_task_type() -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=50)
    error = _faulty(BertModel(config), peft_type="PROMPT_TUNING", num_virtual_tokens=2)
    assert error.key == ("model", "peft", "task_type")
    assert "SEQ_CLS" in error.allowed
