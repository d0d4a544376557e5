"""What the text tasks share: texts, padding, and checks that model and tokenizer fit."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fedsim.errors import ModelError
from fedsim.models import places
from fedsim.scenario import ModelSection
from fedsim.task import Batch

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


def texts(rows: Dataset, column: str) -> list[str]:
    """A column as strings; an empty cell is an empty text."""
    return ["" if value is None else str(value) for value in rows[column][:]]


def tokenize(
    tokenizer: PreTrainedTokenizerBase, *columns: list[str], **options: Any
) -> Mapping[str, list[list[int]]]:
    """Call a tokenizer on texts or pairs of texts; no rows give no ids.

    It is quiet about texts that are longer than its model: the tasks cut them.
    """
    if not columns[0]:  # transformers fails on an empty list
        return defaultdict(list)
    with places.quiet():
        encoded: Mapping[str, list[list[int]]] = tokenizer(*columns, **options)
    return encoded


def padded(ids: Sequence[Sequence[int]], length: int, fill: int) -> Tensor:
    """Token ids as int64 (rows, length), filled up on the right."""
    tensor = torch.full((len(ids), length), fill, dtype=torch.long)
    for row, tokens in enumerate(ids):
        tensor[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
    return tensor


def attention_mask(ids: Sequence[Sequence[int]], length: int) -> Tensor:
    """1 for tokens, 0 for padding; an empty row keeps one position, since softmax needs one."""
    sizes = torch.tensor([max(1, len(tokens)) for tokens in ids], dtype=torch.long)
    return (torch.arange(length) < sizes[:, None]).long()


def pick_trimmed(data: Batch, index: Tensor) -> Batch:
    """Rows of encoded data, without the columns that are padding in all of them."""
    batch = {name: tensor[index] for name, tensor in data.items()}
    length = int(batch["attention_mask"].sum(dim=1).max())
    return {name: t[:, :length] if t.dim() == 2 else t for name, t in batch.items()}


def logits(model: nn.Module, batch: Batch) -> Tensor:
    """What the model answers to everything in the batch but the labels."""
    output = model(**{name: t for name, t in batch.items() if name != "labels"})
    values: Tensor = getattr(output, "logits", output)
    return values


def context_length(model: nn.Module, section: ModelSection) -> float:
    """Tokens of a row that a model has positions for; infinite when it does not say.

    The virtual tokens that a prompt adapter of the ``model`` section will add are taken off.
    """
    config = getattr(model, "config", None)
    positions = getattr(_text_config(config), "max_position_embeddings", None)
    virtual = (section.peft or {}).get("num_virtual_tokens")
    return (positions or math.inf) - (virtual if isinstance(virtual, int) else 0)


def check_fit(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, section: ModelSection, max_length: int
) -> None:
    """Refuse token ids that the model has no embedding for, and rows longer than its context.

    Raises:
        ModelError: With the numbers that do not fit.
    """
    size = getattr(_text_config(getattr(model, "config", None)), "vocab_size", None)
    if isinstance(size, int) and len(tokenizer) > size:
        raise ModelError(
            f"the tokenizer has {len(tokenizer)} entries, the model only {size}",
            key=("model", "tokenizer"),
            hint="Set the configuration's vocab_size, or use the model's own tokenizer",
        )
    context = context_length(model, section)
    if max_length > context:
        raise ModelError(
            f"rows of {max_length} tokens do not fit the model",
            key=("task", "max_length"),
            allowed=f"At most {context:.0f} tokens: max_position_embeddings less virtual tokens",
        )


def check_room(tokenizer: PreTrainedTokenizerBase, columns: Sequence[str], max_length: int) -> None:
    """Refuse rows that are too short for a token of each text beside the tokenizer's own.

    Raises:
        ModelError: With the least length.
    """
    least = tokenizer.num_special_tokens_to_add(pair=len(columns) == 2) + len(columns)
    if max_length < least:
        raise ModelError(
            f"rows of {max_length} tokens have no room for text",
            key=("task", "max_length"),
            allowed=f"At least {least} tokens: this tokenizer adds {least - len(columns)}",
        )


def _text_config(config: Any) -> Any:
    return config.get_text_config() if hasattr(config, "get_text_config") else config
