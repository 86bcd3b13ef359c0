"""The old place of the workloads: `largebatch.workbench.workloads` since version 0.2."""

import warnings

from largebatch.workbench.workloads import *  # noqa: F403

warnings.warn(
    "largebatch.workloads has moved. Use largebatch.workbench.workloads. The old name will be "
    "removed in version 0.3.",
    DeprecationWarning,
    stacklevel=2,
)
