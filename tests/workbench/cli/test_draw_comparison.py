from __future__ import annotations

import sys
from pathlib import Path

import pytest
from made_up_runs import made_up

from largebatch.workbench.cli.pictures.comparison import (
    COLOURS,
    PlotMissing,
    draw_comparison,
    require_matplotlib,
)
from largebatch.workbench.runs.results import RunResult
from largebatch.workbench.studies.compare.compare import Comparison


def comparison(*runs: RunResult) -> Comparison:
    return Comparison(
        workload="digits", base_steps=100, at="equal-samples", margin=0.1, directory="runs/a",
        found=0, rows=(), runs=runs,
    )  # fmt: skip


def test_a_picture_is_written_into_a_new_directory(tmp_path: Path) -> None:
    runs = [
        made_up(method=method, scale=scale, seed=seed)
        for scale, method in [(1, "any"), (8, "linear"), (8, "linear+"), (32, "linear")]
        for seed in range(2)
    ]
    path = tmp_path / "new" / "a.png"
    draw_comparison(comparison(*runs), path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_runs_that_diverged_do_not_stop_the_drawing(tmp_path: Path) -> None:
    runs = [made_up(), made_up(method="linear", scale=8, loss=None)]
    draw_comparison(comparison(*runs), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_scale_one_alone_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--scales 1,8,32"):
        draw_comparison(comparison(made_up()), tmp_path / "a.png")


def test_without_matplotlib_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(PlotMissing, match=r"pip install 'largebatch\[plot\]'"):
        draw_comparison(comparison(made_up()), tmp_path / "a.png")


@pytest.mark.parametrize("scales", [(8,), (8, 32)])
def test_the_legend_lies_within_the_picture(scales: tuple[int, ...], tmp_path: Path) -> None:
    methods = ("adascale", "linear", "none", "linear+", "none+")
    runs = [made_up(method=m, scale=s, seed=0) for s in scales for m in methods]
    figures = []
    figure_class = require_matplotlib()

    class Kept(figure_class):  # type: ignore[misc, valid-type]
        def savefig(self, *args: object, **options: object) -> None:
            figures.append(self)
            super().savefig(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure", Kept)
        draw_comparison(comparison(made_up(), *runs), tmp_path / "a.png")
    (figure,) = figures
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
    texts = [text.get_text() for text in legend.get_texts()]
    assert "linear, scale 1's number of samples" in texts
    assert "linear, adascale's number of steps" in texts


def test_base_steps_are_drawn_only_if_a_method_measures_a_gain(tmp_path: Path) -> None:
    draw_comparison(comparison(made_up(), made_up(method="sqrt", scale=8)), tmp_path / "a.svg")
    assert "base steps" not in (tmp_path / "a.svg").read_text()
    draw_comparison(comparison(made_up(), made_up(method="adascale", scale=8)), tmp_path / "b.svg")
    assert "base steps" in (tmp_path / "b.svg").read_text()


def test_no_colour_stands_for_two_methods() -> None:
    assert len(set(COLOURS)) == len(COLOURS)
