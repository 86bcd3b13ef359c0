"""Define the package's version and the torch versions that it was tested with."""

__version__ = "0.2.0.dev0"

TESTED_TORCH = ("2.9.1", "2.14")
"""Oldest and newest version of torch with which the tests pass."""
