"""Define the package's version and the torch versions that it is tested with."""

__version__ = "0.2.0.dev0"

TESTED_TORCH = ("2.6", "2.13")
"""Oldest and newest minor version of torch with which the tests pass."""
