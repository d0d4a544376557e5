"""Every peft type takes a training step on a tiny model and travels by parameter name."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsim import simulation
from fedsim.errors import ModelError
from fedsim.models import adapt, catalogue
from fedsim.scenario import ModelSection
from tests.peft_table import EXPERTS, MODELS, TABLE, TARGETS, Refused, batch, build, scenario

ENTRIES = [(kind, model, row.on(model)) for kind, row in TABLE.items() for model in MODELS]
WORKING = [(k, m, e) for k, m, e in ENTRIES if isinstance(e, dict)]
REFUSED = [(k, m, e) for k, m, e in ENTRIES if isinstance(e, Refused)]
pytestmark = pytest.mark.filterwarnings(
    # XLORA: peft's own experts are loaded through the same calls as in `wrap`
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
)


def _ids(entries: list[tuple[str, str, Any]]) -> list[str]:
    return [f"{kind}-{model}" for kind, model, _ in entries]


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two LoRA adapters for each model, saved as peft saves them."""
    from peft import LoraConfig, get_peft_model

    folders = {}
    for name in MODELS:
        folders[name] = tmp_path_factory.mktemp(name)
        for expert in ("0", "1"):
            config = LoraConfig(r=2, target_modules=TARGETS[name], init_lora_weights=False)
            model = build(name)
            torch.manual_seed(int(expert))  # two experts that differ, or no gate could matter
            get_peft_model(model, config).save_pretrained(str(folders[name] / expert))
    return folders


def _placed(name: str, options: dict[str, Any], experts: dict[str, Path]) -> dict[str, Any]:
    if "adapters" not in options:
        return options
    folder, adapters = str(experts[name]), options["adapters"]
    return {**options, "adapters": {k: v.replace(EXPERTS, folder) for k, v in adapters.items()}}


def _wrapped(name: str, options: dict[str, Any], experts: dict[str, Path]) -> nn.Module:
    section = ModelSection(config={"model_type": name}, peft=_placed(name, options, experts))
    model = build(name)
    torch.manual_seed(7)
    return adapt.wrap(model, section)


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def _snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in _trained(model).items()}


def _logits(model: nn.Module, name: str) -> Tensor:
    logits: Tensor = model(**batch(name)).logits
    return logits[:, -1] if name == "llama" else logits  # (rows, classes or words)


def _eval_logits(model: nn.Module, name: str) -> Tensor:
    torch.manual_seed(3)  # PVERA and POLY sample in training only; nothing may depend on it here
    with torch.no_grad():
        return _logits(model.eval(), name)


def _step(model: nn.Module, name: str) -> None:
    torch.manual_seed(5)
    optimizer = torch.optim.AdamW(_trained(model).values(), lr=1e-2)
    loss = functional.cross_entropy(_logits(model.train(), name), torch.tensor([0, 1, 2, 0]))
    loss.backward()
    optimizer.step()


def test_the_table_knows_every_type() -> None:
    assert sorted(TABLE) == list(catalogue.all_types())


@pytest.mark.parametrize(("kind", "name", "options"), WORKING, ids=_ids(WORKING))
def test_one_step_and_a_round_trip_by_name(
    kind: str, name: str, options: dict[str, Any], experts: dict[str, Path]
) -> None:
    client = _wrapped(name, options, experts)
    before = _snapshot(client)
    assert name == "llama" or any(".classifier." in n and n.endswith("weight") for n in before)
    if not TABLE[kind].moves_start:
        start = _eval_logits(build(name), name)
        torch.testing.assert_close(_eval_logits(client, name), start, atol=1e-6, rtol=0)

    _step(client, name)
    after = _snapshot(client)
    delta = {n: after[n] - before[n] for n in before}
    assert all(torch.isfinite(d).all() for d in delta.values())
    adapter = {n: d for n, d in delta.items() if "classifier" not in n or "xlora" in n}
    assert any(d.abs().max() > 0 for d in adapter.values())

    server = _wrapped(name, options, experts)  # another process: same seed, nothing else shared
    first = _snapshot(server)
    assert all(torch.equal(first[n], before[n]) for n in before)
    with torch.no_grad():
        for n, parameter in _trained(server).items():
            parameter.copy_(after[n])
    torch.testing.assert_close(
        _eval_logits(server, name), _eval_logits(client, name), atol=0, rtol=0
    )


@pytest.mark.parametrize(("kind", "name", "refused"), REFUSED, ids=_ids(REFUSED))
def test_what_cannot_be_built_is_refused(
    kind: str, name: str, refused: Refused, experts: dict[str, Path]
) -> None:
    with pytest.raises(ModelError, match=refused.words):
        _wrapped(name, refused.options, experts)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name", "options"), WORKING, ids=_ids(WORKING))
def test_one_real_round(
    kind: str, name: str, options: dict[str, Any], experts: dict[str, Path], tmp_path: Path
) -> None:
    run = simulation.run(scenario(name, _placed(name, options, experts)), out=tmp_path)
    before, after = run.rounds
    assert (after["clients/completed"], after["clients/failed"]) == (2, 0)
    assert after["comm/up_bytes"] == after["comm/down_bytes"] > 0
    assert math.isfinite(after["eval/loss"])
    assert after["eval/loss"] != before["eval/loss"]
    warned = [line for line in run.events if "not the mean of their models" in line]
    assert len(warned) == (not catalogue.describe(options).exact)
