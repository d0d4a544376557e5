"""The catalogue says the truth about averaging: measured on one 24 -> 32 layer."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedsim.errors import ModelError
from fedsim.models import adapt, catalogue
from fedsim.scenario import ModelSection
from tests import peft_table

Effect = Callable[[], Tensor]
Case = dict[str, Any]


class Layer(nn.Module):
    """A norm and a linear layer; inputs (rows, tokens, 24) as in a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(24)
        self.fc = nn.Linear(24, 32)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.norm(x))
        return out


def _case(kind: str, **options: Any) -> Case:
    return {"peft_type": kind, "target_modules": ["fc"], **options}


def _lora(**options: Any) -> Case:
    return _case("LORA", r=4, **options)


LAYER_CASES = [
    _lora(),
    _lora(use_rslora=True),
    _lora(use_dora=True),
    _lora(init_lora_weights="pissa"),
    _lora(init_lora_weights="pissa_niter_4"),
    _lora(init_lora_weights="olora"),
    _lora(init_lora_weights="orthogonal"),
    _lora(init_lora_weights="mica"),
    _lora(kasa_config={"beta": 1e-4}),
    _lora(velora_config={"num_groups": 8}),
    _lora(monteclora_config={"num_samples": 2}),
    _lora(use_bdlora={"target_modules_bd_a": ["fc"], "nblocks": 2}),
    _lora(use_qalora=True, qalora_group_size=8),
    _case("ADALORA", init_r=4, target_r=2, total_step=10),
    _case("ADAMSS", r=8),
    _case("BEFT"),
    _case("BOFT"),
    _case("C3A", block_size=8),
    _case("DEFT", r=4),
    _case("DELORA", r=4),
    _case("FOURIERFT", n_frequency=50),
    _case("FROD"),
    _case("GLORA", r=4),
    _case("GRALORA", r=8),
    _case("HIRA", r=4),
    _case("HRA", r=4),
    _case("IA3", feedforward_modules=[]),
    _case("IA3", feedforward_modules=["fc"]),
    _case("LILY", r=4),
    {"peft_type": "LN_TUNING", "target_modules": ["norm"]},
    _case("LOHA", r=4),
    _case("LOKR", r=4),
    _case("MISS", r=8),
    _case("OFT", oft_block_size=8),
    _case("OFT", oft_block_size=8, use_cayley_neumann=False),
    _case("OSF"),
    _case("PEANUT", r=4),
    _case("POLY", r=4),
    _case("PSOFT", r=4),
    _case("PVERA", r=40),
    _case("RANDLORA", r=4),
    _case("ROAD", group_size=8),
    _case("SHIRA", r=2),
    _case("SUPERTUNING", sparsity=0.9),
    _case("TINYLORA"),
    _case("UNILORA"),
    _case("VBLORA", vector_length=8, num_vectors=8),
    _case("VERA", r=40),
    _case("WAVEFT", n_frequency=50),
]
# These train what the frozen model reads, so that is compared instead of a layer's output.
INPUT_CASES = [
    {"peft_type": "CARTRIDGE", "num_virtual_tokens": 4},
    {"peft_type": "MULTITASK_PROMPT_TUNING", "num_virtual_tokens": 4},
    {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4},
    {
        "peft_type": "PREFIX_TUNING",
        "num_virtual_tokens": 4,
        "prefix_projection": True,
        "encoder_hidden_size": 16,
    },
    {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4},
    {"peft_type": "P_TUNING", "num_virtual_tokens": 4},
    {"peft_type": "TRAINABLE_TOKENS", "token_indices": [1, 2, 3]},
    peft_table.TABLE["CPT"].llama,
]
NOT_MEASURED = {
    "ADAPTION_PROMPT": "its gate and prompt act inside an attention that is not linear by itself",
    "SHADOW": "its side network runs through whole blocks, which are not linear by themselves",
    "XLORA": "its gate reads the hidden states of a whole model, which is not linear by itself",
}


def _label(case: Case) -> str:
    rest = {k: v for k, v in case.items() if k not in ("peft_type", "target_modules", "r")}
    return "-".join([case["peft_type"], *map(str, rest)])


def _wrap(model: nn.Module, case: Case) -> nn.Module:
    torch.manual_seed(2)
    return adapt.wrap(model, ModelSection(name="tests:here", peft=case)).eval()


def _of_layer(case: Case) -> tuple[nn.Module, Effect]:
    torch.manual_seed(0)
    model = _wrap(Layer(), case)
    x = torch.randn(16, 4, 24, generator=torch.Generator().manual_seed(1))
    return model, lambda: model(x)


def _of_input(case: Case) -> tuple[nn.Module, Effect]:
    model: Any = _wrap(peft_table.build("llama" if case["peft_type"] == "CPT" else "bert"), case)
    if case["peft_type"] == "TRAINABLE_TOKENS":
        return model, lambda: model.get_input_embeddings()(torch.arange(8))
    encoder = model.prompt_encoder["default"]
    tokens = model.prompt_tokens["default"].unsqueeze(0)
    tokens = tokens[:, : encoder.embedding.weight.shape[0]]
    extra = (None,) if case["peft_type"] == "MULTITASK_PROMPT_TUNING" else ()
    return model, lambda: encoder(tokens, *extra)


