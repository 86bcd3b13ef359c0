"""The errors of a broken contract at run time; a bad argument is a plain `ValueError`.

Every message says the cause, the remedy and, where one exists, a line to paste.
"""


class LargeBatchError(Exception):
    """The base of every error that `largebatch` raises while training."""


class MicroBatchMissed(LargeBatchError):
    """A step was closed before each of its micro-batches was seen exactly once."""


class RanksDisagree(LargeBatchError):
    """Two ranks hold different settings or took different decisions."""


class NotFinite(LargeBatchError):
    """The loss or the gradient was NaN or infinite and training cannot go on."""


class NoVariance(LargeBatchError):
    """A step gave fewer than two independent gradients, so their variance is unknown."""


class CheckpointError(LargeBatchError):
    """A saved state is damaged, cannot be written, or belongs to another run."""


class Stopped(LargeBatchError):
    """A run was stopped by a signal after a whole step, and saved."""

    signal: int = 2


class RecordError(LargeBatchError):
    """A record cannot be written or read, or a stored value does not fit its class."""
