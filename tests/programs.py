"""`python -m largebatch` in processes of their own, without the seconds that importing torch takes.

Each process is a fork of a server that has imported what every command needs, as the ranks of
`distributed.run_on_ranks` are. Its arguments, environment, folder and output are its own.
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

from torch.distributed import TCPStore

from distributed import SECONDS, forks, run_program


class Command:
    """A run of the command line, with what `subprocess.Popen` has; changes state.

    Args:
        args: after `python -m largebatch`.
        cwd: where it runs; modules in it are found.
        env: what it has in its environment besides ours.
        ctrl_c: what is done at SIGINT; a shell script's `&` has it ignored.
    """

    def __init__(
        self,
        *args: str,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        ctrl_c: Any = signal.default_int_handler,
    ) -> None:
        context = forks()
        (out, out_end), (err, err_end) = context.Pipe(False), context.Pipe(False)
        setting = _Setting(
            args=args,
            cwd=str(cwd or Path.cwd()),
            env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **(env or {})},
            ignored=ctrl_c is signal.SIG_IGN,
        )
        self.args = args
        self._process = context.Process(target=_main, args=(setting, out_end, err_end))
        self._process.start()
        for end in (out_end, err_end):
            end.close()
        self.stdout, self.stderr = _lines_of(out), _lines_of(err)

    @property
    def returncode(self) -> int | None:
        """The exit code, None while it runs, -9 if it was killed."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()

    def wait(self, *, timeout: float) -> int | None:
        """Return the exit code, or raise `subprocess.TimeoutExpired`."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self._process.exitcode

    def communicate(self, *, timeout: float) -> tuple[str, str]:
        """Return what it printed from here to its end on stdout and on stderr."""
        printed = ["", ""]

        def read(at: int, stream: IO[str]) -> None:
            printed[at] = stream.read()

        threads = [
            threading.Thread(target=read, args=pair)
            for pair in enumerate((self.stdout, self.stderr))
        ]
        for thread in threads:
            thread.start()
        try:
            self.wait(timeout=timeout)
        finally:
            self.kill()
            for thread in threads:
                thread.join()
            self.stdout.close()
            self.stderr.close()
        return printed[0], printed[1]


def run_command(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `python -m largebatch` to its end."""
    return _ended([Command(*args, cwd=cwd)])


def torchrun(*args: str, cwd: Path, restarts: int = 0) -> subprocess.CompletedProcess[str]:
    """Run `python -m largebatch` on two ranks that torchrun itself starts, which takes seconds."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    more = ["--max-restarts", str(restarts), "-m", "largebatch"]
    return run_program(*launcher, *more, *args, cwd=cwd, path=str(cwd))


def run_command_on_ranks(*args: str, cwd: Path, ranks: int = 2) -> subprocess.CompletedProcess[str]:
    """Run `python -m largebatch` on ranks that find one another as torchrun's do."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {
        "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    return _ended(
        [
            Command(*args, cwd=cwd, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(ranks)
        ]
    )


def _ended(commands: Sequence[Command]) -> subprocess.CompletedProcess[str]:
    printed = [command.communicate(timeout=SECONDS) for command in commands]
    return subprocess.CompletedProcess(
        commands[0].args,
        next((c.returncode for c in commands if c.returncode), 0),
        "".join(out for out, _ in printed),
        "".join(err for _, err in printed),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Setting:
    args: tuple[str, ...]
    cwd: str
    env: dict[str, str]
    ignored: bool


def _lines_of(end: Connection) -> IO[str]:
    stream = os.fdopen(os.dup(end.fileno()), "r")
    end.close()
    return stream


def _main(setting: _Setting, out: Connection, err: Connection) -> None:
    for end, number in ((out, 1), (err, 2)):
        os.dup2(end.fileno(), number)
        end.close()
    os.environ.clear()
    os.environ.update(setting.env)
    os.chdir(setting.cwd)
    sys.path.insert(0, setting.cwd)
    sys.argv = ["largebatch", *setting.args]
    signal.signal(signal.SIGINT, signal.SIG_IGN if setting.ignored else signal.default_int_handler)
    runpy.run_module("largebatch", run_name="__main__", alter_sys=True)
