"""`watch`: measures the gradient noise of a loop that stays as it is."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from largebatch.act.attached import Attached
from largebatch.act.guards import check_parts
from largebatch.analysis.noise import NoiseEstimate, NotEnough, estimate_noise
from largebatch.measure.meter import Meter
from largebatch.measure.observer import Observer
from largebatch.record import MemoryRecord
from largebatch.rules import Observe


class Watch:
    """Shows the gradient noise of a training loop; `watch` builds it, `print` prints it.

    Mutable: gathers a pair of numbers per step.
    """

    def __init__(self, control: Attached, record: MemoryRecord) -> None:
        self.control = control
        self._record = record

    @property
    def series(self) -> list[tuple[float, float]]:
        """(variance of one sample, squared norm of the true gradient) of the last steps."""
        return [
            (seen.moments.variance, seen.moments.sqnorm)
            for seen, _ in self._record.steps
            if seen.finite and seen.moments is not None
        ]

    @property
    def estimate(self) -> NoiseEstimate | NotEnough:
        """The noise scale in samples with its 95 % interval, or why there is none yet."""
        return estimate_noise(self.series)

    def close(self) -> None:
        """Takes every hook off model and optimizer; the numbers stay."""
        self.control.close()

    def __str__(self) -> str:
        return str(self.estimate)


def watch(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    batch_size: int,
    micro_batches: int | None = None,
    meter: Meter | None = None,
    steps: int = 2000,
) -> Watch:
    """Measures the gradient noise of a loop that stays as it is, and acts on nothing.

        noise = lb.watch(model, optimizer, batch_size=512)
        ...                                          # train as before
        print(noise)                                 # noise scale 1240 [980, 1610] samples (...)

    Args:
        model: bare, or in DistributedDataParallel when several processes share the batch.
        optimizer: any torch optimizer.
        batch_size: samples of one optimizer step, over all ranks and micro-batches.
        micro_batches: as in `attach`.
        meter: how gradients are measured; None is `Meter(model)`.
        steps: how many of the last steps are kept.

    Raises:
        ValueError: parts that do not fit together, before any training step.
    """
    check_parts(model, optimizer, None)
    if batch_size < 1:
        raise ValueError(f"batch_size is a number of samples, at least 1; got {batch_size!r}.")
    meter = meter or Meter(model)
    record = MemoryRecord(maxlen=steps)
    control = Attached(
        optimizer,
        Observe(),
        Observer(meter, batch_size=batch_size, micro_batches=micro_batches),
        base_batch_size=batch_size,
        record=record,
    )
    return Watch(control, record)
