"""The engine: equal bits, resuming, killed processes, misbehaving clients, altered bytes."""
