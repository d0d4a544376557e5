"""Classifiers of sentence embeddings: what they compute, and what goes wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedsim.errors import ModelError
from fedsim.models import load
from fedsim.models.sentence import sentence_classifier
from fedsim.scenario import ModelSection
from tests.test_models_load import BERT, CLASSIFIER, build

NAME = "fedsim.models.sentence:sentence_classifier"
IDS = torch.tensor([[5, 6, 7, 0], [8, 9, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A tiny BERT encoder."""
    build(config=BERT).bert.save_pretrained(tmp_path)
    return str(tmp_path)


def test_logits_are_of_the_scaled_mean_of_unit_length(folder: str) -> None:
    model = sentence_classifier(folder, num_labels=3, scale=10.0).eval()
    torch.nn.init.normal_(model.classifier.weight)
    hidden = model.encoder(IDS, attention_mask=MASK).last_hidden_state
    means = torch.stack([hidden[0, :3].mean(0), hidden[1, :2].mean(0)])
    expected = 10 * means / means.norm(dim=1, keepdim=True) @ model.classifier.weight.T
    torch.testing.assert_close(model(IDS, MASK), expected)
    torch.testing.assert_close(model(IDS[1:, :2], MASK[1:, :2]), expected[1:])  # of no padding


def test_an_untrained_one_prefers_no_class_and_has_no_dropout(folder: str) -> None:
    section = ModelSection(name=NAME, options={"pretrained": folder})
    model = load.build(section, CLASSIFIER, num_labels=4, vocab_size=100)
    assert model(IDS, MASK).tolist() == [[0.0] * 4] * 2
    torch.nn.init.normal_(model.classifier.weight)
    assert torch.equal(model.train()(IDS, MASK), model.eval()(IDS, MASK))
    active = sentence_classifier(folder, dropout=0.5).train()
    torch.nn.init.normal_(active.classifier.weight)
    assert not torch.equal(active(IDS, MASK), active(IDS, MASK))


def test_weights_that_are_not_there_are_named() -> None:
    section = ModelSection(name=NAME, options={"pretrained": "./nowhere"}, how_to_get="Ask Ann")
    with pytest.raises(ModelError, match=r"there is no folder './nowhere'") as caught:
        load.build(section, CLASSIFIER, num_labels=2)
    assert caught.value.key == ("model", "options", "pretrained")
    assert caught.value.hint == "Ask Ann"
