"""Define the errors that `largebatch` raises while training. A bad argument raises `ValueError`.

Every message names the cause and the fix and, if possible, shows a line to paste.
"""


class LargeBatchError(Exception):
    """Base class of every error that `largebatch` raises while training.

    >>> try:
    ...     raise NotFinite("The loss was NaN in 20 training steps in a row.")
    ... except LargeBatchError as error:
    ...     print(error)
    The loss was NaN in 20 training steps in a row.
    """


class MicroBatchMissed(LargeBatchError):
    """Report that an optimizer step began before every micro-batch was measured exactly once.

    >>> issubclass(MicroBatchMissed, LargeBatchError)
    True
    """


class RanksDisagree(LargeBatchError):
    """Report that two ranks have different settings or made different decisions.

    >>> issubclass(RanksDisagree, LargeBatchError)
    True
    """


class NotFinite(LargeBatchError):
    """Report that training cannot continue because the loss or the gradient was NaN or infinite.

    >>> issubclass(NotFinite, LargeBatchError)
    True
    """


class NoVariance(LargeBatchError):
    """Report that a training step gave fewer than two independent gradients.

    The variance of the gradient is unknown for a step with fewer than two gradients.

    >>> issubclass(NoVariance, LargeBatchError)
    True
    """


class CheckpointError(LargeBatchError):
    """Report that a saved state is corrupted, cannot be written, or belongs to another run.

    >>> issubclass(CheckpointError, LargeBatchError)
    True
    """


class Stopped(LargeBatchError):
    """Report that a signal stopped the run after a complete training step. The run was saved.

    >>> Stopped("The run was stopped.").signal
    2
    """

    signal: int = 2
    """Number of the signal that stopped the run; 2 is SIGINT (Ctrl+C)."""


class RecordError(LargeBatchError):
    """Report that a record cannot be written or read, or that a stored value has the wrong type.

    >>> import largebatch as lb
    >>> try:
    ...     lb.read_record("missing.jsonl")
    ... except lb.errors.RecordError as error:
    ...     print(type(error).__name__)
    RecordError
    """
