"""The package's version, where the packaging and a record's header find it without a cycle."""

__version__ = "0.1.0"
