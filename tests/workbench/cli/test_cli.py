from __future__ import annotations

import io
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from largebatch import __main__, __version__
from largebatch.core.codec import decode
from largebatch.methods import METHODS
from largebatch.workbench.cli import demo, study_tables
from largebatch.workbench.cli.faults import error_line
from largebatch.workbench.cli.main import cli
from largebatch.workbench.cli.progress import ProgressLine
from largebatch.workbench.runs.results import Progress, RunResult
from largebatch.workbench.studies.compare.compare import Comparison
from largebatch.workbench.workloads import names

ROOT = Path(__file__).parents[3]
COMMANDS = (
    "cite",
    "train",
    "compare",
    "plan",
    "schedule",
    "critical",
    "probe",
    "doctor",
    "methods",
    "workloads",
    "demo",
    "report",
    "replay",
)


def call(*args: str) -> Result:
    return CliRunner().invoke(cli, list(args), prog_name="largebatch")


def the_error(*args: str, code: int) -> str:
    """The one line on stderr of a call that fails without a traceback."""
    result = call(*args)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error")]
    assert "Traceback" not in result.output
    return line


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_and_each_option_says_what_it_does(command: str) -> None:
    result = call(command, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: largebatch {command}")
    for option in cli.commands[command].params:
        assert isinstance(option, click.Argument) or option.help  # type: ignore[attr-defined]


def test_the_commands_are_those_that_are_tested() -> None:
    assert set(cli.commands) == set(COMMANDS)


def test_without_a_command_the_help_is_shown() -> None:
    assert call().stdout == call("--help").stdout
    assert "largebatch demo" in call("-h").stdout


def test_the_version_is_that_of_the_package() -> None:
    assert __version__ in call("--version").stdout


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ("trian digits", "Did you mean 'train'?"),
        ("train", "Missing argument 'WORKLOAD'"),
        ("train digitz", "Did you mean 'digits'?"),
        ("train nowhere:workload", "export PYTHONPATH="),
        ("train json:loads", "'json:loads' needs arguments"),
        ("train digits --method adascal", "Did you mean 'adascale'?"),
        ("train digits --mehtod adascale", "--method"),
        ("train digits --scale 0", "--scale 8"),
        ("train digits --scale two", "'two' is not a valid integer"),
        ("train digits --budget 5epochs", "5ep (epochs)"),
        ("train digits --budget -5ep", "above 0"),
        ("train digits --lr 0", "--lr 0.01"),
        ("train digits --logger run.csv", "csv=FILE, tensorboard=DIR"),
        ("train digits --logger tensorbord=a", "Did you mean 'tensorboard'?"),
        ("train digits --logger wandb", "--logger wandb=DIR"),
        ("train digits --logger csv=a --logger csv=a", "given twice"),
        ("train digits --clip-norm -1", "--clip-norm 1"),
        ("compare digits --methods linear+", "--methods adascale,linear+"),
        ("compare digits --methods adascale,sqrtt", "Did you mean 'sqrt'?"),
        ("compare digits --scales 1,x", "--scales 1,8,32"),
        ("compare digits --scales 1,0", "must be 1 to"),
        ("compare digits --seeds 0", "--seeds 5"),
        ("compare digits --at equal-epochs", "'equal-samples', 'equal-steps'"),
        ("compare digits --plot a.xyz", "--plot picture.png"),
        ("methods --verbose", "No such option"),
    ],
)
def test_a_wrong_call_prints_an_error_of_one_line(args: str, expected: str) -> None:
    assert expected in the_error(*args.split(), code=2)


def test_a_method_that_the_workloads_optimizer_cannot_serve_names_one_that_can(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "digits_by_rmsprop.py").write_text(
        "from dataclasses import replace\n"
        "import torch\n"
        "from largebatch.workbench.workloads import load\n"
        "def workload():\n"
        "    return replace(load('digits'), optimizer=torch.optim.RMSprop)\n"
    )
    call = "train digits_by_rmsprop:workload --method adascale-adam --budget 16"
    line = the_error(*call.split(), code=2)
    assert "torch.optim.AdamW" in line
    assert "lb.AdaScale()" in line


def test_missing_data_prints_an_error_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert 'pip install "largebatch[data]"' in the_error("train", "digits", code=1)
    monkeypatch.setenv("LARGEBATCH_FASHION_MNIST", "nowhere")
    assert "apt-get install" in the_error("train", "fashion-cnn", code=1)


def test_a_missing_matplotlib_is_reported_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    line = the_error("compare", "digits", "--plot", "a.png", code=1)
    assert "pip install 'largebatch[plot]'" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra_one_line_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SystemExit) as left:
        __main__.main()
    assert left.value.code == __main__.INSTALL
    assert "pip install 'largebatch[cli]'" in __main__.INSTALL


