"""Collect the errors that `largebatch` raises while training, such as `lb.errors.NotFinite`."""

from largebatch.core.errors import CheckpointError as CheckpointError
from largebatch.core.errors import LargeBatchError as LargeBatchError
from largebatch.core.errors import MicroBatchMissed as MicroBatchMissed
from largebatch.core.errors import NotFinite as NotFinite
from largebatch.core.errors import NoVariance as NoVariance
from largebatch.core.errors import RanksDisagree as RanksDisagree
from largebatch.core.errors import RecordError as RecordError
from largebatch.core.errors import Stopped as Stopped
