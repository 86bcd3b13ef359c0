"""What to do about a measurement."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from largebatch.core.codec import LATER


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One step's decision, refined by each rule of a chain in turn.

    Timing: deciding happens between the last backward and `optimizer.step`. `lr_multiplier`
    applies to the gradient in hand, `next_batch_size` and `measure_next` to the step after it.

    >>> d = Decision(next_batch_size=64, base_steps=1.0)
    >>> d.scaled(2.0, because="linear").lr_multiplier
    2.0

    Args:
        next_batch_size: samples of the next step, over all ranks; at least 1.
        lr_multiplier: factor on every group's learning rate in this optimizer step.
        base_steps: how many steps of the base batch this step is worth; 0 or more.
        measure_next: names of the statistics wanted in the next step.
        reason: why, in a user's words.
        notice: what a rule asks the user to know or to do, in whole sentences. It is said once, so
            a rule gives it in one step of a run; the first rank warns of it.
    """

    next_batch_size: int
    base_steps: float
    lr_multiplier: float = 1.0
    measure_next: frozenset[str] = frozenset()
    reason: str = ""
    notice: str = field(default="", metadata=LATER)

    def scaled(self, factor: float, *, because: str = "") -> Decision:
        """This decision with the learning rate times `factor`."""
        if factor == 1.0 and not because:
            return self
        return self.rated(self.lr_multiplier * factor, because=because)

    def rated(self, lr_multiplier: float, *, because: str = "") -> Decision:
        """This decision with another factor on the learning rate."""
        return Decision(  # twice as fast as dataclasses.replace
            next_batch_size=self.next_batch_size,
            base_steps=self.base_steps,
            lr_multiplier=lr_multiplier,
            measure_next=self.measure_next,
            reason=join(self.reason, because),
            notice=self.notice,
        )

    def resized(self, batch_size: int, *, because: str = "") -> Decision:
        """This decision with another size for the next batch."""
        return Decision(
            next_batch_size=batch_size,
            base_steps=self.base_steps,
            lr_multiplier=self.lr_multiplier,
            measure_next=self.measure_next,
            reason=join(self.reason, because),
            notice=self.notice,
        )

    def measuring(self, names: frozenset[str]) -> Decision:
        """This decision with other statistics wanted in the next step."""
        return Decision(
            next_batch_size=self.next_batch_size,
            base_steps=self.base_steps,
            lr_multiplier=self.lr_multiplier,
            measure_next=names,
            reason=self.reason,
            notice=self.notice,
        )

    def noticed(self, notice: str) -> Decision:
        """This decision with something more that the user is to know; "" adds nothing."""
        if not notice:
            return self
        return replace(self, notice=f"{self.notice} {notice}".lstrip())


def join(reason: str, more: str) -> str:
    """Two reasons as one.

    >>> join("gain 3.1", ""), join("gain 3.1", "capped")
    ('gain 3.1', 'gain 3.1; capped')
    """
    if not reason or not more:
        return reason or more
    return f"{reason}; {more}"
