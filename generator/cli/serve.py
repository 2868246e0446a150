"""Placeholder until written."""


def serve() -> None:
    """Not there yet."""
