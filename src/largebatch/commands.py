"""An error for imports of the modules that version 0.1 had here."""

raise ImportError(
    "largebatch.commands has moved into the workbench. Use its public names, "
    "`from largebatch import workbench; workbench.train('digits', method='adascale')`, or import "
    "from the new modules: train, doctor and results are in largebatch.workbench.runs; compare, "
    "probe and critical in largebatch.workbench.studies; plan in largebatch.workbench.planner; "
    "report and replay in largebatch.workbench.reports."
)
