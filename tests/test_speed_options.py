"""Options that go below the bare loop's cost: frozen blocks are skipped, bfloat16, compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn

from fedsim import simulation
from fedsim.data import partition
from fedsim.engine.worker import Recipe, Worker
from fedsim.errors import ModelError
from fedsim.models import prefix
from fedsim.models.prefix import Rows
from fedsim.scenario import Scenario
from fedsim.task import Batch, Task
from fedsim.tasks.module import TorchModule
from tests.problems import tiny

pytestmark = pytest.mark.slow

WORDS = ["a", "fine", "day", "rain", "again", "and", "all", "the", "week", "sun", "evening"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {**SIZES, **QUIET, "model_type": "bert", "intermediate_size": 64},
    "llama": {**SIZES, "model_type": "llama", "intermediate_size": 64},
    "vit": {**SIZES, **QUIET, "model_type": "vit", "intermediate_size": 64, "patch_size": 4},
    "albert": {**SIZES, **QUIET, "model_type": "albert", "intermediate_size": 64},
    "t5": {"model_type": "t5", "d_model": 32, "d_kv": 8, "num_layers": 2, "dropout_rate": 0.0},
    "resnet": {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16]},
}
CONFIGS["t5"] |= {"d_ff": 64, "num_heads": 4}
CONFIGS["resnet"] |= {"depths": [1, 1], "layer_type": "basic"}
TARGETS = {"bert": "query", "llama": "q_proj", "vit": "q_proj"}
CHAINS = list(TARGETS)


def sentences() -> dict[str, Dataset]:
    """Texts of different lengths, and whether the sun is in them."""
    rng = np.random.default_rng(0)
    rows = [list(rng.choice(WORDS, rng.integers(1, 12))) for _ in range(60)]
    labels = [int("sun" in row) for row in rows]
    data = Dataset.from_dict({"text": [" ".join(row) for row in rows], "label": labels})
    return {"train": data, "test": data.select(range(20))}


def images() -> dict[str, Dataset]:
    """Noise with one bright half."""
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(60, 8, 8)).astype("float32")
    labels = np.arange(60) % 2
    pixels[labels == 1, :4] += 1
    data = Dataset.from_dict({"image": pixels, "label": labels})
    return {"train": data, "test": data.select(range(20))}


def scenario(kind: str, **changes: Any) -> Scenario:
    """LoRA in the last of three blocks, three clients."""
    is_image = kind in ("vit", "resnet")
    lora = {"peft_type": "LORA", "r": 2, "target_modules": [TARGETS.get(kind, "none")]}
    model = {"config": CONFIGS[kind], "peft": {**lora, "layers_to_transform": [2]}}
    values: dict[str, Any] = {
        "num_clients": 3,
        "task": {"name": "image_classification" if is_image else "text_classification"},
        "data": {"path": f"tests.test_speed_options:{'images' if is_image else 'sentences'}"},
        "client": {"name": "sgd", "learning_rate": 0.5, "batch_size": 6},
    }
    extra = changes.pop("model", {})
    return tiny(**values, **changes, model={"name": None, **model, **extra})


def task(given: Scenario, scratch: Path | None = None) -> Task:
    return Worker(Recipe(given, partition.make(given, 0).ownership, 0, scratch)).task


def computed(of: Task) -> list[int]:
    """Grows when a frozen block computes."""
    seen: list[int] = []
    block = of.model.get_submodule("base_model.model.vit.layers.0")
    block.get_submodule("attention").register_forward_hook(lambda *_: seen.append(1))
    return seen


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))


def digest(given: Scenario, out: Any) -> str:
    run = simulation.run(given, out=out)
    assert run.rounds[-1]["clients/failed"] == 0
    return str(run.summary["weights_sha256"])


def loss_and_gradients(of: Task, batch: Batch) -> list[Tensor]:
    of.model.train()
    of.model.zero_grad()
    loss = of.loss(batch)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in of.parameters.values())]


# Frozen blocks


@pytest.mark.parametrize("kind", CHAINS)
def test_kept_or_computed_again_gives_the_same_bits(kind, tmp_path):
    kept, again = (scenario(kind, engine={"cache_prefix": on}) for on in (True, False))
    assert digest(kept, tmp_path) == digest(again, tmp_path)


def test_a_full_cache_does_not_change_the_bits(tmp_path, monkeypatch):
    expected = digest(scenario("bert"), tmp_path)
    monkeypatch.setattr("fedsim.task.PREFIX_BYTES", 40_000)  # one of three clients
    assert digest(scenario("bert"), tmp_path) == expected


@pytest.mark.parametrize("kind", CHAINS)
def test_skipping_changes_loss_and_gradients_by_rounding_at_most(kind):
    of = task(scenario(kind))
    data = of.client_data(0)
    assert isinstance(data, Rows)
    batch = of.collate(data, torch.tensor([3, 0, 8]))
    assert isinstance(batch, Rows)
    skipped = loss_and_gradients(of, batch)
    ordinary = loss_and_gradients(of, dict(batch))
    assert any(g.abs().max() > 1e-4 for g in skipped[1:])
    torch.testing.assert_close(skipped, ordinary, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("keeps", [True, False])
def test_a_frozen_block_computes_once_per_client_or_once_per_use_of_its_rows(keeps):
    of = task(scenario("vit", engine={"cache_prefix": keeps}))
    seen = computed(of)
    for _ in range(3):
        data = of.client_data(0)
        for start in (0, 4, 8):
            of.loss(of.collate(data, torch.arange(start, start + 4)))
    assert len(seen) == (1 if keeps else 3)


def test_workers_of_a_machine_share_what_frozen_blocks_answered(tmp_path):
    one, other = (task(scenario("vit"), tmp_path) for _ in range(2))
    counts = [computed(one), computed(other)]
    rows = [of.client_data(client) for client in (0, 1) for of in (one, other)]
    assert [len(count) for count in counts] == [2, 0]
    alone = task(scenario("vit")).client_data(1)
    assert isinstance(alone, Rows)
    for found in rows[2:]:
        assert isinstance(found, Rows)
        assert torch.equal(found.hidden, alone.hidden)


def test_the_budget_bounds_what_is_shared(tmp_path, monkeypatch):
    monkeypatch.setattr("fedsim.task.PREFIX_BYTES", 40_000)  # one of three clients
    of = task(scenario("bert"), tmp_path)
    for client in (0, 1, 2):
        assert isinstance(of.client_data(client), Rows)
    assert [path.name for path in tmp_path.glob("train*")] == ["train-0"]


def test_answers_that_cannot_be_written_stay_in_memory(tmp_path, monkeypatch, caplog):
    def full(*args: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    caplog.set_level("INFO", "fedsim")
    of = task(scenario("vit"), tmp_path)
    seen = computed(of)
    first, second = (of.client_data(0) for _ in range(2))
    assert first is second
    assert len(seen) == 1
    assert "No space left" in caplog.text


def test_workers_that_share_give_the_bits_of_one_process(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    several = scenario("bert", engine={"backend": "ray", "workers": 2})
    assert digest(several, tmp_path / "ray") == digest(scenario("bert"), tmp_path / "inline")
    assert not list(tmp_path.glob("fedsim-*"))


def test_a_trained_head_alone_leaves_all_blocks_out():
    head = {"peft": None, "trainable": ["classifier.*"]}
    of = task(scenario("bert", model=head))
    data = of.client_data(0)
    assert isinstance(data, Rows)
    top = of.model.get_submodule("bert.encoder.layer.2.attention")
    top.register_forward_hook(lambda *_: pytest.fail("computed although it is frozen"))
    of.loss(of.collate(data, torch.arange(4)))


def without(**changes: Any) -> dict[str, Any]:
    return {"peft": None, "trainable": ["classifier*"], **changes}


@pytest.mark.parametrize(
    ("kind", "model"),
    [
        pytest.param("bert", {"peft": None}, id="everything is trained"),
        pytest.param("bert", without(trainable=["*embeddings*"]), id="embeddings are trained"),
        pytest.param("bert", without(trainable=["*layer.0*bias"]), id="first block is trained"),
        pytest.param(
            "bert",
            without(config={**CONFIGS["bert"], "hidden_dropout_prob": 0.1}),
            id="dropout below the first trained block",
        ),
        pytest.param("resnet", without(), id="batch statistics"),
        pytest.param("albert", without(), id="one block for all layers"),
        pytest.param("t5", without(trainable=["classification_head*"]), id="two chains"),
        pytest.param(
            "bert",
            {"peft": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 2}},
            id="trained vectors enter every block",
        ),
    ],
)
def test_blocks_are_computed_where_skipping_would_not_be_exact(kind, model):
    of = task(scenario(kind, model=model))
    assert of._prefix is None
    assert not isinstance(of.client_data(0), Rows)


def test_dropout_above_the_frozen_blocks_draws_the_same_numbers(tmp_path):
    lora = scenario("bert").model.peft
    drops = {"peft": {**(lora or {}), "lora_dropout": 0.5}}
    assert isinstance(task(scenario("bert", model=drops)).client_data(0), Rows)
    runs = [scenario("bert", model=drops, engine={"cache_prefix": on}) for on in (True, False)]
    assert digest(runs[0], tmp_path) == digest(runs[1], tmp_path)


def test_rows_with_too_many_answers_take_the_ordinary_path(monkeypatch):
    monkeypatch.setattr(prefix, "LARGEST_BYTES", 1000)
    assert not isinstance(task(scenario("vit")).client_data(0), Rows)


class Residual(nn.Module):
    """Frozen blocks whose answers are also used further up, so that they cannot be skipped."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3)).requires_grad_(False)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        answers = [x]
        for block in self.blocks:
            answers.append(block(answers[-1]))
        return self.head(sum(answers))


