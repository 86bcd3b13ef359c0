"""Define the decision that rules make from a measurement."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from largebatch.core.codec import LATER


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Hold a rule's decision: learning rate, next batch size, base steps, and what to measure next.

    Each rule of a chain refines the decision of the rule before it. A decision is made after the
    last backward call of a training step and before `optimizer.step`. The fields `lr_multiplier`
    and `base_steps` apply to the current training step. The fields `next_batch_size` and
    `measure_next` apply to the next training step.

    >>> d = Decision(next_batch_size=64, base_steps=1.0)
    >>> d.scaled(2.0, because="linear").lr_multiplier
    2.0

    Args:
        next_batch_size: Batch size of the next training step, in samples over all ranks; at least
            1.
        lr_multiplier: Factor for the learning rate of every parameter group in this optimizer step.
        base_steps: Number of base steps that this training step counts as; at least 0.
        measure_next: Names of the statistics to measure in the next training step.
        reason: Short explanation of the decision for the user.
        notice: Warning for the user, in whole sentences. Rank 0 gives a RuntimeWarning with this
            text. A rule should set `notice` in only one training step of a run.
    """

    next_batch_size: int
    base_steps: float
    lr_multiplier: float = 1.0
    measure_next: frozenset[str] = frozenset()
    reason: str = ""
    notice: str = field(default="", metadata=LATER)

    def scaled(self, factor: float, *, because: str = "") -> Decision:
        """Return this decision with its learning-rate multiplier multiplied by `factor`.

        Args:
            factor: Factor for `lr_multiplier`.
            because: Text to append to `reason`.
        """
        if factor == 1.0 and not because:
            return self
        return self.rated(self.lr_multiplier * factor, because=because)

    def rated(self, lr_multiplier: float, *, because: str = "") -> Decision:
        """Return this decision with a new learning-rate multiplier.

        Args:
            lr_multiplier: New factor for the learning rate of every parameter group.
            because: Text to append to `reason`.
        """
        return Decision(  # twice as fast as dataclasses.replace
            next_batch_size=self.next_batch_size,
            base_steps=self.base_steps,
            lr_multiplier=lr_multiplier,
            measure_next=self.measure_next,
            reason=join(self.reason, because),
            notice=self.notice,
        )

    def resized(self, batch_size: int, *, because: str = "") -> Decision:
        """Return this decision with a new size for the next batch.

        Args:
            batch_size: Batch size of the next training step, in samples over all ranks.
            because: Text to append to `reason`.
        """
        return Decision(
            next_batch_size=batch_size,
            base_steps=self.base_steps,
            lr_multiplier=self.lr_multiplier,
            measure_next=self.measure_next,
            reason=join(self.reason, because),
            notice=self.notice,
        )

    def measuring(self, names: frozenset[str]) -> Decision:
        """Return this decision with new names of the statistics to measure in the next training
        step.

        Args:
            names: Names of the statistics, from `STATISTICS`.
        """
        return Decision(
            next_batch_size=self.next_batch_size,
            base_steps=self.base_steps,
            lr_multiplier=self.lr_multiplier,
            measure_next=names,
            reason=self.reason,
            notice=self.notice,
        )

    def noticed(self, notice: str) -> Decision:
        """Return this decision with one more warning for the user. An empty text adds no warning.

        Args:
            notice: Warning in whole sentences.
        """
        if not notice:
            return self
        return replace(self, notice=f"{self.notice} {notice}".lstrip())


def join(reason: str, more: str) -> str:
    """Return two reasons as one text, separated by a semicolon.

    >>> join("gain 3.1", ""), join("gain 3.1", "capped")
    ('gain 3.1', 'gain 3.1; capped')
    """
    if not reason or not more:
        return reason or more
    return f"{reason}; {more}"
