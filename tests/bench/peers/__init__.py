"""One file per way of running a work; each is a program that prints its result as JSON.

    python -m tests.bench.peers.<peer> WORK --rounds N --workers N

A result has ``seconds`` and ``losses`` (one number per round), ``steps`` (local steps per round),
``num_trainable``, ``startup_s`` (process start to first round) and ``versions``.
"""