def test_a_record_that_exists_is_refused_with_the_option_to_change() -> None:
    Path("a.jsonl").write_text("mine")
    line = the_error("train", "digits", "--budget", "16", "--record", "a.jsonl", code=1)
    assert "never overwritten. Pass another file: --record other.jsonl" in line
    assert "append" not in line


def test_a_record_path_that_cannot_be_written_is_refused_with_its_reason() -> None:
    Path("file").write_text("mine")
    line = the_error("train", "digits", "--budget", "16", "--record", "file/a", code=1)
    assert "file/a cannot be written (" in line
    assert "--record other.jsonl" in line
    Path("folder").mkdir()
    line = the_error("train", "digits", "--budget", "16", "--record", "folder", code=1)
    assert "folder is a directory" in line


def test_a_diverged_run_prints_an_error_and_its_record_is_not_deleted() -> None:
    line = the_error("train", "digits", "--lr", "1e30", "--record", "a.jsonl", code=1)
    assert "diverged after" in line
    assert "a.jsonl" in line
    assert Path("a.jsonl").exists()


def test_runs_of_other_settings_are_not_mixed() -> None:
    base = "compare digits --methods none --scales 1 --seeds 1 --out a --budget"
    assert call(*base.split(), "16").exit_code == 0
    assert "other settings" in the_error(*base.split(), "32", code=2)


@pytest.mark.parametrize(
    ("args", "name", "remedy"),
    [
        ("train digits", "runs.train.train", "start the run with --checkpoint DIR"),
        ("compare digits", "studies.compare.compare.compare", "run the same command again"),
    ],
)
def test_an_interruption_exits_with_130_and_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, args: str, name: str, remedy: str
) -> None:
    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"largebatch.workbench.{name}", interrupted)
    assert remedy in the_error(*args.split(), code=130)


def test_a_bug_keeps_its_traceback() -> None:
    def bug() -> None:
        try:
            int("x")
        except ValueError as error:
            error_line(error)

    with pytest.raises(ValueError, match="invalid literal"):
        bug()
    with pytest.raises(TypeError):
        error_line(TypeError("a bug"))


def test_training_prints_the_curve_and_the_final_metrics() -> None:
    result = call("train", "digits", "--scale", "2", "--budget", "64", "--record", "a.jsonl")
    assert result.exit_code == 0
    for part in ("val. accuracy", "digits: adascale, scale 2, seed 0", "64 samples", "test: loss"):
        assert part in result.stdout
    assert "100 %  batch 32  loss" in result.stderr
    assert Path("a.jsonl").exists()


def test_a_last_step_cut_by_the_budget_is_marked_as_cut() -> None:
    err = call("train", "digits", "--method", "linear", "--scale", "8", "--budget", "224").stderr
    first, last = err.splitlines()
    assert "57 %  step 1  batch 128  loss" in first
    assert "lr 0.08 x8.00  gain 8.00" in first
    assert "step 2  batch 96 (last)  loss" in last
    assert "lr 0.06 x6.00  gain 6.00" in last


def test_json_of_a_run_is_all_of_stdout_and_comes_back() -> None:
    out = call("train", "digits", "--budget", "64", "--seed", "3", "--json").stdout
    result = decode(RunResult, json.loads(out))
    assert (result.samples, result.seed, result.method) == (64, 3, "adascale")


def test_a_users_own_workload_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    args = ("--method", "linear", "--scale", "4", "--budget", "1ep", "--json")
    out = call("train", "examples.own_workload:breast_cancer", *args).stdout
    result = decode(RunResult, json.loads(out))
    assert (result.workload, result.batch_size) == ("breast-cancer", 64)
    assert result.test["accuracy"] > 0.5


def test_the_command_finds_modules_of_the_current_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "here_for_test.py").write_text(
        "from largebatch.workbench.workloads.digits import digits\n"
    )
    outside = [entry for entry in sys.path if entry not in ("", str(tmp_path))]
    monkeypatch.setattr(sys, "path", outside)  # as the installed script has it
    monkeypatch.setattr(sys, "argv", ["largebatch", "train", "here_for_test:digits", "--budget=16"])
    with pytest.raises(SystemExit) as left:
        __main__.main()
    assert left.value.code == 0
    assert sys.path[0] == str(tmp_path)


def test_a_comparison_prints_its_table_draws_its_plot_and_can_be_resumed() -> None:
    args = "compare digits --methods adascale,linear+ --scales 8 --seeds 2 --budget 10base"
    result = call(*args.split(), "--plot", "a.png")
    assert result.exit_code == 0, result.output
    for part in (
        "(any)",
        "adascale",
        "linear+",
        "lr x",
        "quality",
        "'worse': ",
        "test loss",
        "The runs are kept in runs/",
    ):
        assert part in result.stdout
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")
    assert "6 of 6 runs were found in runs/" in call(*args.split()).stdout
    again = call(*args.split(), "--json")
    comparison = decode(Comparison, json.loads(again.stdout))
    assert comparison.found == len(comparison.runs) == 6
    assert "run 1 of 6: scale 1, seed 0  100 %  step 10" in result.stderr
    assert "run" not in again.stderr


