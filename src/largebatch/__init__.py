"""Train with large batches in PyTorch: measure the gradient's noise, then set lr and batch size."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from largebatch.core.lazy import lazy_names
from largebatch.core.version import __version__ as __version__

if TYPE_CHECKING:
    from largebatch import errors as errors
    from largebatch import measure as measure
    from largebatch import methods as methods
    from largebatch import optim as optim
    from largebatch import record as record
    from largebatch import rules as rules
    from largebatch import theory as theory
    from largebatch import workbench as workbench
    from largebatch.act.attached import attach as attach
    from largebatch.act.controller import Controller as Controller
    from largebatch.act.loader import BatchLoader as BatchLoader
    from largebatch.act.watch import watch as watch
    from largebatch.checks.check import check as check
    from largebatch.checks.fit import fit_micro_batch as fit_micro_batch
    from largebatch.core.decision import Decision as Decision
    from largebatch.core.errors import LargeBatchError as LargeBatchError
    from largebatch.core.measurement import Budget as Budget
    from largebatch.core.measurement import GradientMoments as GradientMoments
    from largebatch.core.measurement import Measurement as Measurement
    from largebatch.core.plan import BatchPlan as BatchPlan
    from largebatch.core.protocols import Logger as Logger
    from largebatch.core.rule import Rule as Rule
    from largebatch.core.rule import chain as chain
    from largebatch.measure.examples.per_example import PerExample as PerExample
    from largebatch.measure.full_gradient import FullGradient as FullGradient
    from largebatch.measure.meter import Meter as Meter
    from largebatch.methods.citing import cite as cite
    from largebatch.record.checkpoints import Checkpoints as Checkpoints
    from largebatch.record.csv_log import CsvLogger as CsvLogger
    from largebatch.record.jsonl import JsonlRecord as JsonlRecord
    from largebatch.record.logged import Logged as Logged
    from largebatch.record.memory import MemoryRecord as MemoryRecord
    from largebatch.record.read import read_record as read_record
    from largebatch.record.replay_rule import replay as replay
    from largebatch.record.tee import Tee as Tee
    from largebatch.rules.adaptive_growth import AdaptiveGrowth as AdaptiveGrowth
    from largebatch.rules.adascale import AdaScale as AdaScale
    from largebatch.rules.auto_warm_up.rule import AutoWarmUp as AutoWarmUp
    from largebatch.rules.averaged import Averaged as Averaged
    from largebatch.rules.bounds import ClampBatch as ClampBatch
    from largebatch.rules.bounds import ClampLr as ClampLr
    from largebatch.rules.bounds import LimitGrowth as LimitGrowth
    from largebatch.rules.every import Every as Every
    from largebatch.rules.factors import WSD as WSD
    from largebatch.rules.factors import Cosine as Cosine
    from largebatch.rules.growth import Growth as Growth
    from largebatch.rules.legw import Legw as Legw
    from largebatch.rules.norm_test import NormTest as NormTest
    from largebatch.rules.observe import Observe as Observe
    from largebatch.rules.scaling import LinearScaling as LinearScaling
    from largebatch.rules.scaling import SqrtScaling as SqrtScaling
    from largebatch.rules.schedule import Schedule as Schedule
    from largebatch.rules.warmup import WarmUp as WarmUp
    from largebatch.studies.probe import probe as probe

NAMES: Mapping[str, str] = {
    "AdaScale": "largebatch.rules.adascale",
    "AdaptiveGrowth": "largebatch.rules.adaptive_growth",
    "AutoWarmUp": "largebatch.rules.auto_warm_up.rule",
    "Averaged": "largebatch.rules.averaged",
    "BatchLoader": "largebatch.act.loader",
    "BatchPlan": "largebatch.core.plan",
    "Budget": "largebatch.core.measurement",
    "Checkpoints": "largebatch.record.checkpoints",
    "ClampBatch": "largebatch.rules.bounds",
    "ClampLr": "largebatch.rules.bounds",
    "Controller": "largebatch.act.controller",
    "Cosine": "largebatch.rules.factors",
    "CsvLogger": "largebatch.record.csv_log",
    "Decision": "largebatch.core.decision",
    "Every": "largebatch.rules.every",
    "FullGradient": "largebatch.measure.full_gradient",
    "GradientMoments": "largebatch.core.measurement",
    "Growth": "largebatch.rules.growth",
    "JsonlRecord": "largebatch.record.jsonl",
    "LargeBatchError": "largebatch.core.errors",
    "Legw": "largebatch.rules.legw",
    "LimitGrowth": "largebatch.rules.bounds",
    "LinearScaling": "largebatch.rules.scaling",
    "Logged": "largebatch.record.logged",
    "Logger": "largebatch.core.protocols",
    "Measurement": "largebatch.core.measurement",
    "MemoryRecord": "largebatch.record.memory",
    "Meter": "largebatch.measure.meter",
    "NormTest": "largebatch.rules.norm_test",
    "Observe": "largebatch.rules.observe",
    "PerExample": "largebatch.measure.examples.per_example",
    "Rule": "largebatch.core.rule",
    "Schedule": "largebatch.rules.schedule",
    "SqrtScaling": "largebatch.rules.scaling",
    "Tee": "largebatch.record.tee",
    "WSD": "largebatch.rules.factors",
    "WarmUp": "largebatch.rules.warmup",
    "attach": "largebatch.act.attached",
    "chain": "largebatch.core.rule",
    "check": "largebatch.checks.check",
    "cite": "largebatch.methods.citing",
    "fit_micro_batch": "largebatch.checks.fit",
    "probe": "largebatch.studies.probe",
    "read_record": "largebatch.record.read",
    "replay": "largebatch.record.replay_rule",
    "watch": "largebatch.act.watch",
}
"""Public names, each with the module that defines the name. Using a name imports its module."""

MODULES: Mapping[str, str] = {
    "errors": "largebatch.errors",
    "measure": "largebatch.measure",
    "methods": "largebatch.methods",
    "optim": "largebatch.optim",
    "record": "largebatch.record",
    "rules": "largebatch.rules",
    "theory": "largebatch.theory",
    "workbench": "largebatch.workbench",
}
"""Namespaces of the public names that `NAMES` does not list, such as `rules` for `lb.rules.CABS`.
"""

MOVED: Mapping[str, str] = {
    "Accordion": "lb.rules.Accordion",
    "After": "lb.rules.HoldThenDecay",
    "AnyTimeGrowth": "lb.rules.AnyTimeGrowth",
    "AugmentedInnerProductTest": "lb.rules.AugmentedInnerProductTest",
    "CABS": "lb.rules.CABS",
    "CheckpointError": "lb.errors.CheckpointError",
    "ClampToNoiseScale": "lb.rules.ClampToNoiseScale",
    "Constant": "lb.rules.Constant",
    "CoordinateNoiseScale": "lb.measure.CoordinateNoiseScale",
    "CoordinateNormTest": "lb.rules.CoordinateNormTest",
    "CosineTest": "lb.methods.cosine_test",
    "Detached": "lb.measure.Detached",
    "Exponential": "lb.rules.Exponential",
    "Flat": "lb.measure.Flat",
    "FullGradientGrowth": "lb.rules.FullGradientGrowth",
    "GradientDiversity": "lb.methods.gradient_diversity",
    "Hysteresis": "lb.rules.Hysteresis",
    "InnerProductTest": "lb.rules.InnerProductTest",
    "LeafHooks": "lb.measure.LeafHooks",
    "Linear": "lb.rules.Linear",
    "MicroBatchMissed": "lb.errors.MicroBatchMissed",
    "Milestones": "lb.rules.Milestones",
    "NoVariance": "lb.errors.NoVariance",
    "NoiseScaleControl": "lb.rules.NoiseScaleControl",
    "NotFinite": "lb.errors.NotFinite",
    "Polynomial": "lb.rules.Polynomial",
    "PreconditionedNorms": "lb.measure.PreconditionedNorms",
    "RanksDisagree": "lb.errors.RanksDisagree",
    "RecordError": "lb.errors.RecordError",
    "SquaredNorms": "lb.measure.SquaredNorms",
    "Stages": "lb.rules.Stages",
    "StepClock": "lb.rules.StepClock",
    "StepDecay": "lb.rules.StepDecay",
    "TemporalMoments": "lb.measure.TemporalMoments",
    "simulate": "lb.workbench",
}
"""Names of version 0.1, each with its new place. Using an old name gives a warning. Version 0.3
will remove the names of version 0.1.
"""

__all__ = ["__version__", *NAMES, *MODULES]

if not TYPE_CHECKING:  # type checkers read the imports above
    __getattr__ = lazy_names(__name__, NAMES, modules=MODULES, moved=MOVED)


def __dir__() -> list[str]:
    """Return all public names, including the names that are not imported yet."""
    return sorted(__all__)
