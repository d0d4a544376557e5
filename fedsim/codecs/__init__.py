"""Codecs, one per file; the file name is the name in YAML."""
