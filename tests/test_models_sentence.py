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


def test_an_untrained_one_prefers_no_class_and_has_the_encoders_dropout(folder: str) -> None:
    section = ModelSection(name=NAME, options={"pretrained": folder})
    model = load.build(section, CLASSIFIER, num_labels=4, vocab_size=100)
    assert model(IDS, MASK).tolist() == [[0.0] * 4] * 2
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    for options, equal in ((off, True), (None, False)):
        model = sentence_classifier(folder, options=options).train()
        torch.nn.init.normal_(model.classifier.weight)
        assert torch.equal(model(IDS, MASK), model(IDS, MASK)) == equal


def test_weights_that_are_not_there_are_named() -> None:
    section = ModelSection(name=NAME, options={"pretrained": "./nowhere"}, how_to_get="Ask Ann")
    with pytest.raises(ModelError, match=r"there is no folder './nowhere'") as caught:
        load.build(section, CLASSIFIER, num_labels=2)
    assert caught.value.key == ("model", "options", "pretrained")
    assert caught.value.hint == "Ask Ann"


def test_an_option_that_the_encoder_lacks_is_named(folder: str) -> None:
    options = {"pretrained": folder, "options": {"hidden_dropout_probs": 0.0}}
    with pytest.raises(ModelError, match="unknown option 'hidden_dropout_probs'") as caught:
        load.build(ModelSection(name=NAME, options=options), CLASSIFIER, num_labels=2)
    assert caught.value.key == ("model", "options", "options", "hidden_dropout_probs")
    assert "hidden_dropout_prob" in caught.value.hint