class Doubling(TorchModule):
    """Changes the rows of a batch, so that a batch is not rows of the data."""

    def collate(self, data: Batch, index: Tensor) -> Batch:
        batch = super().collate(data, index)
        return {**batch, "features": 2 * batch["features"]}


def test_blocks_that_are_used_further_up_are_computed():
    of = task(tiny(model={"name": "tests.test_speed_options:Residual"}))
    assert of._prefix is None
    assert not any("forward" in vars(module) for module in of.model.modules())


def chain() -> nn.Module:
    """A plain chain of frozen blocks."""
    model = Residual()
    model.forward = lambda x: model.head(model.blocks[2](model.blocks[1](model.blocks[0](x))))
    return model


def test_batches_that_an_objective_changes_are_computed():
    model = {"name": "tests.test_speed_options:chain"}
    assert isinstance(task(tiny(model=model)).client_data(0), Rows)
    doubling = task(tiny(model=model, task={"name": "tests.test_speed_options:Doubling"}))
    assert doubling._prefix is not None
    assert not isinstance(doubling.client_data(0), Rows)


# bfloat16


def test_bfloat16_holds_what_is_frozen_and_float32_what_is_trained():
    of = task(scenario("bert", model={"dtype": "bfloat16"}))
    for parameter in of.model.parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16)
    assert {x.dtype for x in of.trainable().values()} == {np.dtype("float32")}
    batch = of.collate(of.client_data(0), torch.arange(4))
    assert batch.hidden.dtype == torch.bfloat16
    assert of.loss(batch).dtype == torch.float32


