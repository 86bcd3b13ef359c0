"""Store the version of the package. The packaging and a record's header read it from this file."""

__version__ = "0.2.0.dev0"
