"""The old place of the noisy quadratic: `largebatch.workbench.quadratic` since version 0.2."""

import warnings

from largebatch.workbench import quadratic as quadratic

warnings.warn(
    "largebatch.simulate has moved. Use largebatch.workbench. The old name will be removed in "
    "version 0.3.",
    DeprecationWarning,
    stacklevel=2,
)
