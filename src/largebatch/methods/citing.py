"""Print the BibTeX entries of the papers behind a rule, a method or a run."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, Protocol, runtime_checkable

from largebatch.core.rule import Chain, Rule, Wrapper, name_of, within
from largebatch.methods.references import METHOD_REFERENCES
from largebatch.methods.registry import METHODS, SCHEDULES
from largebatch.rules.growth import Growth
from largebatch.rules.references import REFERENCES, Cited
from largebatch.rules.schedule import Schedule


@runtime_checkable
class HoldsDecider(Protocol):
    """Describe a controller or an attached run, whose `decider` holds the rule."""

    decider: Any


@runtime_checkable
class HoldsRule(Protocol):
    """Describe an object that keeps a rule for later, such as the Lightning callback."""

    rule: Any


def cite(what: str | Rule | HoldsDecider | HoldsRule) -> str:
    """Return the BibTeX entries of the papers that a rule, a method or a run uses.

    Each paper is listed once. A rule of your own names its papers in a class attribute
    `references`, a tuple of BibTeX entries. For a rule without that attribute, the text contains a
    comment that no reference is known.

    A chain does not record which function of `lb.methods` built it, so pass the method's name as
    well if the method's own paper matters: `lb.cite("adadam")`.

    >>> import largebatch as lb
    >>> print(lb.cite(lb.chain(lb.SqrtScaling(), lb.ClampLr(max=4.0))))
    @misc{krizhevsky2014weird,
      author = {Krizhevsky, Alex},
      title = {{One weird trick for parallelizing convolutional neural networks}},
      year = {2014},
      eprint = {1404.5997},
      archivePrefix = {arXiv}
    }

    Args:
        what: A rule; a chain of rules; the object that `lb.attach`, `lb.watch` or `lb.Controller`
            returned; or the name of a method, as `largebatch methods` lists it.

    Raises:
        ValueError: If the name is not that of a method, if the object holds no rule, or if a rule's
            `references` are neither BibTeX entries nor known keys.
    """
    if isinstance(what, str):
        entries, shown = _of_method(what), what
    else:
        rule = _rule_of(what)
        entries, shown = _of_rule(rule), ", ".join(_names(rule)) or "an empty chain"
    found = list(dict.fromkeys(entries))
    return "\n\n".join(found) or f"% No paper is cited for {shown}."


def _of_method(name: str) -> Iterator[str]:
    """Yield the entries of a method by its name, then the entries of the rules that the method
    combines."""
    key = name.replace("-", "_")
    if key not in METHOD_REFERENCES:
        known = sorted(key.replace("_", "-") for key in METHOD_REFERENCES)
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        raise ValueError(
            f"{name!r} was given, but no method has this name. {hint}The methods are: "
            f"{', '.join(known)}. Example: lb.cite('adascale')"
        )
    yield from _entries(METHOD_REFERENCES[key], owner=name)
    for method in (*METHODS.values(), *SCHEDULES.values()):
        if method.rule.__name__ == key:
            yield from _of_rule(method.rule())


def _rule_of(what: object) -> Rule:
    """Return a rule, or the rule that a control holds."""
    held = what
    if not isinstance(held, Rule) and isinstance(held, HoldsDecider):
        held = held.decider
    if not isinstance(held, Rule) and isinstance(held, HoldsRule):
        held = held.rule
    if isinstance(held, type) or not isinstance(held, Rule):
        shown = f"the class {what.__name__}" if isinstance(what, type) else repr(what)
        raise ValueError(
            f"{shown} was given, but lb.cite needs a rule, a control or the name of a method. "
            "Example: lb.cite(lb.AdaScale())"
        )
    return held


def _of_rule(rule: Rule) -> Iterator[str]:
    """Yield the entries of a rule and of everything that it wraps, chains or is given."""
    traded = list(_of_traded_decay(rule))
    yield from traded
    for one in within(rule):
        if traded and isinstance(one, Growth):
            continue  # its table of batch sizes is not the one that the papers of `Growth` describe
        if isinstance(one, Cited):
            yield from _entries(one.references, owner=name_of(one))
        elif not isinstance(one, (Chain, Wrapper)):
            yield (
                f"% {name_of(one)}: no reference is known. A rule names its papers in a class "
                "attribute `references`."
            )
        for factor in _factors_in(one):
            yield from _entries(factor.references, owner=type(factor).__name__)


def _factors_in(value: object) -> Iterator[Cited]:
    """Yield the factors, such as `Cosine`, among the fields of a rule or of another factor."""
    if not is_dataclass(value) or isinstance(value, type):
        return
    for field in fields(value):
        inner = getattr(value, field.name)
        if not isinstance(inner, Rule):
            if isinstance(inner, Cited):
                yield inner
            yield from _factors_in(inner)


def _of_traded_decay(rule: Rule) -> Iterator[str]:
    """Yield the entries of Seesaw or of Smith et al. if the batch grows in exchange for a decay.

    Seesaw and the method of Smith et al. each consist of three rules that are also useful alone. A
    chain of one of the two methods is recognized by its table of batch sizes: each batch size is 1
    / factor at the point where its stage begins.
    """
    rules = list(within(rule))
    names = set(map(name_of, rules))
    schedules = [one.factor for one in rules if isinstance(one, Schedule)]
    for growth in (one for one in rules if isinstance(one, Growth)):
        stages = list(zip(growth.stages.batch[1:], growth.at, strict=True))
        for factor in schedules:
            if stages and all(abs(batch * factor(at) - 1.0) < 1e-6 for batch, at in stages):
                for scaling, method in (("SqrtScaling", "seesaw"), ("LinearScaling", "smith")):
                    if scaling in names:
                        yield from _entries(METHOD_REFERENCES[method], owner=method)


def _entries(references: tuple[str, ...], *, owner: str) -> Iterator[str]:
    """Yield the BibTeX entry of each reference.

    Args:
        references: Keys of `REFERENCES`, or BibTeX entries.
        owner: Name of the rule or method, for the error message.
    """
    for reference in references:
        if reference.lstrip().startswith("@"):
            yield reference.strip()
        elif reference in REFERENCES:
            yield REFERENCES[reference].bibtex
        else:
            raise ValueError(
                f"{owner}.references contains {reference!r}, which is not a BibTeX entry. Begin "
                'the entry with "@": references = ("@misc{key, title = {...}, year = {2024}}",)'
            )


def _names(rule: Rule) -> list[str]:
    """Return the names of the rules within a rule, without the chains themselves."""
    return [name_of(one) for one in within(rule) if not isinstance(one, Chain)]
