"""Running averages as values: how much of the past to keep is said at each step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from largebatch.core.measurement import GradientMoments

Averaging = Literal["ema", "mean-then-ema"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Average:
    """A running mean of numbers that are always seen together.

    `weight` is the total weight of what was seen, below 1 while an exponential average is young:
    dividing by it removes the pull of the start (bias correction), for any history of `keep`.

    >>> a = Average.empty(1).ema((4.0,), keep=0.5).ema((8.0,), keep=0.5)
    >>> round(a.values[0], 6)
    6.666667
    """

    values: tuple[float, ...]
    weight: float = 0.0
    count: int = 0

    @classmethod
    def empty(cls, width: int) -> Average:
        """Nothing seen yet, for `width` numbers."""
        return cls(values=(0.0,) * width)

    def ema(self, seen: tuple[float, ...], *, keep: float) -> Average:
        """Exponential average, bias-corrected: the past is kept with weight `keep` in [0, 1]."""
        weight = keep * self.weight + (1.0 - keep)
        return self._moved(seen, step=(1.0 - keep) / weight if weight else 1.0, weight=weight)

    def mean_then_ema(self, seen: tuple[float, ...], *, keep: float) -> Average:
        """Plain mean while fewer than 1 / (1 - keep) were seen, exponential average afterwards.

        Reference: Johnson et al., AdaScale SGD, 2020, arXiv 2007.05105.
        """
        return self._moved(seen, step=max(1.0 / (self.count + 1), 1.0 - keep), weight=1.0)

    def _moved(self, seen: tuple[float, ...], *, step: float, weight: float) -> Average:
        pairs = zip(self.values, seen, strict=True)
        values = tuple([old + step * (new - old) for old, new in pairs])  # faster than a generator
        return Average(values=values, weight=weight, count=self.count + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class MovingMoments:
    """Running averages of (variance of one sample, squared norm), which no batch size enters.

    A rough temporal estimate is forgotten as soon as a true one is there.

    Args:
        average: of the two numbers.
        measured_at: the step of the last measurement.
        temporal: whether temporal estimates are in it.
    """

    average: Average = field(default_factory=lambda: Average.empty(2))
    measured_at: int = 0
    temporal: bool = False

    @property
    def known(self) -> bool:
        """Whether anything was measured."""
        return self.average.count > 0

    def add(
        self,
        moments: GradientMoments,
        *,
        variance: float,
        sqnorm: float,
        step: int,
        window: float,
        averaging: Averaging = "ema",
    ) -> MovingMoments:
        """The averages with one more measurement in them.

        Args:
            moments: what was measured; its parts say how much it counts.
            variance, sqnorm: those of the moments, or what a rule makes of them.
            step: optimizer steps taken before this one.
            window: length of the average in small gradients: max(1 - small gradients / window, 0)
                of the past is kept, where steps without a measurement count like measured ones.
            averaging: "ema" or "mean-then-ema", as the methods of `Average`.
        """
        temporal = moments.source == "temporal"
        past = MovingMoments() if self.temporal and not temporal else self
        gap = step - past.measured_at if past.known else 1
        keep = max(1.0 - moments.parts * gap / window, 0.0)
        add = past.average.ema if averaging == "ema" else past.average.mean_then_ema
        return MovingMoments(
            average=add((variance, sqnorm), keep=keep), measured_at=step, temporal=temporal
        )
