"""The command line: ``nas``, and the same as ``kubectl nas``."""
