"""Errors that end a run early and are no fault of the library."""

from __future__ import annotations


class UserError(ValueError):
    """Something in a configuration, its data or its models that the user can put right."""


class Stopped(Exception):  # noqa: N818
    """A signal ended a run, whose checkpoint is saved.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


def not_installed(package: str | None, what: str, extra: str) -> str:
    """A message about a package that `what` needs and that is not installed."""
    return f"{package} is not installed; {what} needs pip install 'opdf[{extra}]' (in a clone: '.[{extra}]')"
