"""Profiles of networks, one YAML file each."""
