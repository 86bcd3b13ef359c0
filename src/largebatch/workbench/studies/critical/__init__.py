"""The critical batch by three methods: the noise scale, branches of a run, and a sweep of runs."""

from largebatch.workbench.studies.critical.result import Critical
from largebatch.workbench.studies.critical.run_methods import critical
from largebatch.workbench.studies.critical.settings import METHODS, Method, Settings, Watcher
from largebatch.workbench.studies.critical.values import Answer, CriticalBatch

__all__ = [
    "METHODS",
    "Answer",
    "Critical",
    "CriticalBatch",
    "Method",
    "Settings",
    "Watcher",
    "critical",
]
