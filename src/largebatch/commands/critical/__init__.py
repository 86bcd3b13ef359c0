"""The critical batch by three methods: the noise scale, branches of a run, and a sweep of runs."""

from largebatch.commands.critical.settings import METHODS, Method, Settings, Watcher
from largebatch.commands.critical.together import critical
from largebatch.commands.critical.values import Answer, Critical, Finding

__all__ = [
    "METHODS",
    "Answer",
    "Critical",
    "Finding",
    "Method",
    "Settings",
    "Watcher",
    "critical",
]
