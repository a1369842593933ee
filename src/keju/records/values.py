"""What the values of a JSON row are: texts, lists, marks of true and false; what is wrong is said by a UserError.

`name` is what a message calls the value ("\\"prompt\\"", "turn 2 of \\"messages\\"").
"""

from __future__ import annotations

import math
from typing import Any

from keju.errors import UserError

TRUE = {"true", "1", "1.0", "yes", "y", "t", "good", "desirable"}
FALSE = {"false", "0", "0.0", "no", "n", "f", "bad", "undesirable"}
NOTHING = {"", "[]", "{}", "null", "none", "nan"}  # cells of tables that hold no value


def kind_of(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bytes: "bytes", bool: "true or false"}
    kinds |= {type(None): "null"}
    return kinds.get(type(value), "a number")


def is_absent(value: Any) -> bool:
    """Null, or NaN: what tables hold where a row has no such field."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def present(row: dict[str, Any]) -> dict[str, Any]:
    """The fields that are not null, as JSON and merged tables write absent ones."""
    return {name: value for name, value in row.items() if not is_absent(value)}


def without_nulls(value: Any) -> Any:
    """The value without the null fields of all its objects, however deep they lie."""
    if isinstance(value, dict):
        return {name: without_nulls(field) for name, field in value.items() if field is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def is_blank(value: Any) -> bool:
    """Null, nothing but spaces, or an empty list or object. The word "null" in a text is a word."""
    return not value.strip() if isinstance(value, str) else is_absent(value) or value in ([], {})


def says_nothing(value: Any) -> bool:
    """Whether there is nothing in it: null, an empty text or list, and lists of nothing else."""
    pending = [value]  # nested lists may be deeper than Python's stack
    while pending:
        item = pending.pop()
        if isinstance(item, list | tuple):
            pending += item
        elif isinstance(item, str):
            if item.strip().lower() not in NOTHING:
                return False
        elif not is_absent(item) and item != {}:
            return False
    return True


def listed(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise UserError(f"{name} must be a list, found {kind_of(value)}")
    return value


def string(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{name} must be a string, found {kind_of(value)}")
    try:  # JSON can escape half of a surrogate pair, which no tokenizer takes
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{name} holds a broken character (half of a surrogate pair)") from error
    return value


def filled(value: Any, name: str) -> str:
    if not string(value, name).strip():
        raise UserError(f"{name} is empty")
    return value


def number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{name} must be a number, found {kind_of(value)}")
    try:
        finite = math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        finite = False
    if not finite:
        raise UserError(f"{name} is not a finite number")
    return float(value)


def truth(value: Any, name: str) -> bool:
    """True or false, as JSON, tables and people write it."""
    text = str(value).strip().lower() if isinstance(value, str | bool | int | float) else ""
    if text not in TRUE | FALSE:
        found = repr(value)[:40] if text else kind_of(value)
        raise UserError(f"{name} must be true or false (or 1 or 0, yes or no), found {found}")
    return text in TRUE
