"""Where rows come from and who owns them."""
