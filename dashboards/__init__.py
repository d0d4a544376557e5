"""Panels over run folders, one per file, and the page that holds them.

A panel is a module here (or an entry point of the group ``fedsim.panels``) with the attributes of
``panel.Panel``. Panels read run folders and nothing else.
"""
