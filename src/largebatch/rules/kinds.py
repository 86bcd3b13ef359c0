"""List all rules and factors by class name, for reading records and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from largebatch.core.codec import Maker
from largebatch.core.rule import Chain
from largebatch.rules import NAMES
from largebatch.rules.old_kinds import OLD_KINDS, RESUMED_KINDS

_CLASSES: Mapping[str, type] = {
    name: getattr(import_module(module), name) for name, module in NAMES.items()
}

RULES: Mapping[str, type] = {n: c for n, c in _CLASSES.items() if "update" in vars(c)}
"""Map of class names to rules."""

FACTORS: Mapping[str, type] = {n: c for n, c in _CLASSES.items() if "__call__" in vars(c)}
"""Map of class names to factors of a `Schedule`."""

KINDS: Mapping[str, Maker] = {"Chain": Chain, **RULES, **FACTORS, **OLD_KINDS}
"""All names that `largebatch.core.codec.decode` accepts for a rule or a factor, including names in
files of earlier versions."""

KINDS_TO_RESUME: Mapping[str, Maker] = {**KINDS, **RESUMED_KINDS}
"""All names in `KINDS`, with the classes that are used to compare a saved run with the run that
resumes the saved run.
"""
