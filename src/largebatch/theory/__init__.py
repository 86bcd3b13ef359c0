"""Relate batch size, learning rate and cost by formulas on plain numbers.

Each formula states its assumptions and its source: read in a paper, derived for largebatch, or
recalled from a paper whose text was not compared. `docs/explanation/theory.md` shows an example of
each formula.
"""

from largebatch.theory.any_time import any_time_batch_size, any_time_bound, any_time_constant
from largebatch.theory.bound import Bound, Problem, Stage, bound_of_stages, gradient_bound
from largebatch.theory.constant_rate import (
    RateTerms,
    critical_batch_size,
    critical_steps,
    fewest_samples,
    fewest_samples_of_any_schedule,
    rate_terms,
    samples_needed,
    steps_needed,
)
from largebatch.theory.decaying_rate import (
    decaying_critical_batch_size,
    decaying_fewest_samples,
    decaying_rate_terms,
    decaying_steps_needed,
)
from largebatch.theory.fits import StepsFit, StepsFits, fit_steps
from largebatch.theory.growth import (
    batch_growth_on_relation,
    bound_exponent,
    contraction_batch_growth,
    lr_growth_on_relation,
    steps_exponent,
    steps_growth_on_relation,
)
from largebatch.theory.noise_model import (
    noise_model_critical_batch_size,
    noise_model_max_rate,
    noise_model_steps,
    noise_model_variance,
)
from largebatch.theory.rates import AdamSettings, adam_rate, adam_sqrt_rule, sgd_rate
from largebatch.theory.stages import geometric_stages, stage_ends, stage_lengths
from largebatch.theory.tau_nice import (
    tau_nice_optimal_batch_size,
    tau_nice_rate,
    tau_nice_smoothness,
    tau_nice_variance,
    tau_nice_work,
)

__all__ = [
    "AdamSettings",
    "Bound",
    "Problem",
    "RateTerms",
    "Stage",
    "StepsFit",
    "StepsFits",
    "adam_rate",
    "adam_sqrt_rule",
    "any_time_batch_size",
    "any_time_bound",
    "any_time_constant",
    "batch_growth_on_relation",
    "bound_exponent",
    "bound_of_stages",
    "contraction_batch_growth",
    "critical_batch_size",
    "critical_steps",
    "decaying_critical_batch_size",
    "decaying_fewest_samples",
    "decaying_rate_terms",
    "decaying_steps_needed",
    "fewest_samples",
    "fewest_samples_of_any_schedule",
    "fit_steps",
    "geometric_stages",
    "gradient_bound",
    "lr_growth_on_relation",
    "noise_model_critical_batch_size",
    "noise_model_max_rate",
    "noise_model_steps",
    "noise_model_variance",
    "rate_terms",
    "samples_needed",
    "sgd_rate",
    "stage_ends",
    "stage_lengths",
    "steps_exponent",
    "steps_growth_on_relation",
    "steps_needed",
    "tau_nice_optimal_batch_size",
    "tau_nice_rate",
    "tau_nice_smoothness",
    "tau_nice_variance",
    "tau_nice_work",
]
