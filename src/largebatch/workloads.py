"""Keep the old import `largebatch.workloads` working until version 0.3 removes it."""

import pkgutil
import sys
import warnings
from importlib import import_module

from largebatch.workbench import workloads as _today

for _module in pkgutil.iter_modules(_today.__path__):
    sys.modules[f"{__name__}.{_module.name}"] = import_module(f"{_today.__name__}.{_module.name}")

globals().update({name: value for name, value in vars(_today).items() if name[0] != "_"})

warnings.warn(
    "largebatch.workloads has moved. Use largebatch.workbench.workloads. The name "
    "largebatch.workloads will be removed in version 0.3.",
    DeprecationWarning,
    stacklevel=2,
)
