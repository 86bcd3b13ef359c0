from __future__ import annotations

from pathlib import Path

import pytest

from largebatch.workbench.workloads import DataMissing, load, names

OWN = """
from largebatch.workbench.workloads import DataMissing, load

def fine():
    return load("digits")

def wrong():
    return 7

def needy(size):
    return load("digits")

def broken():
    return {}["no such key"]

def confused():
    return len(7)

def without_data():
    raise DataMissing("nothing there")

number = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_for_test.py").write_text(OWN)
    (tmp_path / "needy_for_test.py").write_text("import no_such_package_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("name", names())
def test_a_registered_workload_is_called_by_its_name(name: str) -> None:
    assert load(name).name == name


def test_an_unknown_name_lists_the_known_ones_and_the_closest() -> None:
    with pytest.raises(ValueError) as caught:
        load("fashion-cn")
    assert "Did you mean 'fashion-cnn'?" in str(caught.value)
    assert all(name in str(caught.value) for name in names())
    with pytest.raises(ValueError, match=r"no workload 'qqq'\. The workloads are"):
        load("qqq")


@pytest.mark.usefixtures("own")
def test_a_users_own_workload_is_called_by_its_path() -> None:
    assert load("own_for_test:fine").name == "digits"


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("path", "cause"),
    [
        ("own_for_tes:fine", "no module 'own_for_tes'.*export PYTHONPATH="),
        ("own_for_test.deeper:fine", "no module 'own_for_test.deeper'"),
        ("own_for_test:fin", "has no function 'fin' for .*Did you mean 'own_for_test:fine'"),
        ("own_for_test:", "must have the form"),
        ("own_for_test:number", "must be a function, but it is 3"),
        ("own_for_test:wrong", "returned 7, but it must return a Workload"),
        ("own_for_test:needy", r"needs arguments \(TypeError: needy\(\) missing 1.*'size'"),
        (
            "own_for_test:broken",
            "raised KeyError: 'no such key'. .* run: python -c",
        ),
        ("own_for_test:confused", "raised TypeError: object of type 'int' has no len"),
        (":fine", "must have the form"),
        (".own_for_test:fine", "must have the form"),
        ("./own_for_test.py:fine", "must have the form 'package.module:factory'"),
    ],
)
def test_a_path_that_leads_nowhere_says_why(path: str, cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        load(path)


@pytest.mark.usefixtures("own")
def test_an_error_of_a_factory_that_has_its_remedy_is_left_as_it_is() -> None:
    with pytest.raises(DataMissing, match=r"^nothing there$"):
        load("own_for_test:without_data")


@pytest.mark.usefixtures("own")
def test_what_a_users_module_misses_itself_is_not_taken_for_a_wrong_path() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_package_at_all"):
        load("needy_for_test:fine")
