"""What a run saves of itself, and how it goes on from there."""

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
"""Of what a checkpoint of `largebatch train` holds."""

KEYS = {
    "version", "largebatch", "run", "model", "optimizer", "control", "log", "random", "seconds",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """Where and how often a run is saved.

    Args:
        checkpoints: the directory.
        every: an interval in one unit; a budget of that length.
        resume: whether to go on from the newest checkpoint, if there is one.
        on_stop: called when a signal asks the run to stop, before the step in hand is done.
    """

    checkpoints: Checkpoints
    every: Budget
    resume: bool = False
    on_stop: Callable[[], None] | None = None


class Saver:
    """Saves a run and restores it. What is random in training is restored with the rank that drew
    it; on another number of ranks it is seeded anew from the place in the data.

    Args:
        saving: where and how often.
        spec: what runs; a checkpoint of another run is refused.
        facts: of the data; other data's checkpoint is refused.
        process: device and ranks.
        model: bare.
        optimizer: of the model.
        control: of the run.
        log: its curve and sums.
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
        """Whether the last step passed the interval."""
        every = self.saving.every
        return self.control.every(**{every.unit: every.amount})

    def save(self) -> Path | None:
        """Saves the run between two steps; the file on the first rank. Every rank calls it."""
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
        """Goes on from the newest whole checkpoint; None where there is none yet. Every rank calls
        it and reads the same file, so all must see the directory.

        Raises:
            CheckpointError: another run's checkpoint, or none that is whole.
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
                f"{checkpoint.path} does not fit this model and optimizer ({error!s:.200}). "
                "Build them as they were, or start a new run in another directory."
            ) from error
        self.log.seconds_before = state["seconds"]
        self._restore_random(state["random"])
        return checkpoint

    def _anything(self) -> bool:
        """Whether there is a checkpoint, as the first rank sees it."""
        there = [bool(self.saving.checkpoints.paths)]
        if self.process.ranks > 1:
            dist.broadcast_object_list(there, src=0, device=self.process.device)
        return there[0]

    def _check(self, state: Mapping[str, Any], path: Path) -> None:
        if state.get("version") != VERSION or set(state) != KEYS:
            raise CheckpointError(
                f"{path} is no checkpoint of this version of largebatch train (it was written by "
                f"{state.get('largebatch', 'another program')}). Start a new run in another "
                "directory: --checkpoint other"
            )
        there = state["run"]
        if not isinstance(there, Mapping):
            raise CheckpointError(f"{path} is damaged: it does not say what runs.")
        # of an earlier version's rule the control's state knows what it means today
        earlier = {"rule"} if state["largebatch"] != __version__ else set()
        for name, value in self.run.items():
            if name not in earlier and there.get(name) != value:
                raise CheckpointError(
                    f"{path} is of another run: its {name} is {there.get(name)}, here it is "
                    f"{value}. Repeat the command as it was, or start a new run in another "
                    "directory: --checkpoint other"
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
