"""Bindings: the command line, the shipped experiments."""
