"""Whether all peers did the same arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.bench.works import Work

TOLERANCE = 0.15
"""Final losses may differ by this share: cohorts and orders of rows are each peer's own."""


def differences(work: Work, results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What does not agree between the peers' results; empty when all is well."""
    found = []
    for peer, result in results.items():
        if result["steps"] != work.steps:
            found.append(f"{peer} took {result['steps']} local steps a round, not {work.steps}")
    sizes = {peer: result["num_trainable"] for peer, result in results.items()}
    if len(set(sizes.values())) > 1:
        found.append(f"peers train different numbers of weights: {sizes}")
    losses = {peer: result["losses"][-1] for peer, result in results.items()}
    if losses and max(losses.values()) - min(losses.values()) > TOLERANCE * max(losses.values()):
        found.append(f"final training losses differ: {losses}")
    return found
