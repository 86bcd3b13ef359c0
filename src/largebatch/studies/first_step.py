"""Check a run while it takes its first step."""

from __future__ import annotations

from typing import Any

from largebatch.act.controller import Controller
from largebatch.checks.checked_run import CheckedRun, Loss
from largebatch.checks.data import compare_ranks
from largebatch.checks.finding import Finding, merged
from largebatch.checks.gradients import check_unused
from largebatch.checks.losses import COARSE, check_mean
from largebatch.checks.models import check_dropout, check_modes, check_norms, check_parameters
from largebatch.checks.samples import fingerprint, samples_in
from largebatch.measure.meter import Meter
from largebatch.measure.parameters import bare
from largebatch.measure.random_state import accelerators_of, keep_random_state


class FirstStepChecks:
    """Check a run during its first step; every rank calls the checks in the same order.

    This class is mutable: it remembers the micro-batches that it saw.

    Args:
        control: Controller of the run.
        meter: Meter of the run.
        loss: Loss function of the user.
    """

    def __init__(self, control: Controller, meter: Meter, loss: Loss) -> None:
        self.subject = CheckedRun(
            model=meter.model,
            optimizer=control.optimizer,
            meter=meter,
            decider=control.decider,
            scaler=None,
            loss=loss,
            micro_batches=(),
            accumulation=1,
            batches=control.batches,
        )
        self.loss = loss
        self._fingerprints: list[int] = []
        self._size: int | None = None

    def check_micro_batch(self, micro_batch: Any) -> list[Finding]:
        """Check, before the first backward call, that the loss is a mean; remember the samples.

        Raises:
            ValueError: The loss is a sum, or the samples cannot be counted.
        """
        first = not self._fingerprints
        found = self._check_loss(micro_batch) if first else []
        self._fingerprints.append(fingerprint(micro_batch))
        return found

    def check_gradients(self) -> list[Finding]:
        """Check, after the last backward call, for repeated samples and parameters without a
        gradient.
        """
        facts = {"micro-batches": self._fingerprints}
        found = compare_ranks(self.subject.meter.ranks.gather(facts))
        return found + self._merged(check_unused(self.subject))

    def check_model(self) -> list[Finding]:
        """Check parameters, training mode, batch normalization and dropout."""
        model = bare(self.subject.model)
        found = check_parameters(self.subject)
        found += check_norms(
            model,
            micro_batch=self._size,
            base=self.subject.decider.base_batch_size,
            ranks=self.subject.ranks,
        )
        return self._merged(found + check_dropout(model) + check_modes(self.subject))

    def _check_loss(self, micro_batch: Any) -> list[Finding]:
        self._size = samples_in(micro_batch)
        model = bare(self.subject.model)
        try:
            with keep_random_state(accelerators_of(model)):
                own = check_mean(model, self.loss, micro_batch, close=COARSE)
        except Exception as error:  # the user's loss function may not accept pieces of a batch
            cause = f"{type(error).__name__}: {error}".rstrip(": ")
            seen = (
                "The check that the loss is a mean could not run, because the loss function "
                f"raised {cause}"
            )
            own = [Finding(name="mean loss", level="note", seen=seen)]
        found = self._merged(own)
        for finding in found:
            if finding.name == "mean loss" and finding.level == "error":
                raise ValueError(f"{finding.seen} {finding.why} {finding.remedy}")
        return found

    def _merged(self, own: list[Finding]) -> list[Finding]:
        return merged(self.subject.meter.ranks.gather(own))
