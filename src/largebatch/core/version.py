"""The package's version, where the packaging and a record's header find it without a cycle."""

__version__ = "0.2.0.dev0"
