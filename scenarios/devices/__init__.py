"""Profiles of devices, one YAML file each; `devices.mix` names them by file name."""
