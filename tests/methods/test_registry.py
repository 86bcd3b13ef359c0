"""The table of methods: what follows from a method's rule and docstring, and what its row adds."""

from __future__ import annotations

import inspect

import pytest

from largebatch import methods
from largebatch.core.rule import names_within
from largebatch.methods import METHODS, SCHEDULES
from largebatch.methods.registry import Method


def test_a_method_has_its_own_clock_if_its_rule_changes_the_clock() -> None:
    own = {name for name, method in METHODS.items() if method.own_clock}
    assert own == {"adascale", "adascale-paper", "adascale-adam"}


def test_every_method_of_a_paper_cites_it() -> None:
    silent = {name for name, method in METHODS.items() if not method.reference}
    assert silent == {"none", "adascale-adam"}
    assert METHODS["legw"].reference == "You et al., 2019, arXiv 1901.08256"


@pytest.mark.parametrize("table", [METHODS, SCHEDULES])
def test_a_row_is_found_by_its_name(table: dict[str, Method]) -> None:
    assert all(method.name == name and method.summary for name, method in table.items())


def test_a_name_means_the_same_method_in_both_tables() -> None:
    assert all(METHODS[name] is SCHEDULES[name] for name in METHODS.keys() & SCHEDULES)


def test_a_noise_bounded_method_takes_both_bounds() -> None:
    bounded = {name for name, method in METHODS.items() if method.noise_bounded}
    assert bounded == {"seesaw", "smith"}
    for name in bounded:
        assert "ClampToNoiseScale" in names_within(METHODS[name].rule(kappa=2.0))
        whole = METHODS[name].rule(kappa=None, max=512)
        assert "ClampToNoiseScale" not in names_within(whole)
        assert "ClampBatch" in names_within(whole)


@pytest.mark.parametrize("name", ["adadagrad_norm", "adadagrad", "adadam"])
def test_methods_with_the_same_arguments_show_them_and_their_own_docstring(name: str) -> None:
    method = getattr(methods, name)
    assert inspect.signature(method) == inspect.signature(methods.adasgd)
    assert method.__name__ == name
    assert method.__doc__ != methods.adasgd.__doc__
    statistic = "moments" if name == "adadagrad_norm" else "preconditioned_moments"
    assert statistic in method(every=1, max=512, eta=2.0).needs
    with pytest.raises(TypeError, match="steps"):
        method(steps=3)
    with pytest.raises(TypeError, match="positional"):
        method(1.0)


def test_the_papers_multiples_of_the_noise_scale_are_one_rule() -> None:
    built = (methods.noise_scale_control(), methods.gradient_diversity(), methods.cosine_test())
    assert all(names_within(rule) == {"NoiseScaleControl"} for rule in built)
    assert names_within(methods.adabatch(at=[0.5], factor=4.0)) == {"Chain", "Milestones"}
