"""Raise an error for imports from `largebatch.commands`, a module of version 0.1."""

raise ImportError(
    "largebatch.commands has moved to largebatch.workbench. Use the public names of the workbench: "
    "`from largebatch import workbench; workbench.train('digits', method='adascale')`. The modules "
    "train, doctor and results are in largebatch.workbench.runs. The modules compare, probe and "
    "critical are in largebatch.workbench.studies. The module plan is in "
    "largebatch.workbench.planner. The modules report and replay are in "
    "largebatch.workbench.reports."
)
