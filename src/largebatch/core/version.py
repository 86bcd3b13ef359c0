"""Store the version of the package. The packaging and the header of a record read the version from
this file.
"""

__version__ = "0.2.0.dev0"
