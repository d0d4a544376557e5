"""Speed beside the bare loop and the peers: ``python -m tests.bench``."""
