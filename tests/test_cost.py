"""What work costs: counted on real models, against closed forms and published measurements."""

import warnings

import pytest
import torch
from torch import nn

from fedsim.clients.sgd import SGD
from fedsim.cost import Meter, Tally, counted, measure, optimizer_bytes
from fedsim.data import partition
from fedsim.engine.inline import InlineGrid
from fedsim.engine.worker import Recipe
from tests.problems import tiny

TX2_FLOPS = 345e9
"""What BERT-base reaches on a Jetson TX2 (FedAdapter's measurements, 0.52 of the peak)."""
TX2_ADAPTERS_S = (
    0.57, 0.57, 0.63, 0.66, 0.71, 0.75, 0.79, 0.84, 0.89, 0.94, 0.99, 1.03, 1.08,
)  # fmt: skip
"""Published seconds of a batch of 4 x 256 tokens by number of top layers with adapters."""


def bert_base(layers: int) -> nn.Module:
    """BERT-base without memory, LoRA in its top layers."""
    from peft import LoraConfig, get_peft_model
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, _attn_implementation="eager"
    )
    with torch.device("meta"):
        model = BertForSequenceClassification(config)
        lora = LoraConfig(
            task_type="SEQ_CLS", r=8, target_modules=["query", "value"], layers_pattern="layer",
            layers_to_transform=list(range(12 - layers, 12)),
        )  # fmt: skip
        return get_peft_model(model, lora)


@pytest.mark.slow
@pytest.mark.parametrize("layers", [1, 3, 6, 9, 12])
def test_counted_flops_reproduce_the_published_tx2_latencies(layers):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = bert_base(layers)
        tokens = torch.zeros(4, 256, dtype=torch.long, device="meta")
        with counted() as counter:
            model(input_ids=tokens, labels=tokens[:, 0]).loss.backward()
    assert counter.get_total_flops() / TX2_FLOPS == pytest.approx(TX2_ADAPTERS_S[layers], rel=0.05)


@pytest.mark.parametrize("layers", range(1, 13))
def test_the_rule_reproduces_the_published_tx2_latencies(layers):
    forward = 0.0444 * 12  # seconds, published as 0.0444 a layer
    assert forward * (1 + layers / 12) == pytest.approx(TX2_ADAPTERS_S[layers], rel=0.015)


def test_attention_on_a_cpu_is_counted():
    q = torch.randn(2, 4, 8, 16, requires_grad=True)
    with counted() as counter:
        out = nn.functional.scaled_dot_product_attention(q, q, q)
        forward = counter.get_total_flops()
        out.sum().backward()
    assert forward == 2 * 2 * 2 * 4 * 8 * 8 * 16  # two products of 8 x 8 x 16 for each head
    assert counter.get_total_flops() > 3 * forward


def task_of(scenario, method=None):
    split = partition.make(scenario, 0)
    with InlineGrid(Recipe(scenario, split.ownership, 0)) as grid:
        worker = grid.worker
        return worker.task, Meter(worker.task, method or worker.method)


def test_a_linear_model_costs_what_the_formula_says():
    task, _ = task_of(tiny())
    batch = task.collate(task.client_data(0), torch.arange(8))
    forward = measure(task, dict(batch), gradient=False)
    both = measure(task, dict(batch), gradient=True)
    assert forward.flops == 2 * 8 * 4 * 3
    assert both.flops == 2 * forward.flops  # the input needs no gradient


def test_memory_of_sgd_and_adam():
    trained = (4 * 3 + 3) * 4
    for optimizer, state in (("SGD", 0), ("AdamW", 2)):
        _, meter = task_of(tiny(client={"name": "sgd", "optimizer": optimizer}))
        assert meter.weight_bytes == trained
        # weights, received copy, gradients, optimizer state
        assert meter.fixed_bytes == (3 + state) * trained


def test_memory_without_a_backward_pass_is_weights_and_the_widest_module():
    class Blind(SGD):
        backward = False

    task, meter = task_of(tiny(), Blind())
    batch = task.collate(task.client_data(0), torch.arange(8))
    assert meter.memory_bytes(batch) == 2 * 60 + 8 * (4 + 3) * 4


def test_measuring_leaves_no_trace():
    task, _ = task_of(tiny(model={"name": "tests.test_cost:noisy"}))
    data = task.collate(task.client_data(0), torch.arange(8))
    before = {n: b.clone() for n, b in task.model.named_buffers()}
    state = torch.get_rng_state()
    task.model.train()
    measure(task, dict(data), gradient=True)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(b, before[n]) for n, b in task.model.named_buffers())
    assert all(p.grad is None for p in task.model.parameters())


def noisy() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))


def test_activations_grow_with_the_batch():
    task, meter = task_of(tiny(model={"name": "tests.test_cost:noisy"}))
    data = task.client_data(0)
    kept = [
        measure(task, dict(task.collate(data, torch.arange(n))), True).activation_bytes
        for n in (4, 8, 16)
    ]
    assert kept[1] - kept[0] == pytest.approx((kept[2] - kept[1]) / 2)
    assert meter.rows_that_fit(0, 10**9, False)[0] == 8
    tight = meter.fixed_bytes + kept[0]
    assert meter.rows_that_fit(0, tight, True)[0] == 4
    assert meter.rows_that_fit(0, tight, False)[0] == 0
    assert meter.rows_that_fit(0, 10, True)[0] == 0


def test_a_bert_block_keeps_what_the_note_on_memory_says():
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertLayer

    config = BertConfig(
        hidden_size=64, intermediate_size=256, num_attention_heads=4, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, _attn_implementation="eager",
    )  # fmt: skip
    block, x = BertLayer(config), torch.randn(4, 32, 64, requires_grad=True)
    known = {p.untyped_storage().data_ptr() for p in block.parameters()}
    kept = {}

    def keep(t):
        if t.untyped_storage().data_ptr() not in known:
            kept[t.untyped_storage().data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        block(x)
    u, v, q = 4 * 32 * 64, 4 * 32 * 256, 4 * 4 * 32 * 32
    total = sum(t.untyped_storage().nbytes() for t in kept.values()) / 4
    assert total == pytest.approx(8 * u + 2 * v + q, rel=0.03)


@pytest.mark.parametrize(("name", "values"), [("SGD", 0), ("AdamW", 2), ("Adagrad", 1)])
def test_optimizer_state(name, values):
    p = nn.Parameter(torch.zeros(3, 5))
    assert optimizer_bytes(getattr(torch.optim, name)([p])) == values * 15 * 4


def test_a_tally_counts_shapes_and_rows():
    task, meter = task_of(tiny())
    tally = Tally()
    for rows in (8, 8, 4):
        tally.note(task.collate(task.client_data(0), torch.arange(rows)))
    spent = meter.spent(tally)
    assert (spent.batches, spent.examples) == (3, 20)
    assert spent.flops == 20 * 2 * 2 * 4 * 3
