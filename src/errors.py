"""The one class of the user's mistakes; every other error is a fault of ours, and keeps its traceback."""

from __future__ import annotations


class UserError(ValueError):
    """A wrong setting, file, checkpoint or record: said in one line, exit code 2 (see keju.training.launch).

    A broken invariant, or a wrong call of a function from Python, stays a ValueError.
    """

    def __init__(self, message: str, *, option: str | None = None) -> None:
        """
        Args:
            message: one line that says what is wrong, where (`file:line`), and what helps.
            option: the parameter whose value is wrong; it is said before the message, by stages as a flag.
        """
        super().__init__(message)
        self.option = option

    def __str__(self) -> str:
        return f"{self.option}: {self.args[0]}" if self.option else self.args[0]

    def in_flags(self) -> str:
        """The error as one who gave flags reads it."""
        return f"--{self}" if self.option else str(self)
