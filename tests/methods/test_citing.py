"""`lb.cite` prints the papers of exactly what is used, and docstrings and table agree."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

import largebatch as lb
from largebatch import methods
from largebatch.core.rule import DefaultFacts
from largebatch.methods import METHODS, SCHEDULES
from largebatch.methods.references import METHOD_REFERENCES
from largebatch.rules.kinds import FACTORS, RULES
from largebatch.rules.references import REFERENCES, Cited, Reference

ARXIV = re.compile(r"arXiv\s+(\d{4}\.\d{4,5})")
ADASCALE, SQRT, COSINE = "johnson2020adascale", "krizhevsky2014weird", "loshchilov2016sgdr"


def keys(text: str) -> list[str]:
    """The keys of the BibTeX entries in a text, in their order."""
    return re.findall(r"^@\w+\{([^,]+),$", text, flags=re.MULTILINE)


def default_of(kind: type) -> Any:
    """An object of a rule or factor, with the arguments that have no default."""
    needed: dict[str, dict[str, Any]] = {
        "AnyTimeGrowth": {"coefficient": 1.0},
        "Averaged": {"rule": lb.AdaScale()},
        "Every": {"rule": lb.Observe()},
        "Exponential": {"end": 0.1},
        "HoldThenDecay": {"start": 0.1},
        "Legw": {"warmup_epochs": 1.0},
        "NoiseScaleControl": {"offset": 1.0},
    }
    return kind(**needed.get(kind.__name__, {}))


def assert_named(references: list[Reference], text: str, *, where: str) -> None:
    """Check that a text has the arXiv numbers, the years and the authors of these papers alone."""
    words = " ".join(text.split())
    assert sorted(ARXIV.findall(words)) == sorted(r.arxiv for r in references if r.arxiv), where
    for paper in references:
        assert str(paper.year) in words, (where, paper.key)
        first = paper.families[0]
        everyone = all(re.sub(r"[{}\\']", "", name) in words for name in paper.families)
        assert everyone or f"{first} et al." in words, (where, paper.key)


@pytest.mark.parametrize("kind", [*RULES.values(), *FACTORS.values()], ids=lambda k: k.__name__)
def test_the_docstring_of_a_rule_names_the_papers_of_its_references(kind: type) -> None:
    one = default_of(kind)
    references = [REFERENCES[key] for key in one.references] if isinstance(one, Cited) else []
    _, _, text = (kind.__doc__ or "").partition("Reference:")
    assert_named(references, text, where=kind.__name__)


@pytest.mark.parametrize("kind", RULES.values(), ids=lambda kind: kind.__name__)
def test_each_rule_names_its_papers_or_states_that_it_has_none(kind: type) -> None:
    assert isinstance(default_of(kind), Cited) or kind is lb.Every


@pytest.mark.parametrize("name", METHOD_REFERENCES)
def test_the_docstring_of_a_method_names_the_papers_of_the_table(name: str) -> None:
    text = getattr(methods, name).__doc__
    assert_named([REFERENCES[key] for key in METHOD_REFERENCES[name]], text, where=name)


def test_the_table_of_methods_has_every_public_method() -> None:
    public = {
        name
        for name, value in vars(methods).items()
        if inspect.isfunction(value) and not name.startswith("_")
    }
    assert public == set(METHOD_REFERENCES)


def test_each_entry_of_the_table_is_complete() -> None:
    for key, paper in REFERENCES.items():
        assert key == paper.key
        assert paper.arxiv or paper.journal or paper.book
        assert all(", " in author or author.startswith("{") for author in paper.authors)
        assert paper.bibtex.isascii()
        assert paper.bibtex.count("{") == paper.bibtex.count("}")
        assert " and ".join(paper.authors) in paper.bibtex


def test_first_authors_are_shown() -> None:
    assert METHODS["growth"].reference.startswith("Umeda, Iiduka, 2024, arXiv 2409.08770; Umeda")
    assert METHODS["smith"].reference == "Smith et al., 2017, arXiv 1711.00489"
    assert METHODS["adasgd"].reference.startswith("Byrd et al., 2012, Mathematical Programming; ")


def test_rules_within_a_chain_and_within_wrappers_are_cited_once() -> None:
    chain = lb.chain(lb.Every(lb.AdaScale()), lb.Schedule(factor=lb.Cosine()))
    assert keys(lb.cite(chain)) == [ADASCALE, COSINE]
    warm_up = lb.AutoWarmUp(after=lb.AdaScale())
    assert keys(lb.cite(warm_up)) == ["kim2021automated", COSINE, ADASCALE]
    held = lb.rules.HoldThenDecay(start=0.1, factor=lb.WSD())
    assert keys(lb.cite(lb.Schedule(factor=held))) == ["hu2024minicpm"]
    assert keys(lb.cite(lb.Averaged(lb.AdaScale()))) == ["mccandlish2018empirical", ADASCALE]


def test_a_control_is_cited_by_its_rule() -> None:
    control = SimpleNamespace(decider=SimpleNamespace(rule=lb.chain(lb.AdaScale())))
    assert keys(lb.cite(control)) == [ADASCALE]
    assert keys(lb.cite(SimpleNamespace(rule=lb.SqrtScaling()))) == [SQRT]


@pytest.mark.parametrize(
    "name", dict.fromkeys([*METHODS, *sorted(SCHEDULES.keys() - {"constant"})])
)
def test_a_method_by_name_has_its_own_papers_and_those_of_its_rules(name: str) -> None:
    method = METHODS.get(name) or SCHEDULES[name]
    own = METHOD_REFERENCES[method.rule.__name__]
    found = keys(lb.cite(method.rule.__name__.replace("_", "-")))
    assert tuple(found[: len(own)]) == own
    assert set(keys(lb.cite(method.rule()))) <= set(found)


def test_seesaw_and_smith_are_recognized_in_the_chain_that_they_build() -> None:
    assert keys(lb.cite(methods.smith())) == ["smith2017dont", "goyal2017accurate", COSINE]
    assert keys(lb.cite(methods.seesaw(max=512))) == [
        *("meterez2025seesaw", "mccandlish2018empirical", SQRT, COSINE)
    ]
    apart = lb.chain(lb.Growth(), lb.SqrtScaling(), lb.Schedule())
    assert "meterez2025seesaw" not in keys(lb.cite(apart))
    assert "smith2017dont" not in keys(lb.cite(methods.growth()))


def test_batch_sizes_from_a_string_have_no_paper() -> None:
    assert lb.cite(methods.batch_steps("0:768 4K:1536")) == "% No paper is cited for Growth."


def test_the_formula_of_divebatch_is_cited_with_its_offset_alone() -> None:
    assert "chen2025divebatch" in keys(lb.cite(methods.gradient_diversity()))
    assert "chen2025divebatch" not in keys(lb.cite(methods.noise_scale_control()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain(DefaultFacts):
    """A rule of a user, without references."""

    def init(self) -> None:
        return None

    def update(self, state: None, seen: lb.Measurement, proposed: lb.Decision) -> Any:
        return state, proposed


@dataclass(frozen=True, slots=True, kw_only=True)
class Documented(Plain):
    """A rule of a user that names a paper."""

    references = ("@misc{mine,\n  year = {2024}\n}",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistyped(Plain):
    """A rule of a user with something else than an entry."""

    references = ("Me, 2024",)


def test_a_rule_of_your_own_names_its_papers_or_is_said_to_name_none() -> None:
    assert lb.cite(Documented()) == "@misc{mine,\n  year = {2024}\n}"
    assert lb.cite(lb.chain(Plain())).startswith("% Plain: no reference is known. ")
    with pytest.raises(ValueError, match=r"Mistyped\.references contains 'Me, 2024'"):
        lb.cite(Mistyped())


def test_rules_without_a_paper_give_a_comment() -> None:
    assert lb.cite(lb.Observe()) == "% No paper is cited for Observe."
    assert lb.cite(lb.chain()) == "% No paper is cited for an empty chain."
    assert lb.cite("none") == "% No paper is cited for none."


@pytest.mark.parametrize("wrong", ["adascael", lb.AdaScale, 3])
def test_what_cannot_be_cited_is_an_error_with_a_line_to_paste(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"was given, but .*Example: lb\.cite\(") as error:
        lb.cite(wrong)
    if wrong == "adascael":
        assert "Did you mean 'adascale'?" in str(error.value)