@pytest.mark.parametrize(
    ("able", "warned"), [({"avx512_bf16": False, "avx512_f": True}, True), ({"bf16": True}, False)]
)
def test_a_run_says_when_its_processor_has_no_bfloat16(able, warned, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    one = simulation.run(scenario("bert", num_rounds=1, model={"dtype": "bfloat16"}), out=tmp_path)
    assert any("slower than float32" in line for line in one.events) == warned


@pytest.mark.parametrize("kind", CHAINS)
def test_bfloat16_gives_the_gradients_of_float32_to_two_digits(kind):
    one, other = (task(scenario(kind, model={"dtype": d})) for d in ("float32", "bfloat16"))
    index = torch.tensor([3, 0, 8])
    exact = loss_and_gradients(one, one.collate(one.client_data(0), index))
    rounded = loss_and_gradients(other, other.collate(other.client_data(0), index))
    for x, y in zip(exact, rounded, strict=True):
        assert (x - y).norm() <= 0.03 * x.norm() + 1e-5
    assert not all(torch.equal(x, y) for x, y in zip(exact, rounded, strict=True))


def test_bfloat16_and_frozen_blocks_together_keep_equal_bits(tmp_path):
    model = {"dtype": "bfloat16"}
    runs = [scenario("bert", model=model, engine={"cache_prefix": on}) for on in (True, False)]
    digests = [digest(run, tmp_path) for run in (*runs, scenario("bert"))]
    assert digests[0] == digests[1] != digests[2]


def test_bfloat16_leaves_running_statistics_alone(tmp_path):
    given = scenario("resnet", model=without(dtype="bfloat16"))
    layers = [m for m in task(given).model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {layer.weight.dtype for layer in layers} == {torch.float32}
    digest(given, tmp_path)


# Compiled


def test_compiling_needs_a_compiler():
    given = tiny(model={"compile": True, "name": "tests.test_speed_options:gelu"})
    missing = torch._inductor.config.patch("cpp.cxx", ("no-such-compiler",))
    with missing, pytest.raises(ModelError, match=r"C\+\+ compiler") as caught:
        task(given)
    assert caught.value.key == ("model", "compile")


def gelu() -> nn.Module:
    """Two layers, all of them trained."""
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3))


@pytest.mark.slow
def test_compiled_is_close_to_ordinary():
    name = "tests.test_speed_options:gelu"
    plain, compiled = (task(tiny(model={"name": name, "compile": c})) for c in (False, True))
    results = [loss_and_gradients(t, t.client_data(0)) for t in (plain, compiled)]
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)
    assert plain.model._compiled_call_impl is None
    assert compiled.model._compiled_call_impl is not None


LAST_AND_ROUNDED = {"memory_format": "channels_last", "dtype": "bfloat16"}
OPTIONS = {
    "frozen blocks": scenario("bert"),
    "frozen blocks in bfloat16, channels last": scenario("vit", model=LAST_AND_ROUNDED),
    "compiled": tiny(model={"name": "tests.test_speed_options:gelu", "compile": True}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_inline_and_workers_give_the_same_bits(name, tmp_path):
    given = OPTIONS[name].model_dump(exclude_unset=True)
    engines = [{"backend": "inline"}, {"backend": "ray", "workers": 2}]
    runs = [Scenario.model_validate({**given, "engine": engine}) for engine in engines]
    assert len({digest(run, tmp_path) for run in runs}) == 1
