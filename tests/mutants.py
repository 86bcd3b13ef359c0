"""Apply one-line faults to a copy of the package and report which of them the tests find.

    python tests/mutants.py                 # every mutant in mutants.txt
    python tests/mutants.py --only 3 17     # two of them
    python tests/mutants.py --jobs 2        # two mutants at a time

Each mutant gets its own temporary copy of `src` and `tests`, so the working tree is never changed.
The exit status is 0 if the tests found every mutant without a known gap, 1 if they missed one, and
2 if the list is invalid or the tests fail without a mutant.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIST = Path(__file__).with_suffix(".txt")
COPIED = ("src", "tests", "pyproject.toml")
PASSED, FAILED = 0, 1
"""Exit statuses of pytest; every other one means that the tests did not run."""

TIMEOUT = 120
"""Seconds before a test counts as hanging, which finds the mutant."""


class Unusable(Exception):
    """The list of mutants, or the tests that it names, cannot be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One fault: a line of the package, what replaces it, and the tests that should find it.

    Args:
        number: position in the list, from 1.
        why: why the fault matters, in one line.
        original, mutated: lines without their indentation.
        tests: paths relative to the root, the quickest first.
        gap: why no test finds it yet; empty if a test should find it.
    """

    number: int
    why: str
    original: str
    mutated: str
    tests: tuple[str, ...]
    gap: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of one pytest run: the first test that failed, empty if all passed, and the
    seconds that the run took."""

    failed: str
    seconds: float


def parse(text: str) -> tuple[Mutant, ...]:
    """Return the mutants of a list; blocks that consist of comments alone are skipped.

    >>> (mutant,) = parse("# why\\n- a = b\\n+ a = c\\ntests: tests/core tests/act")
    >>> mutant.original, mutant.mutated, mutant.tests
    ('a = b', 'a = c', ('tests/core', 'tests/act'))

    Raises:
        Unusable: a block with an unknown line or without one of its four lines.
    """
    mutants: list[Mutant] = []
    for block in re.split(r"\n\s*\n", text.strip()):
        lines = block.splitlines()
        if all(line.startswith("#") for line in lines):
            continue
        parts = [re.fullmatch(r"(#|-|\+|tests:|gap:) *(.+)", line) for line in lines]
        found = {part[1]: part[2].strip() for part in parts if part}
        if len(found) != len(lines) or not {"#", "-", "+", "tests:"} <= set(found):
            raise Unusable(
                "A mutant has one line each of '# why', '- original', '+ mutated' and 'tests: ...'"
                f", and optionally 'gap: ...'; got:\n{block}"
            )
        mutants.append(
            Mutant(
                number=len(mutants) + 1,
                why=found["#"],
                original=found["-"],
                mutated=found["+"],
                tests=tuple(found["tests:"].split()),
                gap=found.get("gap:", ""),
            )
        )
    return tuple(mutants)


def mutate(sources: Mapping[str, str], mutant: Mutant) -> tuple[str, str]:
    """Return the name and the new text of the one source that contains the original line.

    >>> mutant = Mutant(number=1, why="", original="a = b", mutated="a = c", tests=())
    >>> mutate({"x.py": "if b:\\n    a = b\\n", "y.py": ""}, mutant)
    ('x.py', 'if b:\\n    a = c\\n')
    >>> mutate({"x.py": "a = b\\n", "y.py": "a = b\\n"}, mutant)
    Traceback (most recent call last):
    mutants.Unusable: Mutant 1 occurs in x.py:1, y.py:1, but must occur exactly once: a = b

    Args:
        sources: texts by name.
        mutant: what to replace.

    Raises:
        Unusable: the line occurs never or more than once, or the new text does not compile.
    """
    places = [
        (name, at)
        for name, text in sources.items()
        for at, line in enumerate(text.splitlines())
        if line.strip() == mutant.original
    ]
    if len(places) != 1:
        where = (
            "in " + ", ".join(f"{name}:{at + 1}" for name, at in places) if places else "nowhere"
        )
        raise Unusable(
            f"Mutant {mutant.number} occurs {where}, but must occur exactly once: {mutant.original}"
        )
    ((name, at),) = places
    lines = sources[name].splitlines(keepends=True)
    lines[at] = lines[at].replace(mutant.original, mutant.mutated)
    text = "".join(lines)
    try:
        compile(text, name, "exec", dont_inherit=True)
    except SyntaxError as error:
        raise Unusable(f"Mutant {mutant.number} does not compile: {error}") from None
    return name, text


def read_sources(root: Path) -> dict[str, str]:
    """Return the text of each module of the package, by its path relative to the root."""
    paths = sorted((root / "src" / "largebatch").rglob("*.py"))
    return {str(path.relative_to(root)): path.read_text(encoding="utf-8") for path in paths}


