"""The benchmark for accelerators runs on the CPU: every cell, its counts, and interruptions."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType

import accelerator
from _accelerator_cells import Baseline, Bench, OutOfTimeError, Ready, timed
from _accelerator_loops import CANDIDATES, PARTS, Loop, Setting, hand_loop
from _accelerator_models import workloads
from _accelerator_results import Result, append_line, heading, read_lines, row_of
from _operations import Operations, count_operations, operations_of

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "benchmarks" / "accelerator.py"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _quick_collections() -> Generator[None, None, None]:
    """Keep what the test session holds out of the collections that follow each round."""
    gc.freeze()
    yield
    gc.unfreeze()


def started(*arguments: str) -> subprocess.Popen[str]:
    """Start the program with the tiny models on the CPU."""
    command = [sys.executable, str(PROGRAM), "--tiny", "--device", "cpu", *arguments]
    return subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def cells_in(path: Path) -> list[dict[str, Any]]:
    """Return the cells of a file whose first line is the header."""
    header, *cells = read_lines(path)
    assert {"device", "torch", "driver", "date", "load"} <= header["header"].keys()
    return [entry["cell"] for entry in cells]


def cells_named(only: str) -> list[accelerator.Cell]:
    """Return the cells whose name begins with `only`."""
    cells = accelerator.cells_of(device=CPU, tiny=True, backend="aot_eager")
    return [cell for cell in cells if cell.name.startswith(only)]


def results_of(only: str, *, seconds: float = 60.0) -> list[Result]:
    """Return what is found in some cells, in this process."""
    return list(Bench(accelerator.TINY, seconds=seconds).results(cells_named(only)))


def test_every_cell_is_written_with_its_counts(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    program = started("--output", str(path))
    printed, _ = program.communicate(timeout=200)
    assert program.returncode == 0, printed
    cells = cells_in(path)
    names = [
        f"{model} {mode} {candidate}"
        for mode in ("eager", "compiled")
        for model in ("GPT", "ResNet")
        for candidate in ("attach", "controller", "per-example")
    ]
    assert [cell["cell"] for cell in cells] == names
    for cell in cells:
        assert re.search(f"^{cell['cell']} ", printed, flags=re.MULTILINE)
        if cell["cell"].endswith("compiled per-example"):
            assert cell["status"] == "not supported"
            assert "torch.compile" in cell["reason"]
            continue
        assert cell["status"] == "measured"
        assert cell["bare_operations"]["aten"] > 100
        # The library reads numbers and squares gradients, and leaves the loop's own work as it is.
        for count in ("aten", "scalars_read"):
            assert cell["operations"][count] > cell["bare_operations"][count]
        for name in ("ratio", "null"):
            assert 0.0 < cell[name]["low"] <= cell[name]["median"] <= cell[name]["high"]
        assert cell["rounds"] >= 6


def test_a_killed_run_leaves_the_cells_that_ended(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    program = started("--only", "GPT eager", "--output", str(path))
    end = time.monotonic() + 120
    try:
        while time.monotonic() < end and not (path.exists() and len([*read_lines(path)]) > 1):
            time.sleep(0.02)
    finally:
        program.kill()
        program.communicate()
    cells = cells_in(path)
    assert cells
    assert cells[0]["cell"] == "GPT eager attach"
    assert cells[0]["status"] == "measured"
    assert len(cells) < 3


def test_an_interrupted_run_says_so_and_keeps_its_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(setting: Setting) -> Loop:
        raise KeyboardInterrupt

    monkeypatch.setitem(CANDIDATES, "controller", interrupted)
    path = tmp_path / "results.jsonl"
    options = ["--device", "cpu", "--only", "GPT eager", "--output", str(path)]
    assert accelerator.main(options) == 130
    assert [cell["cell"] for cell in cells_in(path)] == ["GPT eager attach"]
    assert "was interrupted" in capsys.readouterr().out


def test_a_line_cut_off_by_a_crash_is_left_out_and_the_next_run_begins_its_own(
    tmp_path: Path,
) -> None:
    path = tmp_path / "results.jsonl"
    append_line(path, {"header": 1})
    with path.open("a") as file:
        file.write('{"cell": {"cel')
    assert list(read_lines(path)) == [{"header": 1}]
    append_line(path, {"header": 2})
    assert list(read_lines(path)) == [{"header": 1}, {"header": 2}]


def test_a_cell_that_does_not_fit_into_the_time_is_skipped_by_name() -> None:
    results = results_of("GPT eager", seconds=0.0)
    assert [result.status for result in results] == ["skipped"] * 3
    assert results[0].reason == "the set-up takes about 0.0 s, but only 0.0 s are left"
    assert row_of(results[0]).startswith("GPT eager attach ")
    assert "skipped: the set-up" in row_of(results[0])


def resting(seconds: float) -> Loop:
    """Return a loop whose steps take so many seconds."""
    return lambda steps: time.sleep(steps * seconds)


def baseline(loop: Loop) -> Baseline:
    """Return a baseline of one loop, with one step per round."""
    ready = Ready(loop=loop, peak_bytes=None)
    return Baseline(bare=ready, null=ready, steps=1, operations=Operations(aten=0, scalars_read=0))


def test_a_cell_is_skipped_if_its_first_rounds_show_that_it_is_too_slow() -> None:
    loop = resting(0.05)
    with pytest.raises(OutOfTimeError, match=r"^6 rounds take about [\d.]+ s, but only 0.0 s"):
        timed(loop, baseline(loop), accelerator.TINY, share=0.1, left=0.1)


@pytest.mark.parametrize(
    ("share", "left", "least", "most"),
    [(0.0, 60.0, 6, 6), (60.0, 60.0, 40, 40), (1.0, 60.0, 6, 1.0 / 0.03)],
)
def test_a_cell_has_the_rounds_that_fit_into_its_share(
    share: float, left: float, least: int, most: float
) -> None:
    plan = accelerator.FULL
    loop = resting(0.01 if share == 1.0 else 0.0)
    paired = timed(loop, baseline(loop), plan, share=share, left=left)
    assert least <= len(paired.wall["candidate"]) <= most


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (torch.OutOfMemoryError("no memory"), "out of memory"),
        (RuntimeError("broken"), "failed"),
    ],
)
def test_a_cell_that_fails_leaves_the_others(
    error: Exception, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(setting: Setting) -> Loop:
        raise error

    monkeypatch.setitem(CANDIDATES, "attach", failing)
    path = tmp_path / "results.jsonl"
    options = ["--device", "cpu", "--only", "GPT eager", "--output", str(path)]
    assert accelerator.main(options) == (1 if status == "failed" else 0)
    first, *others = cells_in(path)
    assert first["status"] == status
    assert str(error) in first["reason"]
    assert [cell["status"] for cell in others] == ["measured"] * 2


def test_operations_are_those_of_a_step_counted_by_hand() -> None:
    x = torch.ones(3)

    def step() -> None:
        for _ in range(5):
            torch.add(x, x)
        for at in range(2):
            x[at].item()

    counted = count_operations(step, device="cpu")
    assert counted.scalars_read == 2
    # Each index is a select and an as_strided, each item() calls _local_scalar_dense.
    assert counted.aten == 5 + 2 * 4
    assert counted.launches is None


def test_events_of_a_device_are_told_apart_by_their_names() -> None:
    host = ["aten::add", "aten::_local_scalar_dense", "cudaLaunchKernel", "cudaLaunchKernelExC"]
    host += ["cuLaunchKernel", "cudaMemcpyAsync", "cudaStreamSynchronize", "cudaDeviceSynchronize"]
    device = ["void at::native::add<float>", "Memcpy DtoH (Device -> Pinned)", "triton_poi_fused_0"]
    device += ["Memcpy HtoD (Pinned -> Device)", "Memcpy HtoD (Pageable -> Device)"]
    device += ["Memset (Device)"]
    events = [
        SimpleNamespace(name=name, device_type=kind, is_user_annotation=False)
        for kind, names in ((DeviceType.CPU, host), (DeviceType.CUDA, device))
        for name in names
    ]
    note = SimpleNamespace(
        name="Optimizer.step#SGD.step", device_type=DeviceType.CUDA, is_user_annotation=True
    )
    counted = operations_of([*events, note])
    assert (counted.aten, counted.scalars_read, counted.launches) == (2, 1, 3)
    assert (counted.kernels, counted.waits) == (2, 1)
    assert (counted.to_host, counted.to_device) == (1, 2)
    unseen = operations_of([*events[: len(host)], note])
    assert (unseen.aten, unseen.launches, unseen.waits, unseen.to_device) == (2, None, None, None)


def test_the_models_at_full_size_are_a_gpt_of_124m_and_a_resnet_50() -> None:
    gpt, network = workloads(tiny=False)
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in w.model().parameters()) for w in (gpt, network)]
    assert sizes == [124_475_904, 25_557_032]


def test_each_candidate_takes_the_steps_of_torch_alone() -> None:
    """All loops see the same number of samples, each in as many forward calls."""
    calls: list[int] = []
    workload = workloads(tiny=True)[1]
    for build in (hand_loop, CANDIDATES["attach"], CANDIDATES["controller"]):
        setting = Setting(workload=workload, device=CPU, backend=None)
        loop = build(setting)
        loop(1)
        handle = torch.nn.modules.module.register_module_forward_pre_hook(
            lambda module, args: (
                calls.append(len(args[0])) if isinstance(module, torch.nn.Flatten) else None
            )
        )
        loop(2)
        handle.remove()
    assert calls == [workload.micro_batch] * (3 * 2 * PARTS)


def test_the_title_of_each_column_is_above_it() -> None:
    (result,) = results_of("GPT eager attach")
    row, title = row_of(result), heading()
    assert result.ratio is not None
    assert row.index(result.ratio.shown()) == title.index("time / bare")
    assert row[title.index("ATen") :].split()[0] == str(result.bare_operations.aten)


@pytest.mark.parametrize("device", ["mps", "cuda"])
def test_a_device_that_is_not_there_is_refused(
    device: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        accelerator.main(["--device", device])
    assert f"--device {device}" in capsys.readouterr().err
