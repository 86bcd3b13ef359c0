"""List the papers of each function in `lb.methods`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

METHOD_REFERENCES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "adabatch": ("devarakonda2017adabatch",),
        "adadagrad": ("lau2024adadagrad",),
        "adadagrad_norm": ("lau2024adadagrad",),
        "adadam": ("lau2024adaptive",),
        "adaptive_growth": ("umeda2025adaptive", "mccandlish2018empirical"),
        "adascale": ("johnson2020adascale",),
        "adascale_adam": (),
        "adascale_paper": ("johnson2020adascale",),
        "adasgd": ("byrd2012sample", "lau2024adadagrad", "mccandlish2018empirical"),
        "autowu": ("kim2021automated",),
        "autowu_paper": ("kim2021automated",),
        "batch_ramp": (),
        "batch_steps": (),
        "cosine": ("loshchilov2016sgdr",),
        "cosine_test": ("qin2021simigrad",),
        "full_gradient_growth": ("umeda2025adaptive",),
        "gradient_diversity": ("chen2025divebatch",),
        "growth": ("umeda2024increasing", "umeda2025optimal"),
        "legw": ("you2019large",),
        "linear": ("goyal2017accurate",),
        "linear_growth": ("umeda2025optimal",),
        "linear_warmup": ("goyal2017accurate", "johnson2020adascale"),
        "noise_scale_control": ("mccandlish2018empirical",),
        "none": (),
        "seesaw": ("meterez2025seesaw",),
        "smith": ("smith2017dont",),
        "sqrt": ("krizhevsky2014weird",),
        "warmup_growth": ("umeda2024increasing",),
    }
)
"""Map of function names to the keys of the papers that describe the method.

The papers of the rules that a method combines are listed in the attribute `references` of each
rule.
"""
