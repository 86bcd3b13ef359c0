"""Large-batch training in PyTorch: measure the gradient's noise, set rate and batch from it."""

from largebatch import methods, optim, simulate, theory
from largebatch.act.attached import attach
from largebatch.act.controller import Controller
from largebatch.act.loader import BatchLoader
from largebatch.act.watch import watch
from largebatch.checks.check import check
from largebatch.checks.fit import fit_micro_batch
from largebatch.core.decision import Decision
from largebatch.core.errors import (
    CheckpointError,
    LargeBatchError,
    MicroBatchMissed,
    NotFinite,
    NoVariance,
    RanksDisagree,
    RecordError,
)
from largebatch.core.measurement import Budget, GradientMoments, Measurement
from largebatch.core.plan import BatchPlan
from largebatch.core.protocols import Logger
from largebatch.core.rule import Rule, chain
from largebatch.core.version import __version__
from largebatch.measure.coordinates import CoordinateNoiseScale
from largebatch.measure.examples.per_example import PerExample
from largebatch.measure.full_gradient import FullGradient
from largebatch.measure.meter import Meter
from largebatch.measure.preconditioned import PreconditionedNorms
from largebatch.measure.squared_norms import SquaredNorms
from largebatch.measure.taps import Detached, Flat, LeafHooks
from largebatch.measure.temporal import TemporalMoments
from largebatch.record import (
    Checkpoints,
    CsvLogger,
    JsonlRecord,
    Logged,
    MemoryRecord,
    Tee,
    read_record,
)
from largebatch.record.replay import replay
from largebatch.rules import (
    CABS,
    WSD,
    Accordion,
    AdaptiveGrowth,
    AdaScale,
    AnyTimeGrowth,
    AugmentedInnerProductTest,
    AutoWarmUp,
    Averaged,
    ClampBatch,
    ClampLr,
    ClampToNoiseScale,
    Constant,
    CoordinateNormTest,
    Cosine,
    Every,
    Exponential,
    FullGradientGrowth,
    Growth,
    HoldThenDecay,
    Hysteresis,
    InnerProductTest,
    Legw,
    LimitGrowth,
    Linear,
    LinearScaling,
    Milestones,
    NoiseScaleControl,
    NormTest,
    Observe,
    Polynomial,
    Schedule,
    SqrtScaling,
    StepClock,
    StepDecay,
    WarmUp,
)
from largebatch.rules.stages import Stages

__all__ = [
    "CABS",
    "WSD",
    "Accordion",
    "AdaScale",
    "AdaptiveGrowth",
    "AnyTimeGrowth",
    "AugmentedInnerProductTest",
    "AutoWarmUp",
    "Averaged",
    "BatchLoader",
    "BatchPlan",
    "Budget",
    "CheckpointError",
    "Checkpoints",
    "ClampBatch",
    "ClampLr",
    "ClampToNoiseScale",
    "Constant",
    "Controller",
    "CoordinateNoiseScale",
    "CoordinateNormTest",
    "Cosine",
    "CsvLogger",
    "Decision",
    "Detached",
    "Every",
    "Exponential",
    "Flat",
    "FullGradient",
    "FullGradientGrowth",
    "GradientMoments",
    "Growth",
    "HoldThenDecay",
    "Hysteresis",
    "InnerProductTest",
    "JsonlRecord",
    "LargeBatchError",
    "LeafHooks",
    "Legw",
    "LimitGrowth",
    "Linear",
    "LinearScaling",
    "Logged",
    "Logger",
    "Measurement",
    "MemoryRecord",
    "Meter",
    "MicroBatchMissed",
    "Milestones",
    "NoVariance",
    "NoiseScaleControl",
    "NormTest",
    "NotFinite",
    "Observe",
    "PerExample",
    "Polynomial",
    "PreconditionedNorms",
    "RanksDisagree",
    "RecordError",
    "Rule",
    "Schedule",
    "SqrtScaling",
    "SquaredNorms",
    "Stages",
    "StepClock",
    "StepDecay",
    "Tee",
    "TemporalMoments",
    "WarmUp",
    "__version__",
    "attach",
    "chain",
    "check",
    "fit_micro_batch",
    "methods",
    "optim",
    "read_record",
    "replay",
    "simulate",
    "theory",
    "watch",
]
