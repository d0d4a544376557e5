"""How the work of a round is executed: grids, blocks, workers."""
