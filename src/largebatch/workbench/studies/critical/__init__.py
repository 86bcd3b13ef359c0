"""The critical batch by three methods: the noise scale, branches of a run, and a sweep of runs."""

from largebatch.workbench.studies.critical.settings import METHODS, Method, Settings, Watcher
from largebatch.workbench.studies.critical.together import critical
from largebatch.workbench.studies.critical.values import Answer, Critical, Finding

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
