"""What ends a run early and is no fault of the library."""

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
