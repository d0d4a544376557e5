"""Classifiers of sentence embeddings: a pretrained encoder, the mean over tokens, a linear head."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from fedsim.errors import ModelError
from fedsim.models import load
from fedsim.scenario import ModelSection


class SentenceClassifier(nn.Module):
    """Logits of texts from the unit-length mean of an encoder's last hidden states.

    The head starts at zero, so that an untrained model gives all classes the same probability.

    Args:
        encoder: A transformers model without a head.
        hidden_size: Length of its hidden states.
        num_labels: Number of classes.
        scale: Factor of the embedding before the head.
    """

    def __init__(self, encoder: nn.Module, hidden_size: int, num_labels: int, scale: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.classifier = nn.Linear(hidden_size, num_labels)
        self.scale = scale
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits (rows, classes) of token ids (rows, tokens); the mask is 0 for padding."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        embedding = functional.normalize((hidden * mask).sum(1))  # of the mean's direction
        logits: Tensor = self.classifier(self.scale * embedding)
        return logits


def sentence_classifier(
    pretrained: str,
    num_labels: int = 2,
    scale: float = 100.0,
    options: dict[str, Any] | None = None,
    how_to_get: str = "",
) -> nn.Module:
    """A classifier on a pretrained sentence encoder, as such encoders are used by their authors.

    Encoders of sentence-transformers were trained on means over tokens of unit length (Reimers and
    Gurevych, 2019); their first token and its pooler, which ``AutoModelForSequenceClassification``
    reads, say little. ``scale`` is the largest that CLIP allows its logits (Radford et al., 2021);
    that it suits the head of a classifier is ours.

    Args:
        pretrained: Folder, ``package:module/folder``, or Hub id; ``model.tokenizer.name`` needs it,
            too.
        num_labels: Number of classes; the data says it.
        scale: Factor of the embedding before the head.
        options: Of the encoder's configuration, such as ``hidden_dropout_prob``.
        how_to_get: What to tell a reader who lacks the weights; ``model.how_to_get`` says it.

    Raises:
        ModelError: The weights cannot be found or read, or an option is unknown.
    """
    section = ModelSection(name=pretrained, options=options or {}, how_to_get=how_to_get)
    try:
        encoder: Any = load.build(section, "AutoModel")
    except ModelError as error:  # its places are those of a section of its own
        own = ("pretrained",) if error.key[1:2] == ("name",) else error.key[1:]
        key = ("model", "options", *own)
        raise ModelError(error.what, key=key, allowed=error.allowed, hint=error.hint) from error
    return SentenceClassifier(encoder, encoder.config.hidden_size, num_labels, scale)
