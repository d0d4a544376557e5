"""Causal language modelling: what the loss counts, padding, templates, generation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn

from fedsim.errors import ModelError, ScenarioError
from fedsim.models import adapt
from fedsim.scenario import ModelSection
from fedsim.task import Batch, merge_totals
from fedsim.tasks.causal_lm import CausalLM

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 300}
LLAMA = {**SIZES, "model_type": "llama", "intermediate_size": 64}
GPT2 = {**SIZES, "model_type": "gpt2", "max_position_embeddings": 160}
SENTENCES = ["a fine day", "rain again and again, all the week", "sun", "a dull grey evening"]
CHATS = Dataset.from_dict(
    {
        "question": ["two plus two", "the capital of France", "a colour", "name a fruit please"],
        "response": ["four", "Paris", "deep blue", "a pear"],
    }
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)


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
    parrot = Parrot([[*tokens(task, f" {word}"), 2] for word in "yxz"])
    assert task.final_metrics(parrot, rows) == {"rouge_l": 1.0}
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


@pytest.mark.slow_variants
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
