"""Causal language modelling: predict the next token of answers or of plain text.

A row becomes ``<bos> prompt answer <eos>`` with ids ``x``; the loss is the mean of
``-log p(x[t] | x[:t])`` over the positions ``t`` of the answer and its end token. Without a prompt
the whole text is the answer. Prompt and answer are tokenized apart, so that their border never
falls inside a token.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from fedsim.errors import ModelError, ScenarioError
from fedsim.models import load, places, tokenizer
from fedsim.scenario import ModelSection
from fedsim.task import Batch, Objective, Totals

from . import _text
from ._template import Template, parse

if TYPE_CHECKING:
    from datasets import Dataset

IGNORED = -100
"""Label of positions that are not learned: prompt and padding."""


@dataclass(kw_only=True)
class CausalLM(Objective):
    """Instructions with answers, or plain text.

    A row that is longer than ``max_length`` loses the beginning of its prompt and the end of its
    answer; the shorter of the two gives the room that it does not need to the other, and each has
    at least half.

    Args:
        prompt: Template of what the model is given, such as ``"Question: {question} Answer:"``;
            names in braces are columns (``{{`` and ``}}`` are braces), empty cells are empty.
        answer: Template of what it learns to say, such as ``" {response}"``.
        text_column: Instead of both, the column of plain text.
        max_length: Tokens of a row, with its first and last special token.
        generate_rows: Test rows whose answers are generated for ROUGE-L after the last round; only
            with a prompt.
        max_new_tokens: Tokens of a generated answer.
    """

    key_metric: ClassVar[tuple[str, Any]] = ("loss", "min")

    prompt: str = ""
    answer: str = ""
    text_column: str | None = None
    max_length: Annotated[int, Field(ge=2)] = 128
    generate_rows: NonNegativeInt = 16
    max_new_tokens: PositiveInt = 32
    _prompt: Template = field(init=False, repr=False)
    _answer: Template = field(init=False, repr=False)
    _tokenizer: Any = field(init=False, repr=False, default=None)
    _prompt_room: int = field(init=False, repr=False, default=0)

    def __post_init__(self) -> None:
        if (self.text_column is None) == (not self.answer) or (self.text_column and self.prompt):
            raise ScenarioError(
                "give either 'text_column', or 'answer' with or without 'prompt'",
                key=("task",),
                hint='For example prompt: "{instruction} ", answer: "{response}"',
            )
        self._prompt = parse(self.prompt, "prompt")
        self._answer = parse(self.answer, "answer")
        if self.text_column:
            self._answer = Template("text_column", (("", self.text_column),))
        if not self._answer.columns:
            raise ScenarioError(
                "the template names no column, so every row has the same answer",
                key=("task", "answer"),
                hint='Write a column in braces: "{response}"',
            )

    def build_model(self, section: ModelSection, train: Dataset) -> nn.Module:
        """A language model, and the tokenizer that goes with it."""
        self._prompt.check(train)
        self._answer.check(train)
        self._tokenizer = tokenizer.build(section, self._all_texts(train))
        if self._tokenizer.eos_token_id is None:
            raise ModelError("the tokenizer has no end token", key=("model", "tokenizer"))
        model = load.build(
            section,
            "AutoModelForCausalLM",
            vocab_size=len(self._tokenizer),
            pad_token_id=self._tokenizer.pad_token_id,
            bos_token_id=self._tokenizer.bos_token_id,
            eos_token_id=self._tokenizer.eos_token_id,
        )
        _text.check_fit(model, self._tokenizer, section, self.max_length)
        self._check_generation(model, section)
        return model

    @property
    def _generates(self) -> bool:
        return bool(self.prompt) and self.generate_rows > 0

    def _check_generation(self, model: nn.Module, section: ModelSection) -> None:
        room = _text.context_length(model, section) - self.max_new_tokens
        if self._generates and room < 1:
            raise ModelError(
                f"{self.max_new_tokens} new tokens leave no room for a prompt",
                key=("task", "max_new_tokens"),
                allowed=f"At most {self.max_new_tokens + int(room) - 1}",
            )
        if self._generates and not hasattr(model, "generate"):
            raise ModelError(
                f"{type(model).__name__} cannot generate text",
                key=("task", "generate_rows"),
                hint="Set it to 0 to go without ROUGE-L",
            )
        self._prompt_room = int(min(self.max_length, room))

    def _all_texts(self, rows: Dataset) -> Iterator[str]:
        yield from self._prompt.render(rows)
        yield from self._answer.render(rows)

    def _token_ids(self, texts: Iterator[str]) -> list[list[int]]:
        return _text.tokenize(self._tokenizer, list(texts), add_special_tokens=False)["input_ids"]

    @property
    def _start(self) -> list[int]:
        bos = self._tokenizer.bos_token_id
        return [] if bos is None else [bos]

    def encode(self, rows: Dataset) -> Batch:
        """``input_ids``, ``attention_mask``, ``labels`` (rows, max_length), int64.

        ``labels`` repeats ``input_ids`` where the answer is and is -100 elsewhere.
        """
        prompts = self._token_ids(self._prompt.render(rows))
        answers = self._token_ids(self._answer.render(rows))
        room = self.max_length - len(self._start)
        ids, labels = [], []
        for prompt, answer in zip(prompts, answers, strict=True):
            prompt, answer = _fitted(prompt, [*answer, self._tokenizer.eos_token_id], room)
            given = [*self._start, *prompt]
            ids.append([*given, *answer])
            labels.append([IGNORED] * len(given) + answer)
        return {
            "input_ids": _text.padded(ids, self.max_length, self._tokenizer.pad_token_id),
            "attention_mask": _text.attention_mask(ids, self.max_length),
            "labels": _text.padded(labels, self.max_length, IGNORED),
        }

    def collate(self, data: Batch, index: Tensor) -> Batch:
        """The rows as one batch, trimmed to its longest row."""
        return _text.pick_trimmed(data, index)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross entropy over the answers' tokens of the batch."""
        logits, targets = _predictions(model, batch)
        total = functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
        return total / (targets != IGNORED).sum().clamp(min=1)

    def totals(self, model: nn.Module, batch: Batch) -> Totals:
        """Summed cross entropy, tokens guessed right, answer tokens, rows."""
        logits, targets = _predictions(model, batch)
        total = functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
        return {
            "loss": total.item(),
            "correct": float((logits.argmax(-1) == targets).sum()),  # never where ignored
            "tokens": float((targets != IGNORED).sum()),
            "rows": float(len(batch["labels"])),
        }

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Mean cross entropy per token, its exponential, and the share of tokens guessed right."""
        loss = totals["loss"] / totals["tokens"]
        return {
            "loss": loss,
            "perplexity": math.exp(loss) if loss < 700 else math.inf,
            "token_accuracy": totals["correct"] / totals["tokens"],
        }

    def final_metrics(self, model: nn.Module, rows: Dataset) -> dict[str, float]:
        """ROUGE-L (mean F-measure) of greedily generated answers to the first rows."""
        if not self._generates or len(rows) == 0:
            return {}
        from rouge_score.rouge_scorer import RougeScorer

        rows = rows.select(range(min(self.generate_rows, len(rows))))
        generated = self._generate(model, self._token_ids(self._prompt.render(rows)))
        scorer = RougeScorer(["rougeL"])
        scores = [
            scorer.score(target=wanted, prediction=said)["rougeL"].fmeasure
            for wanted, said in zip(self._answer.render(rows), generated, strict=True)
        ]
        return {"rouge_l": sum(scores) / len(scores)}

    def _generate(self, model: nn.Module, prompts: list[list[int]]) -> list[str]:
        """Greedy answers.

        Equally long prompts go together, without padding: GPT-2 with a prompt adapter counts
        padding as positions and would answer differently.
        """
        room = self._prompt_room - len(self._start)
        given = [[*self._start, *(prompt[-room:] if room else [])] for prompt in prompts]
        answers = [""] * len(given)
        model.eval()
        for length in sorted(set(map(len, given))):
            rows = [row for row, tokens in enumerate(given) if len(tokens) == length]
            outputs = self._continued(model, torch.tensor([given[row] for row in rows]))
            said = self._tokenizer.batch_decode(outputs[:, length:], skip_special_tokens=True)
            for row, text in zip(rows, said, strict=True):
                answers[row] = text
        return answers

    def _continued(self, model: nn.Module, input_ids: Tensor) -> Tensor:
        from transformers import GenerationConfig

        with places.quiet(), torch.no_grad(), warnings.catch_warnings():
            # peft drops the positions that generate makes for a prompt adapter, and says so
            warnings.filterwarnings("ignore", "Position ids are not supported")
            input_ids = input_ids.to(getattr(model, "device", "cpu"))
            outputs: Tensor = model.generate(  # type: ignore[operator]
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                generation_config=GenerationConfig(  # type: ignore[no-untyped-call]
                    do_sample=False,
                    max_new_tokens=self.max_new_tokens,
                    pad_token_id=self._tokenizer.pad_token_id,
                    bos_token_id=self._tokenizer.bos_token_id,
                    eos_token_id=self._tokenizer.eos_token_id,
                ),
            )
        return outputs


def _fitted(prompt: list[int], answer: list[int], room: int) -> tuple[list[int], list[int]]:
    """The end of the prompt and the beginning of the answer that fit into ``room`` tokens.

    >>> _fitted([1, 2, 3, 4], [7, 8, 9], 4)
    ([3, 4], [7, 8])
    """
    answer = answer[: max(room - len(prompt), (room + 1) // 2)]
    return prompt[max(0, len(prompt) - (room - len(answer))) :], answer


def _predictions(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits (rows * length, vocabulary) and the token that each of them should predict.

    The labels are shifted, not the logits: this copies nothing large.
    """
    labels = batch["labels"]
    logits = _text.logits(model, batch)[:, -labels.shape[1] :]  # without virtual tokens of a prompt
    targets = functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    return logits.flatten(0, 1), targets.flatten()