def _gap(model: nn.Module, effect: Effect) -> float:
    """||M(mean t) - mean M(t_k)|| / ||mean M(t_k) - M(t_0)|| for two clients; see the catalogue."""
    trained = [p for n, p in model.named_parameters() if p.requires_grad and "classifier" not in n]
    start = [p.detach().clone() for p in trained]
    generator = torch.Generator().manual_seed(4)
    moves = [[0.3 * torch.randn(p.shape, generator=generator) for p in trained] for _ in range(2)]
    mean_move = [(a + b) / 2 for a, b in zip(*moves, strict=True)]

    def at(move: list[Tensor]) -> Tensor:
        for parameter, base, step in zip(trained, start, move, strict=True):
            parameter.copy_(base + step)
        return effect().double()

    with torch.no_grad():
        origin = effect().double()
        mean = (at(moves[0]) + at(moves[1])) / 2
        return float((at(mean_move) - mean).norm() / (mean - origin).norm())


@pytest.mark.parametrize(
    ("case", "make"),
    [(c, _of_layer) for c in LAYER_CASES] + [(c, _of_input) for c in INPUT_CASES],
    ids=map(_label, LAYER_CASES + INPUT_CASES),
)
def test_kinds_are_what_is_measured(
    case: Case, make: Callable[[Case], tuple[nn.Module, Effect]]
) -> None:
    claimed = catalogue.describe(case)
    measured = _gap(*make(case))
    if claimed.exact:
        assert measured <= 1e-5
    else:
        assert measured > 1e-2
    if claimed.gap:
        assert claimed.gap / 4 < measured < claimed.gap * 4


def test_every_type_is_described_and_measured_or_says_why_not() -> None:
    measured = {case["peft_type"] for case in LAYER_CASES + INPUT_CASES}
    assert sorted(catalogue.ENTRIES) == list(catalogue.all_types())
    assert measured | set(NOT_MEASURED) == set(catalogue.all_types())
    assert not measured & set(NOT_MEASURED)


@pytest.mark.parametrize(
    ("case", "scalars"),
    [
        (_lora(), 224),
        (_lora(use_dora=True), 256),
        (_lora(init_lora_weights="mica"), 96),
        (_case("IA3", feedforward_modules=[]), 32),
        (_case("HRA", r=4), 96),
        (_case("OFT", oft_block_size=8), 84),
        (_case("VERA", r=40), 72),
        (_case("RANDLORA", r=4), 168),
        (_case("SHIRA", r=2), 112),
        (_case("SUPERTUNING", sparsity=0.9), 76),
        (_case("C3A", block_size=8), 96),
        (_case("PSOFT", r=4), 14),
        (_case("DELORA", r=4), 225),
        (_case("MISS", r=8), 256),
        (_case("GRALORA", r=8), 448),
    ],
    ids=lambda value: _label(value) if isinstance(value, dict) else str(value),
)
def test_trained_scalars_match_the_formula(case: Case, scalars: int) -> None:
    model, _ = _of_layer(case)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == scalars


def test_the_list_of_types_is_peft_s_own() -> None:
    from peft import PeftType

    assert list(catalogue.all_types()) == sorted(t.value for t in PeftType)
    assert len(catalogue.all_types()) == 45


def test_importing_and_listing_needs_neither_torch_nor_peft() -> None:
    code = (
        "import sys; from fedsim.models import catalogue as c; "
        "c.all_types(); c.averaging_warning({'peft_type': 'lora'}); "
        "sys.exit(bool({'torch', 'peft', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({}, "biased (BIL)"),
        ({"use_dora": True}, "biased (NL)"),
        ({"use_dora": False, "kasa_config": None}, "biased (BIL)"),
        ({"init_lora_weights": "mica"}, "exact"),
        ({"init_lora_weights": "MiCA"}, "exact"),
        ({"init_lora_weights": "mica", "use_dora": True}, "biased (NL)"),
        ({"init_lora_weights": True}, "biased (BIL)"),
    ],
)
def test_lora_variants_are_told_apart(options: dict[str, Any], word: str) -> None:
    assert catalogue.describe({"peft_type": "lora", **options}).word == word


def test_a_warning_only_where_averaging_is_biased() -> None:
    assert catalogue.averaging_warning({"peft_type": "IA3"}) is None
    assert catalogue.averaging_warning({}) is None
    warning = catalogue.averaging_warning({"peft_type": "lora"})
    assert warning is not None
    assert warning.startswith("LORA: ")
    assert "0.69" in warning
    assert warning.count(". ") == 0


def test_an_unknown_type_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ModelError, match=r"unknown peft_type 'lorra'.*Did you mean 'LORA'\?"):
        catalogue.describe({"peft_type": "lorra"})


@pytest.mark.parametrize("kind", catalogue.all_types())
def test_a_card_names_verdict_and_options(kind: str) -> None:
    text = catalogue.card(kind.lower())
    assert text.startswith(f"peft:{kind} (")
    assert ("Averaging is exact" in text) == catalogue.ENTRIES[kind].exact
    for name in catalogue.option_fields(kind):
        assert f"\n  {name} = " in text
    assert max(map(len, text.splitlines())) <= 120
