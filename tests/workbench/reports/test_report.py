"""The page that shows runs: looked at in a browser, on desk and phone, by day and by night."""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

import largebatch as lb
from largebatch.core.decision import Decision
from largebatch.core.measurement import GradientMoments, Measurement
from largebatch.record import JsonlRecord, MemoryRecord, Record, read_record
from largebatch.workbench.cli.main import cli
from largebatch.workbench.cli.tables import train_table
from largebatch.workbench.reports.replay import replay_file
from largebatch.workbench.reports.report import write_report
from largebatch.workbench.reports.run import reported_run
from largebatch.workbench.runs.train import train

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium; on Debian: apt-get install chromium"
)
HOSTILE = "</script><script>document.title='caught'</script><b>&\"'"


def made_up(
    path: Path,
    *,
    steps: int,
    hostile: str = "",
    measured: bool = True,
    statistic: str = "moments",
    base_lr: float = 0.1,
) -> Path:
    """A record of a run whose batch doubles twice and that lost a step."""
    record = JsonlRecord(path)
    record.start({"method": f"made up {hostile}", "base_batch_size": 16, "workload": hostile})
    samples = 0
    for step in range(steps):
        size = 16 * 2 ** min(3 * step // steps, 2)
        finite = step != steps // 2
        moments = GradientMoments(
            batch_size=size, parts=4, batch_sqnorm=1.0 + 20.0 / size, variance=20.0 + step % 7
        )
        seen = Measurement(
            step=step, samples=samples, base_steps=float(step), batch_size=size,
            base_batch_size=16, base_lr=base_lr,
            loss=2.0 / (1.0 + step) if finite else float("nan"),
            finite=finite, **({statistic: moments} if measured else {}),
        )  # fmt: skip
        following = 16 * 2 ** min(3 * (step + 1) // steps, 2)
        record.write(
            seen,
            Decision(next_batch_size=following, base_steps=1.0, reason=f"gain {step} {hostile}"),
        )
        samples += size
    record.close()
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def opened(browser: Any, page: Path, **options: Any) -> tuple[Any, list[str]]:
    """The page in a window of its own, without a network, and what it complained about."""
    context = browser.new_context(offline=True, **options)
    window, complaints = context.new_page(), []
    window.on("console", lambda message: complaints.append(message.text))
    window.on("pageerror", lambda error: complaints.append(str(error)))
    window.on("request", lambda request: complaints.extend(
        [] if request.url.startswith(("file:", "data:")) else [request.url]))  # fmt: skip
    window.goto(page.as_uri())
    window.wait_for_selector("canvas")
    return window, complaints


PIXELS = """() => [...document.querySelectorAll("canvas")].map((canvas) => {
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  let painted = 0, sum = 0;
  for (let at = 0; at < data.length; at += 4) {
    if (data[at + 3]) { painted += 1; sum = (sum * 31 + at + data[at]) % 1000003; }
  }
  return [painted, sum];
})"""


@needs_chromium
def test_all_five_curves_of_two_runs_are_drawn_and_follow_the_chosen_axis(
    browser: Any, tmp_path: Path
) -> None:
    runs = [made_up(tmp_path / f"{name}.jsonl", steps=n) for name, n in {"a": 90, "b": 60}.items()]
    window, complaints = opened(browser, write_report(runs, tmp_path / "page.html"))
    by_steps = window.evaluate(PIXELS)
    assert len(by_steps) == 5
    assert all(painted > 500 for painted, _ in by_steps)
    window.get_by_text("samples", exact=True).first.click()
    by_samples = window.evaluate(PIXELS)
    assert all(one != other for one, other in zip(by_steps, by_samples, strict=True))
    window.keyboard.press("ArrowRight")  # the choice is a group of radio buttons
    assert window.locator("input[name=axis]:checked").get_attribute("value") == "base steps"
    assert window.evaluate(PIXELS) != by_samples
    window.mouse.move(400, 300)
    assert re.search(r"a .*", window.locator(".reading").first.inner_text())
    assert complaints == []


@needs_chromium
def test_on_a_phone_nothing_is_wider_than_the_screen(browser: Any, tmp_path: Path) -> None:
    page = write_report([made_up(tmp_path / "a.jsonl", steps=90)], tmp_path / "page.html")
    phone = {"width": 375, "height": 700}
    window, complaints = opened(browser, page, viewport=phone, is_mobile=True, has_touch=True)
    assert window.evaluate("document.documentElement.scrollWidth") == 375
    assert window.locator(".axes span").first.bounding_box()["height"] >= 36
    assert complaints == []


def luminance(colour: str) -> float:
    channels = [int(part) / 255 for part in re.findall(r"[0-9]+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_stand_out_by_day_and_by_night(
    browser: Any, tmp_path: Path, scheme: str
) -> None:
    runs = [made_up(tmp_path / f"{n}.jsonl", steps=40) for n in range(8)]
    window, _ = opened(browser, write_report(runs, tmp_path / "page.html"), color_scheme=scheme)
    style = "getComputedStyle(document.querySelector('{}')).{}"
    back = luminance(window.evaluate(style.format("figure", "backgroundColor")))
    assert (back < 0.1) == (scheme == "dark")

    def contrast(selector: str, what: str) -> float:
        other = luminance(window.evaluate(style.format(selector, what)))
        return (max(back, other) + 0.05) / (min(back, other) + 0.05)

    assert contrast("body", "color") > 7
    assert contrast("small", "color") > 4.5
    for run in range(8):
        assert contrast(f".key{run}", "stroke") > 3, run
    dashes = {window.evaluate(style.format(f".key{n}", "strokeDasharray")) for n in range(8)}
    assert len(dashes) == 8  # nobody has to tell runs by colour


@needs_chromium
def test_what_stands_in_a_record_is_text_and_never_code(browser: Any, tmp_path: Path) -> None:
    run = made_up(tmp_path / "a.jsonl", steps=40, hostile=HOSTILE)
    window, complaints = opened(browser, write_report([run], tmp_path / "page.html"))
    assert window.title() == "largebatch: a"
    assert f"gain 39 {HOSTILE}" in window.inner_text("body")
    assert complaints == []


@needs_chromium
def test_a_run_without_noise_measurements_says_so(browser: Any, tmp_path: Path) -> None:
    run = made_up(tmp_path / "a.jsonl", steps=40, measured=False)
    other = made_up(tmp_path / "b.jsonl", steps=5)
    window, _ = opened(browser, write_report([run, other], tmp_path / "page.html"))
    told = window.inner_text("figure[data-curve='noise scale']")
    assert "a: the run did not measure the noise scale; b: not enough signal" in told


@needs_chromium
def test_a_pointer_position_means_the_same_step_in_every_panel(
    browser: Any, tmp_path: Path
) -> None:
    long = made_up(tmp_path / "long.jsonl", steps=400, measured=False)
    short = made_up(tmp_path / "short.jsonl", steps=60)
    window, _ = opened(browser, write_report([long, short], tmp_path / "page.html"))
    noise = window.locator("figure[data-curve='noise scale']")
    noise.locator(".u-over").hover(position={"x": 60, "y": 50})
    assert int(noise.locator(".reading").inner_text().split()[0]) > 40  # near its last piece
    noise.locator(".u-over").hover(position={"x": 4, "y": 50})
    assert int(noise.locator(".reading").inner_text().split()[0]) < 20


@needs_chromium
def test_long_labels_of_an_axis_have_room(browser: Any, tmp_path: Path) -> None:
    left = {}
    for lr in (100.0, 0.000075):
        run = made_up(tmp_path / f"{lr}.jsonl", steps=40, base_lr=lr)
        window, _ = opened(browser, write_report([run], tmp_path / "page.html"))
        figure = window.locator("figure[data-curve='learning rate']")
        inner, outer = (figure.locator(part).bounding_box() for part in (".u-over", ".plot"))
        left[lr] = inner["x"] - outer["x"]
    assert left[100.0] < 60.0 < left[0.000075]


def test_a_run_of_a_method_without_a_gain_shows_neither_gain_nor_base_steps(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run.jsonl"
    train("digits", method="sqrt", scale=4, budget="1ep", record=run, evaluations=0)
    page = write_report([run], tmp_path / "page.html").read_text()
    assert 'data-curve="gain"' not in page
    assert "base steps" not in page.split("<script")[0]
    assert ">recorded by</th>" in page
    assert ">last written</th>" in page


@needs_chromium
def test_on_a_phone_no_word_of_a_table_is_broken_and_no_fact_hidden(
    browser: Any, tmp_path: Path
) -> None:
    runs = [made_up(tmp_path / f"{name}.jsonl", steps=90) for name in ("a", "b", "c")]
    phone = {"width": 375, "height": 700}
    window, _ = opened(browser, write_report(runs, tmp_path / "page.html"), viewport=phone)
    broken = """() => [...document.querySelectorAll("th, td")].filter((cell) => {
      const text = document.createRange();
      text.selectNodeContents(cell);
      return !/[ -]/.test(cell.textContent.trim()) && text.getClientRects().length > 1;
    }).map((cell) => cell.textContent)"""
    assert window.evaluate(broken) == []
    summary = window.locator("[aria-label=Summary]")
    assert summary.evaluate("(box) => box.scrollHeight <= box.clientHeight")
    assert window.evaluate("document.documentElement.scrollWidth") == 375


def test_a_long_run_stays_below_a_megabyte(tmp_path: Path) -> None:
    runs = [made_up(tmp_path / f"{n}.jsonl", steps=20_000) for n in range(2)]
    assert write_report(runs, tmp_path / "page.html").stat().st_size < 1_000_000


def test_a_thinned_curve_holds_mean_and_range_of_what_it_stands_for(tmp_path: Path) -> None:
    record = read_record(made_up(tmp_path / "a.jsonl", steps=1000))
    curve = reported_run(record, name="a", points=100).curves[0]
    losses = [step.seen.loss for step in record.steps if step.seen.finite]
    assert len(curve.y) == 100
    assert curve.y[0] == pytest.approx(sum(losses[:10]) / 10, rel=1e-5)
    assert curve.low[0] == pytest.approx(min(losses[:10]), rel=1e-5)
    assert curve.high[0] == pytest.approx(max(losses[:10]), rel=1e-5)
    assert curve.x["samples"][-1] == record.steps[-1].seen.samples + 64


def test_changes_and_lost_steps_are_listed_with_their_reasons(tmp_path: Path) -> None:
    run = reported_run(read_record(made_up(tmp_path / "a.jsonl", steps=90)), name="a")
    assert [change.what for change in run.changes] == [
        "batch size 16 to 32", "step skipped, loss nan", "batch size 32 to 64",
    ]  # fmt: skip
    assert run.changes[0].reason.startswith("gain 29")
    assert [(kind.count, kind.first, kind.last) for kind in run.kinds] == [(90, 1, 90)]


def test_the_first_change_of_the_batch_is_listed(tmp_path: Path) -> None:
    run = reported_run(read_record(made_up(tmp_path / "a.jsonl", steps=3)), name="a")
    assert (run.changes[0].step, run.changes[0].what) == (1, "batch size 16 to 32")


def test_the_end_of_a_warm_up_is_listed_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    train("digits", method="autowu", scale=4, budget="300steps", record=path, evaluations=0)
    run = reported_run(read_record(path), name="run")
    (change,) = run.changes
    assert 30 < change.step < 200
    assert change.what.startswith("learning rate 0.")
    assert "warm-up ended at" in change.reason
    assert "the loss rises with probability " in change.reason


def test_the_band_of_the_noise_scale_holds_its_line_and_breaks_where_nothing_is_known(
    tmp_path: Path,
) -> None:
    record = MemoryRecord()
    for step in range(480):
        wobble = (-1) ** (step // 3) * (0.9 if step < 240 else 3.0)
        sqnorm = wobble + (1.0 if step < 360 else -9.0)
        moments = GradientMoments(
            batch_size=64, parts=4, batch_sqnorm=sqnorm + 10.0, variance=640.0 + step % 7
        )
        seen = Measurement(
            step=step, samples=64 * step, base_steps=float(step), batch_size=64,
            base_batch_size=64, moments=moments,
        )  # fmt: skip
        record.write(seen, Decision(next_batch_size=64, base_steps=1.0))
    run = reported_run(Record(header={}, steps=tuple(record.steps)), name="a")
    noise = run.curves[-1]
    assert noise.name == "noise scale"
    assert run.open_ended
    assert len(noise.y) == len(noise.high) == len(noise.x["steps"]) == 24
    known = [values for values in zip(noise.y, noise.low, noise.high, strict=True) if values[1]]
    assert 0 < len(known) < 24  # the last quarter's squared norm is below zero
    for y, low, high in known:
        assert low is not None
        assert high is not None
        assert low < high
        assert y is None or low <= y < high


def test_a_noise_scale_as_adam_sees_it_is_drawn_and_tabulated_under_its_own_name(
    tmp_path: Path,
) -> None:
    adam = made_up(tmp_path / "adam.jsonl", steps=480, statistic="preconditioned_moments")
    plain = made_up(tmp_path / "plain.jsonl", steps=480)
    run = reported_run(read_record(adam), name="adam")
    other = reported_run(read_record(plain), name="plain")
    name = "noise scale, preconditioned gradient"
    assert run.curves[-1].name == name
    assert run.curves[-1].y == other.curves[-1].y
    assert run.facts[name] == other.facts["noise scale"]
    assert (run.facts["noise scale"], other.facts[name]) == ("", "")
    panel = 'data-curve="{}"'.format
    page = write_report([adam], tmp_path / "page.html").read_text()
    assert panel(name) in page
    assert panel("noise scale") not in page
    page = write_report([adam, plain], tmp_path / "page.html").read_text()
    assert panel(name) in page
    assert panel("noise scale") in page
    page = write_report([plain], tmp_path / "page.html").read_text()
    assert name not in page.split('<script type="application/json"')[0]


def test_an_interval_from_nothing_on_does_not_flatten_the_noise_scales_panel(
    tmp_path: Path,
) -> None:
    record = MemoryRecord()
    for step in range(32):
        moments = GradientMoments(
            batch_size=64, parts=4, batch_sqnorm=2.0, variance=30.0 if step % 5 else -60.0
        )
        seen = Measurement(
            step=step, samples=64 * step, base_steps=float(step), batch_size=64,
            base_batch_size=64, moments=moments,
        )  # fmt: skip
        record.write(seen, Decision(next_batch_size=64, base_steps=1.0))
    noise = reported_run(Record(header={}, steps=tuple(record.steps)), name="a").curves[-1]
    assert set(noise.low) == {1.0}  # a sample: no batch is smaller


@pytest.mark.parametrize(
    ("method", "shown", "other"),
    [
        ("adascale", "mean gain", "mean scale"),
        ("sqrt", "mean scale", "mean gain"),
        ("adasgd", "mean scale", "mean gain"),
    ],
)
def test_what_a_step_is_worth_is_a_gain_only_if_it_was_measured(
    method: str, shown: str, other: str, tmp_path: Path
) -> None:
    run = tmp_path / "run.jsonl"
    result = train("digits", method=method, scale=4, budget="1ep", record=run)
    facts = reported_run(read_record(run), name="run").facts
    assert (facts[shown], facts[other]) == (f"{result.base_steps / result.steps:.2f}", "")
    table = Console(width=1000, file=io.StringIO(), record=True)
    table.print(train_table(result))
    assert f"{shown} {facts[shown]}" in table.export_text()
    if method == "sqrt":
        assert float(facts[shown]) == pytest.approx(4.0, abs=0.05)


def test_the_table_tells_runs_apart_and_leaves_out_what_none_of_them_says(tmp_path: Path) -> None:
    run = tmp_path / "run.jsonl"
    train("digits", method="sqrt", scale=4, seed=3, lr=0.02, budget="1ep", record=run)
    facts = reported_run(read_record(run), name="run").facts
    assert (facts["scale"], facts["seed"], facts["base learning rate"]) == ("4", "3", "0.02")
    assert (facts["batch size"], facts["noise scale"]) == ("64", "not measured")
    assert reported_run(read_record(made_up(tmp_path / "a.jsonl", steps=9)), name="a").facts[
        "batch size"
    ] == "16 to 64"  # fmt: skip
    page = write_report([run], tmp_path / "page.html").read_text()
    assert ">seed</th>" in page
    assert ">clipping norm</th>" not in page


def test_a_page_never_replaces_a_record(tmp_path: Path) -> None:
    run = made_up(tmp_path / "run.html", steps=5)
    before = run.read_bytes()
    with pytest.raises(ValueError, match="is one of the records"):
        write_report([run], tmp_path / "." / "run.html")
    assert run.read_bytes() == before


def test_a_full_disk_leaves_the_page_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made_up(tmp_path / "a.jsonl", steps=5)
    page = write_report([run], tmp_path / "page.html")
    before = page.read_text()
    write_text = Path.write_text

    def full(path: Path, text: str, **options: Any) -> int:
        write_text(path, text[:100], **options)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(lb.LargeBatchError, match=r"cannot be written to .* \(No space left"):
        write_report([run], page)
    assert page.read_text() == before
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", "page.html"}


def test_a_damaged_record_is_shown_up_to_the_damage(tmp_path: Path) -> None:
    path = made_up(tmp_path / "a.jsonl", steps=40)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:21], b"{}\n", *lines[22:], b'{"seen"']))
    run = reported_run(read_record(path, up_to_damage=True), name="a")
    assert run.facts["steps"] == "20"
    assert "line 22" in run.notes[0]
    assert "line 22" in write_report([path], tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["report", "none.jsonl"], "The record none.jsonl does not exist"),
        (["report", "."], "The record . does not exist or is a directory"),
        (["report", "a.jsonl", "--out", "a.jsonl"], "Pass --out report.html"),
        (["report", "a.jsonl", "--out", "a.jsonl/p.html"], "cannot be written"),
        (["report", "empty.jsonl"], "empty.jsonl has no header"),
        (["report", *["a.jsonl"] * 9], "1 to 8 runs"),
        (["replay", "none.jsonl", "--method", "sqrt"], "none.jsonl cannot be read (No such"),
        (["replay", ".", "--method", "sqrt"], "cannot be read (Is a directory)"),
        (["replay", "a.jsonl", "--method", "adascal"], "Did you mean 'adascale'"),
        (["replay", "bare.jsonl", "--method", "adascale"], "needs 'moments'"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made_up(tmp_path / "a.jsonl", steps=5)
    made_up(tmp_path / "bare.jsonl", steps=5, measured=False)
    (tmp_path / "empty.jsonl").touch()
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code in (1, 2)
    assert told in result.stderr
    assert "Traceback" not in result.stderr


def test_replaying_a_run_by_its_own_method_repeats_its_decisions_and_by_another_does_not(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run.jsonl"
    train("digits", method="adascale", scale=4, budget="1ep", record=path, evaluations=1)
    again = replay_file(path, method="adascale")
    assert again.same == len(again.steps) > 5
    other = replay_file(path, method=lb.SqrtScaling())
    assert other.same == 0
    assert {step.multiplier for step in other.steps} == {2.0}
    shown = CliRunner().invoke(cli, ["replay", str(path), "--method", "sqrt"]).stdout
    assert "These are the decisions of sqrt about the recorded measurements." in shown
    assert "A run with sqrt would be different" in " ".join(shown.split())
