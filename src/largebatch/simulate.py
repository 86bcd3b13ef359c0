"""Keep the old import `largebatch.simulate` working until version 0.3 removes it."""

import pkgutil
import sys
import warnings
from importlib import import_module

from largebatch.workbench import quadratic as quadratic

sys.modules[f"{__name__}.quadratic"] = quadratic
for _module in pkgutil.iter_modules(quadratic.__path__):
    _place = f"{quadratic.__name__}.{_module.name}"
    sys.modules[f"{__name__}.quadratic.{_module.name}"] = import_module(_place)

warnings.warn(
    "largebatch.simulate has moved. Use largebatch.workbench. The name largebatch.simulate will be "
    "removed in version 0.3.",
    DeprecationWarning,
    stacklevel=2,
)
