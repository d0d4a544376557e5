"""Error feedback, one method per file; the file name is the name in YAML."""
