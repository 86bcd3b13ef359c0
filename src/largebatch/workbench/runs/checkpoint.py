"""Save a run in checkpoints and resume the run from the newest checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from largebatch.act.controller import Controller
from largebatch.act.stream import seed_of
from largebatch.core.codec import encode
from largebatch.core.errors import CheckpointError
from largebatch.core.measurement import Budget
from largebatch.core.version import __version__
from largebatch.measure.random_state import set_torch_random_states, torch_random_states
from largebatch.record import Checkpoint, Checkpoints
from largebatch.workbench.runs.distributed import Process
from largebatch.workbench.runs.run_log import RunLog
from largebatch.workbench.runs.run_spec import RunSpec

VERSION = 3
"""Format version of the checkpoints that `largebatch train` writes."""

KEYS = {
    "version", "largebatch", "run", "model", "optimizer", "control", "log", "random", "seconds",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """Describe where and how often a run is saved.

    Args:
        checkpoints: Directory of the checkpoints.
        every: Interval between two checkpoints, as a number of samples, steps or base steps.
        resume: Whether to resume from the newest checkpoint if the directory holds a checkpoint.
        on_stop: Function that is called when a signal asks the run to stop, before the current
            training step is finished.
    """

    checkpoints: Checkpoints
    every: Budget
    resume: bool = False
    on_stop: Callable[[], None] | None = None


class Saver:
    """Save a run and restore it.

    Each rank's random state is restored on the same rank. If the number of ranks has changed, the
    random generators are seeded again from the run's seed and its position in the data.

    Args:
        saving: Directory of the checkpoints and interval between them.
        spec: Settings of the run. A checkpoint is rejected if the settings in the checkpoint differ
            from the settings of the run.
        facts: Facts about the data. A checkpoint is rejected if the facts in the checkpoint differ
            from the facts of the run.
        process: Device of this process, and its rank.
        model: Model without its DistributedDataParallel wrapper.
        optimizer: Optimizer of the model.
        control: Controller of the run.
        log: Validation curve and sums of the run.
    """

    def __init__(
        self,
        saving: Saving,
        *,
        spec: RunSpec,
        facts: Mapping[str, Any],
        process: Process,
        model: nn.Module,
        optimizer: Optimizer,
        control: Controller,
        log: RunLog,
    ) -> None:
        self.saving, self.process, self.seed = saving, process, spec.seed
        self.model, self.optimizer, self.control, self.log = model, optimizer, control, log
        run = {
            **spec.facts,
            "rule": spec.whole_rule,
            "budget": spec.budget,
            "evaluations": spec.evaluations,
            "max_micro_batch_size": spec.max_micro_batch_size,
            "data": {name: str(fact) for name, fact in facts.items()},
        }
        self.run = {
            name: json.dumps(encode(value, kind=name == "rule"), sort_keys=True)
            for name, value in run.items()
        }

    @property
    def due(self) -> bool:
        """Return whether the last training step completed an interval between checkpoints."""
        every = self.saving.every
        return self.control.every(**{every.unit: every.amount})

    def save(self) -> Path | None:
        """Save the run between two training steps and return the path of the checkpoint.

        Every rank must call this method. The first rank writes the file; the other ranks return
        None.
        """
        random = self._random()
        if not self.process.leader:
            return None
        state = {
            "version": VERSION,
            "largebatch": __version__,
            "run": self.run,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "control": self.control.state_dict(),
            "log": self.log.state_dict(),
            "random": random,
            "seconds": self.log.seconds,
        }
        return self.saving.checkpoints.save(state, step=self.control.optimizer_steps)

    def resume(self) -> Checkpoint | None:
        """Restore the run from the newest intact checkpoint and return the checkpoint.

        The result is None if the directory holds no checkpoint. Every rank must call this method
        and must be able to read the directory.

        Raises:
            CheckpointError: The checkpoint is of another run, or no checkpoint is intact.
        """
        if not self.saving.resume or not self._anything():
            return None
        checkpoint = self.saving.checkpoints.load()
        state = checkpoint.state
        self._check(state, checkpoint.path)
        self.control.load_state_dict(state["control"])
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.log.load_state_dict(state["log"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"The checkpoint {checkpoint.path} does not match this model and optimizer "
                f"({error!s:.200}). Build the model and the optimizer as they were when the "
                "checkpoint was saved, or start a new run in another directory: "
                "checkpoint='other'."
            ) from error
        self.log.seconds_before = state["seconds"]
        self._restore_random(state["random"])
        return checkpoint

    def _anything(self) -> bool:
        """Return whether the first rank finds a checkpoint in the directory."""
        there = [bool(self.saving.checkpoints.paths)]
        if self.process.ranks > 1:
            dist.broadcast_object_list(there, src=0, device=self.process.device)
        return there[0]

    def _check(self, state: Mapping[str, Any], path: Path) -> None:
        if state.get("version") != VERSION or set(state) != KEYS:
            raise CheckpointError(
                f"{path} was written by {_writer(state)}, and this version of largebatch cannot "
                "resume the run from this file. Start a new run in another directory: "
                "checkpoint='other'."
            )
        there = state["run"]
        if not isinstance(there, Mapping):
            raise CheckpointError(
                f"The checkpoint {path} is corrupted: its settings of the run are missing. Delete "
                "the file; the run is then resumed from the previous checkpoint."
            )
        # A rule of an earlier version may be written in another way. The state of the controller
        # translates it, so the rule is not compared here.
        earlier = {"rule"} if state["largebatch"] != __version__ else set()
        for name, value in self.run.items():
            if name not in earlier and there.get(name) != value:
                raise CheckpointError(
                    f"The checkpoint {path} is of a run with other settings: {name} is "
                    f"{there.get(name)} in the checkpoint and {value} in this run. Resume with "
                    "the settings of the checkpoint, or start a new run in another directory: "
                    "checkpoint='other'."
                )

    def _random(self) -> list[dict[str, Any]]:
        cpu, *device = torch_random_states(self.process.accelerators)
        mine = {"cpu": cpu, "device": device[0] if device else None}
        if self.process.ranks == 1:
            return [mine]
        everyone: list[Any] | None = [None] * self.process.ranks if self.process.leader else None
        dist.gather_object(mine, everyone, dst=0)
        return everyone or []

    def _restore_random(self, states: list[dict[str, Any]]) -> None:
        if len(states) != self.process.ranks:
            drawn = seed_of("training", self.seed, self.process.rank)
            torch.manual_seed(seed_of("resumed", drawn, self.control.samples))
            return
        mine = states[self.process.rank]
        own = [] if mine["device"] is None else self.process.accelerators
        set_torch_random_states([mine["cpu"], mine["device"]][: 1 + len(own)], own)


def _writer(state: Mapping[str, Any]) -> str:
    """Return the name of the program that wrote a checkpoint."""
    return f"largebatch {state['largebatch']}" if "largebatch" in state else "another program"
