"""Simulate federated fine-tuning: what accuracy costs in bytes, time and energy."""

from fedsim._version import __version__

__all__ = ["__version__"]
