"""Scenario files that come with fedsim."""
