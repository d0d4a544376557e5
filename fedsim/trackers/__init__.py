"""Where a run's numbers can also go, one tool per file."""
