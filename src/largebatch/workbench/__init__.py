"""Run whole studies on workloads: train, compare, probe, plan and report.

The command line calls the functions of this package.

    from largebatch import workbench
    result = workbench.train("digits", method="adascale", scale=8)

The library never imports the workbench.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from largebatch.core.lazy import lazy_names

if TYPE_CHECKING:
    from largebatch.workbench import quadratic as quadratic
    from largebatch.workbench import workloads as workloads
    from largebatch.workbench.planner.count import count_schedule as count_schedule
    from largebatch.workbench.planner.plan import plan as plan
    from largebatch.workbench.planner.request import plan_request as plan_request
    from largebatch.workbench.reports.replay import replay_file as replay_file
    from largebatch.workbench.reports.report import write_report as write_report
    from largebatch.workbench.runs.doctor import doctor as doctor
    from largebatch.workbench.runs.train import train as train
    from largebatch.workbench.studies.compare.compare import compare as compare
    from largebatch.workbench.studies.critical.run_methods import critical as critical
    from largebatch.workbench.studies.probe import probe_workload as probe_workload
    from largebatch.workbench.workloads.workload import Workload as Workload

NAMES: Mapping[str, str] = {
    "Workload": "largebatch.workbench.workloads.workload",
    "compare": "largebatch.workbench.studies.compare.compare",
    "count_schedule": "largebatch.workbench.planner.count",
    "critical": "largebatch.workbench.studies.critical.run_methods",
    "doctor": "largebatch.workbench.runs.doctor",
    "plan": "largebatch.workbench.planner.plan",
    "plan_request": "largebatch.workbench.planner.request",
    "probe_workload": "largebatch.workbench.studies.probe",
    "replay_file": "largebatch.workbench.reports.replay",
    "train": "largebatch.workbench.runs.train",
    "write_report": "largebatch.workbench.reports.report",
}

MODULES: Mapping[str, str] = {
    "quadratic": "largebatch.workbench.quadratic",
    "workloads": "largebatch.workbench.workloads",
}

__all__ = [*NAMES, *MODULES]

if not TYPE_CHECKING:  # type checkers read the imports above
    __getattr__ = lazy_names(__name__, NAMES, modules=MODULES)


def __dir__() -> list[str]:
    """Return the public names, also those that are not imported yet."""
    return sorted(__all__)
