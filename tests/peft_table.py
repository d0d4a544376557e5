"""Every peft type on three tiny models: options that work, or why it cannot be built.

``EXPERTS`` inside an option stands for a folder with two trained LoRA adapters, ``0`` and ``1``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.scenario import Scenario

MODELS = ("bert", "vit", "llama")
EXPERTS = "EXPERTS"
TARGETS = {"bert": ["query", "value"], "vit": ["q_proj", "v_proj"], "llama": ["q_proj", "v_proj"]}


@dataclass(frozen=True)
class Refused:
    """Options that should have worked, the reason why they cannot, and words of the error."""

    reason: str
    options: dict[str, Any]
    words: str


@dataclass(frozen=True)
class Row:
    """One peft type: options for ``model.peft`` by model, or a refusal."""

    bert: dict[str, Any] | Refused
    vit: dict[str, Any] | Refused
    llama: dict[str, Any] | None = None
    """Only for types that neither BERT nor ViT can show."""
    moves_start: str = ""
    """Why a fresh adapter does not leave the logits as they were, if so."""

    def on(self, model: str) -> dict[str, Any] | Refused | None:
        return getattr(self, model)


@dataclass
class Table:
    rows: dict[str, Row] = field(default_factory=dict)

    def layers(self, kind: str, moves_start: str = "", **options: Any) -> None:
        """A type that adapts linear layers, with the same options on BERT and ViT."""
        bert, vit = (
            {"peft_type": kind, "target_modules": TARGETS[m], **options} for m in ("bert", "vit")
        )
        self.rows[kind] = Row(bert, vit, moves_start=moves_start)

    def prompt(self, kind: str, **options: Any) -> None:
        """A type that trains vectors in front of the input."""
        given = {"peft_type": kind, "num_virtual_tokens": 4, **options}
        vit = Refused("vectors in front of token embeddings; ViT has none", given, "token ids")
        self.rows[kind] = Row(given, vit, moves_start="virtual tokens change the function")

    def row(self, kind: str, row: Row) -> None:
        self.rows[kind] = row


def _types_of_layers(t: Table) -> None:
    t.layers("ADALORA", init_r=4, target_r=2, total_step=10)
    t.layers("ADAMSS", r=8)
    t.layers("BEFT")
    t.layers("BOFT")
    t.layers("C3A", "circulant kernels start at random", block_size=8)
    t.layers("DEFT", r=4)
    t.layers("DELORA", r=4)
    t.layers("FOURIERFT", n_frequency=50, init_weights=True)
    t.layers("FROD", sparse_rate=0.05)
    t.layers("GLORA", r=4)
    t.layers("GRALORA", r=8)
    t.layers("HIRA", r=4)
    t.layers("HRA", r=4)
    t.layers("LILY", r=4)
    t.layers("LOHA", r=4)
    t.layers("LOKR", r=4)
    t.layers("LORA", r=4)
    t.layers("MISS", r=8)
    t.layers("OFT", oft_block_size=8)
    t.layers("OSF")
    t.layers("PEANUT", r=4)
    t.layers("POLY", r=4)
    t.layers("PSOFT", r=4)
    t.layers("PVERA", r=8)
    t.layers("RANDLORA", r=4)
    t.layers("ROAD", group_size=8)
    t.layers("SHIRA", r=2)
    t.layers("SUPERTUNING", sparsity=0.9)
    t.layers("TINYLORA")
    t.layers("UNILORA", "all factors are read from one random vector")
    t.layers("VBLORA", "factors are mixtures of a random bank", vector_length=8, num_vectors=8)
    t.layers("VERA", r=8)
    t.layers("WAVEFT", n_frequency=50)


def _types_of_prompts_and_modules(t: Table) -> None:
    t.prompt("CARTRIDGE")
    t.prompt("MULTITASK_PROMPT_TUNING")
    t.prompt("P_TUNING")
    t.prompt("PREFIX_TUNING")
    t.prompt("PROMPT_TUNING")
    t.row(
        "IA3",
        Row(
            {"peft_type": "IA3"},  # peft knows BERT's layers
            {
                "peft_type": "IA3",
                "target_modules": ["k_proj", "fc2"],
                "feedforward_modules": ["fc2"],
            },
        ),
    )
    t.row(
        "LN_TUNING",
        Row(
            {"peft_type": "LN_TUNING", "target_modules": ["LayerNorm"]},
            {"peft_type": "LN_TUNING", "target_modules": ["layernorm_before", "layernorm_after"]},
        ),
    )
    tokens = {"peft_type": "TRAINABLE_TOKENS", "token_indices": [1, 2, 3]}
    t.row(
        "TRAINABLE_TOKENS",
        Row(tokens, Refused("trains rows of a token embedding; ViT has none", tokens, "token ids")),
    )


def _types_of_few_architectures(t: Table) -> None:
    shadow = {"peft_type": "SHADOW", "r": 4, "target_modules": r".*\.layer\.\d+$"}
    vit_shadow = {**shadow, "target_modules": r".*\.layers\.\d+$"}
    t.row(
        "SHADOW",
        Row(shadow, Refused("its side network reads token embeddings", vit_shadow, "token ids")),
    )
    adaption = {"peft_type": "ADAPTION_PROMPT", "adapter_len": 3, "adapter_layers": 1}
    only_decoders = "written for the attention of Llama, Mistral and GPT-2 only"
    words = "Unsupported model type for adaption prompt"
    t.row(
        "ADAPTION_PROMPT",
        Row(
            Refused(only_decoders, adaption, words),
            Refused(only_decoders, adaption, words),
            adaption,
        ),
    )
    context = {"cpt_token_ids": [1, 2, 3], "cpt_mask": [1, 1, 1], "cpt_tokens_type_mask": [1, 2, 3]}
    cpt = {"peft_type": "CPT", **context}
    t.row(
        "CPT",
        Row(
            Refused("causal language models only", cpt, "only supports task_type = CAUSAL_LM"),
            Refused("embeddings of context tokens; ViT has none", cpt, "token ids"),
            cpt,
            moves_start="context tokens stand in front of the input",
        ),
    )
    experts = {"0": f"{EXPERTS}/0", "1": f"{EXPERTS}/1"}
    xlora = {"peft_type": "XLORA", "hidden_size": 32, "adapters": experts}
    t.row(
        "XLORA",
        Row(
            Refused(
                "peft finds experts' layers in models named like Llama only", xlora, "unexpected"
            ),
            Refused("the gate reads token ids; ViT has none", xlora, "token ids"),
            xlora,
            moves_start="the experts are trained",
        ),
    )


def _table() -> dict[str, Row]:
    table = Table()
    _types_of_layers(table)
    _types_of_prompts_and_modules(table)
    _types_of_few_architectures(table)
    return table.rows


TABLE = _table()


SIZE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
DRY = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {"model_type": "bert", **SIZE, **DRY, "max_position_embeddings": 32},
    "vit": {"model_type": "vit", **SIZE, **DRY, "patch_size": 4},
    "llama": {"model_type": "llama", **SIZE, "max_position_embeddings": 32},
}
"""``model.config`` of a scenario; the tasks add what the data says."""
TASKS: dict[str, dict[str, Any]] = {
    "bert": {"name": "text_classification", "max_length": 16},
    "vit": {"name": "image_classification"},
    "llama": {"name": "causal_lm", "text_column": "text", "max_length": 16, "generate_rows": 0},
}


def build(name: str) -> nn.Module:
    """A tiny model with random weights and without dropout; equal at each call."""
    import transformers as hf

    torch.manual_seed(0)
    options = {k: v for k, v in CONFIGS[name].items() if k != "model_type"}
    if name == "bert":
        return hf.BertForSequenceClassification(
            hf.BertConfig(**options, vocab_size=100, num_labels=3)
        )
    if name == "vit":
        config = hf.ViTConfig(**options, image_size=8, num_channels=1, num_labels=3)
        return hf.ViTForImageClassification(config)
    return hf.LlamaForCausalLM(hf.LlamaConfig(**options, vocab_size=100))


def batch(name: str) -> dict[str, Tensor]:
    """Four rows for ``build(name)``, without labels."""
    generator = torch.Generator().manual_seed(1)
    if name == "vit":
        return {"pixel_values": torch.randn(4, 1, 8, 8, generator=generator)}
    return {"input_ids": torch.randint(1, 100, (4, 6), generator=generator)}


def rows(pixels: bool) -> dict[str, Any]:
    """Data of a scenario: 8x8 images or short texts of three classes."""
    from datasets import Dataset

    rng = np.random.default_rng(0)
    label = np.arange(48) % 3
    if pixels:
        images = rng.integers(0, 256, size=(48, 8, 8), dtype=np.uint8)
        data = Dataset.from_dict({"image": images, "label": label})
    else:
        words = np.array(["good", "bad", "plain", "day", "night", "sea"])
        texts = [" ".join(rng.choice(words, size=4)) for _ in label]
        data = Dataset.from_dict({"text": texts, "label": label})
    return {"train": data, "test": data.select(range(12))}


def scenario(name: str, peft: dict[str, Any]) -> Scenario:
    """One round of two clients with a tiny model and an adapter, in this process."""
    return Scenario.model_validate(
        {
            "name": f"{peft['peft_type'].lower()}-{name}",
            "num_rounds": 1,
            "num_clients": 4,
            "clients_per_round": 2,
            "task": TASKS[name],
            "model": {"config": CONFIGS[name], "peft": peft},
            "data": {"path": "tests.peft_table:rows", "options": {"pixels": name == "vit"}},
            "client": {
                "name": "sgd",
                "optimizer": "AdamW",
                "batch_size": 4,
                "learning_rate": 0.01,
            },
            "engine": {"backend": "inline"},
        }
    )
