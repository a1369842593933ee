"""The one class of the user's mistakes; every other error is a fault of ours, and keeps its traceback."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, requires


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


@contextmanager
def renamed_options(**names: str) -> Iterator[None]:
    """In here a UserError about the option of the first name is one about that of the second.

    `with renamed_options(model_name_or_path="reward_model_path"):` for a stage with a flag of another name than the
    parameter that a function blames.
    """
    try:
        yield
    except UserError as error:
        error.option = names.get(error.option or "", error.option)
        raise


def missing_extra(error: ModuleNotFoundError) -> str:
    """What to install where a package of one of keju's extras is missing; "" for any other module."""
    name = (error.name or "").partition(".")[0].replace("_", "-").lower()
    if name == "keju":  # a module of ours, which an extra that is all the others requires as well
        return ""
    try:
        requirements = requires("keju") or []
    except PackageNotFoundError:  # the tree is on the path, and nothing is installed
        return ""
    for requirement in requirements:
        found = re.match(r"([\w.-]+).*\bextra == ['\"](\w+)", requirement)
        if found and found[1].replace("_", "-").lower() == name and found[2] not in ("test", "docs", "dev"):
            return f"the package {found[1]} is not installed: pip install 'keju[{found[2]}]'"
    return ""
