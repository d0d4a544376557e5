"""Files that ``fedsim new`` writes: small, working, and made to be changed."""

from __future__ import annotations

import keyword
import sys
from importlib.machinery import PathFinder
from pathlib import Path

from fedsim.errors import OutputError
from fedsim.results import write_text

STRATEGY = '''"""{title}: FedAvg that takes a longer step when clients agree.

    delta      = weighted mean of the clients' deltas
    agreement  = cosine of this round's delta and the last one, between 0 and 1
    w         <- w + (1 + boost * agreement) * delta
"""

from dataclasses import dataclass

import numpy as np

from fedsim.strategy import DeltaStrategy


@dataclass(kw_only=True)
class {title}(DeltaStrategy):
    """Change ``server_update``; everything in ``state`` lives from round to round."""

    boost: float = 0.5

    def server_update(self, weights, delta, state):
        flat = np.concatenate([x.ravel() for x in delta.values()])
        last = state.get("last", np.zeros_like(flat))
        norms = float(np.linalg.norm(flat) * np.linalg.norm(last))
        agreement = max(0.0, float(flat @ last) / norms) if norms else 0.0
        state["last"] = flat
        step = 1 + self.boost * agreement
        return {{name: w + step * delta[name] for name, w in weights.items()}}
'''

TEST = '''"""A tiny problem with numbers that a person can check."""

import numpy as np

from {name} import {title}


def test_equal_deltas_take_a_longer_step_the_second_time():
    strategy, state = {title}(boost=0.5), {{}}
    delta = {{"w": np.array([1.0, 0.0])}}
    first = strategy.server_update({{"w": np.zeros(2)}}, delta, state)
    second = strategy.server_update(first, delta, state)
    np.testing.assert_allclose(first["w"], [1.0, 0.0])
    np.testing.assert_allclose(second["w"], [2.5, 0.0])


def test_without_boost_it_is_fedavg():
    delta = {{"w": np.array([1.0, -2.0])}}
    new = {title}(boost=0.0).server_update({{"w": np.ones(2)}}, delta, {{}})
    np.testing.assert_allclose(new["w"], [2.0, -1.0])
'''


def write_strategy(name: str, folder: Path) -> None:
    """Write ``<name>.py`` and ``test_<name>.py``.

    Raises:
        OutputError: The name is no module name, or a file of that name exists.
    """
    if not name.isidentifier() or keyword.iskeyword(name) or name != name.lower():
        raise OutputError(
            f"'{name}' is no module name",
            allowed="Lower-case letters, digits and underscores, not starting with a digit",
        )
    title = "".join(part.capitalize() for part in name.split("_"))
    files = {f"{name}.py": STRATEGY, f"test_{name}.py": TEST}
    for file in files:
        if (folder / file).exists():
            raise OutputError("exists already", where=file, hint="Choose another name")
    if name in sys.stdlib_module_names or PathFinder.find_spec(name):
        raise OutputError(
            f"there is a module '{name}' already, which this file would hide",
            hint="Choose another name",
        )
    for file, text in files.items():
        write_text(folder / file, text.format(name=name, title=title))
    print(f"wrote {', '.join(files)}")
    print(f"try:  fedsim run quickstart strategy.name={name}:{title}")
    print(f"test: pytest test_{name}.py")