@contextmanager
def copied() -> Iterator[Path]:
    """Give a temporary copy of what the tests need, and remove it afterwards."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy = Path(folder).resolve()
        for name in COPIED:
            if (ROOT / name).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / name, copy / name, ignore=ignored)
            else:
                shutil.copy2(ROOT / name, copy / name)
        yield copy


def run_tests(copy: Path, tests: tuple[str, ...]) -> Outcome:
    """Run pytest on the copy until the first test fails.

    Raises:
        Unusable: pytest could not run the tests, for instance because an import fails.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": str(copy / "src"),
        # Python trusts bytecode of a source with the same size and time in whole seconds.
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("PYTEST_ADDOPTS", None)
    imported = subprocess.run(
        [sys.executable, "-c", "import largebatch; print(largebatch.__file__)"],
        cwd=copy, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if imported.returncode:
        raise Unusable(f"The package cannot be imported:\n{imported.stderr}")
    where = Path(imported.stdout.strip())
    assert where.is_relative_to(copy), f"imported {where}, not the copy in {copy}"
    # The seed makes property tests find the same faults in every run.
    options = ["-q", "-x", "-rfE", "--tb=no", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-o", f"timeout={TIMEOUT}", *tests],
        cwd=copy, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    seconds = time.perf_counter() - begin
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, flags=re.MULTILINE)
    if done.returncode not in (PASSED, FAILED) or (done.returncode == FAILED and not failed):
        raise Unusable(f"pytest {' '.join(tests)} did not run:\n{done.stdout}{done.stderr}")
    return Outcome(failed=failed[0] if done.returncode else "", seconds=seconds)


def run_mutant(mutant: Mutant) -> Outcome:
    """Run the tests of a mutant on a copy that contains it."""
    with copied() as copy:
        name, text = mutate(read_sources(copy), mutant)
        (copy / name).write_text(text, encoding="utf-8")
        return run_tests(copy, mutant.tests)


def check_tests_pass(tests: tuple[str, ...]) -> None:
    """Check that the tests pass on a copy without a mutant.

    Raises:
        Unusable: one of them fails.
    """
    with copied() as copy:
        outcome = run_tests(copy, tests)
    if outcome.failed:
        raise Unusable(f"{outcome.failed} fails without a mutant. Repair it first.")


def check_list(mutants: tuple[Mutant, ...]) -> None:
    """Check every mutant before the first run.

    Raises:
        Unusable: lists all mutants whose line or tests cannot be used.
    """
    sources, problems = read_sources(ROOT), []
    for mutant in mutants:
        try:
            mutate(sources, mutant)
        except Unusable as error:
            problems.append(str(error))
        problems += [
            f"Mutant {mutant.number} names the tests {path}, which do not exist."
            for path in mutant.tests
            if not (ROOT / path.partition("::")[0]).exists()
        ]
    if problems:
        raise Unusable("\n".join(problems))


def show(mutant: Mutant, outcome: Outcome) -> str:
    """Return the row of one mutant in the table."""
    found = "found" if outcome.failed else "not found"
    row = f"{mutant.number:3}  {found:9}  {outcome.seconds:5.1f} s  "
    if outcome.failed:
        row += outcome.failed
    else:
        row += f"{mutant.why}\n     - {mutant.original}\n     + {mutant.mutated}"
    if mutant.gap:
        state = "now found, so remove its line" if outcome.failed else "known"
        row += f"\n     gap ({state}): {mutant.gap}"
    return row


def main(arguments: list[str] | None = None) -> int:
    """Run the chosen mutants, print the table and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", type=int, nargs="+", metavar="N", help="numbers of mutants")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time (default 1)")
    options = parser.parse_args(arguments)
    begin = time.perf_counter()
    try:
        every = parse(LIST.read_text(encoding="utf-8"))
        mutants = [m for m in every if options.only is None or m.number in options.only]
        if options.jobs < 1 or not set(options.only or ()) <= {m.number for m in every}:
            parser.error(f"--jobs is at least 1, and --only takes numbers from 1 to {len(every)}")
        check_list(tuple(mutants))
        outcomes = []
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(check_tests_pass, dict.fromkeys(m.tests for m in mutants)))
            print(f"The tests pass without a mutant ({time.perf_counter() - begin:.0f} s).")
            for mutant, outcome in zip(mutants, pool.map(run_mutant, mutants), strict=True):
                print(show(mutant, outcome), flush=True)
                outcomes.append(outcome)
    except Unusable as error:
        print(error, file=sys.stderr)
        return 2
    found = sum(bool(outcome.failed) for outcome in outcomes)
    print(f"{found} of {len(mutants)} found in {time.perf_counter() - begin:.0f} s")
    missed = [m for m, o in zip(mutants, outcomes, strict=True) if not o.failed and not m.gap]
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