def test_the_lists_name_everything() -> None:
    methods, workloads = call("methods").stdout, call("workloads").stdout
    for name in METHODS:
        assert f" {name} " in methods
    assert "Johnson et al." in methods
    assert "2007.05105" in methods
    for name in names():
        assert f" {name} " in workloads


@pytest.mark.parametrize(("columns", "width"), [("80", 80), ("140", 140), ("", 120), ("x", 120)])
def test_a_piped_table_is_as_wide_as_columns_and_ends_no_line_with_a_blank(
    columns: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    lines = call("methods").stdout.splitlines()
    assert max(map(len, lines)) <= width
    assert not [line for line in lines if line.endswith(" ")]


def fake_probe(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Puts a probe in the place of the real one, which takes longer; its calls are listed."""
    calls: list[Any] = []

    def probe_workload(
        workload: str, *, progress: Callable[[int, int], None], **options: int
    ) -> Any:
        calls.append((workload, options))
        progress(1, 2)
        return "noise scale 99"

    monkeypatch.setattr("largebatch.workbench.studies.probe.probe_workload", probe_workload)
    monkeypatch.setattr(study_tables, "print_probe", lambda found, console: console.print(found))
    return calls


def test_probe_is_given_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_probe(monkeypatch)
    result = call("probe", "digits", "--steps", "9", "--scale", "8")
    assert "noise scale 99" in result.stdout
    assert result.stderr == "probe of digits   50 %  step 1\n"
    call("probe", "digits")
    assert calls == [
        ("digits", {"steps": 9, "seed": 0, "scale": 8}),
        ("digits", {"steps": None, "seed": 0, "scale": None}),
    ]


def test_the_demo_probes_compares_draws_and_concludes(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_probe(monkeypatch)
    monkeypatch.setattr(demo, "BUDGET", "10base")
    monkeypatch.setattr(demo, "SCALES", (1, 2))
    result = call("demo")
    assert result.exit_code == 0, result.output
    assert calls == [("digits", {"steps": None, "seed": 0, "scale": None})]
    assert "noise scale 99" in result.stdout
    _, after = result.stdout.split("\n2. ")
    after = " ".join(after.split())
    assert "Each run takes 10 base steps." in after
    assert "20 epochs" in after
    assert after.index("The picture will be written to") < after.index("times fewer steps")
    assert result.stdout.splitlines()[-1] == "The picture was written to runs/demo/demo.png."
    assert Path("runs/demo/demo.png").exists()


def step(fraction: float, label: str = "a") -> Progress:
    return Progress(
        label=label, step=1, samples=2, batch_size=2, lr_multiplier=1.0, loss=None,
        fraction=fraction,
    )  # fmt: skip


def written(console: Console) -> list[str]:
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_without_a_terminal_progress_is_printed_as_a_few_lines() -> None:
    console = Console(file=io.StringIO())
    with ProgressLine(console, parts=2) as line:
        for label in ("a", "b"):
            for i in range(1, 101):
                line(step(i / 100, label))
    shown = [text[:8] for text in written(console)]
    assert shown == ["a   50 %", "a  100 %", "b   50 %", "b  100 %"]


def test_a_terminal_shows_one_line_that_is_gone_at_the_end() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with ProgressLine(console) as line:
        line(step(0.25))
        line("found 3 of 4 runs")
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "a   25 %  step 1  samples 2" in text
    assert "found 3 of 4 runs" in text
    assert text.rstrip("\n").endswith("\x1b[2K")  # the line was erased


def test_all_ranks_but_the_first_are_silent() -> None:
    console = Console(file=io.StringIO())
    with ProgressLine(console, silent=True) as line:
        line(step(1.0))
        line("found")
    assert written(console) == []


def test_a_probe_that_shares_no_batch_is_refused_on_several_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    ended = call("probe", "digits")
    assert ended.exit_code == 2
    assert "train and critical" in " ".join(ended.stderr.split())


@pytest.mark.parametrize("by", ["--by noise", "--by=noise,sweep --budget 5ep --plot 'a b.png'"])
def test_probe_by_a_method_names_the_command_that_it_became(by: str) -> None:
    """0.1 had the critical batch under `probe --by`."""
    line = the_error("probe", "digits", *shlex.split(by), code=2)
    assert line.endswith(f"Run: largebatch critical digits {by}")
