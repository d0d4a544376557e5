"""Simulate federated fine-tuning: what accuracy costs in bytes, time and energy."""

from typing import TYPE_CHECKING, Any

from fedsim._version import __version__

if TYPE_CHECKING:
    from fedsim.notebook import load_runs

__all__ = ["__version__", "load_runs"]


def __getattr__(name: str) -> Any:
    """``load_runs``, imported when it is asked for."""
    if name == "load_runs":
        from fedsim.notebook import load_runs

        return load_runs
    raise AttributeError(f"module 'fedsim' has no attribute '{name}'")
