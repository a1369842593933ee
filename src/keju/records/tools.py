"""Tools that a model may call, and its calls, as JSON texts in one form: OpenAI's, with the arguments as an object.

Read are lists and JSON texts of them, whole or item by item, with and without the frame {"type", "function"}.
"""

from __future__ import annotations

import json
from typing import Any

from keju.errors import UserError
from keju.records.json_text import parsed
from keju.records.values import kind_of, present, says_nothing, string, without_nulls


def tools_text(value: Any, name: str = '"tools"') -> str:
    """ "" for no tools. Raises UserError for something that describes no function."""
    tools = []
    for place, tool in enumerate(_items(value, name), start=1):
        function = _function(tool, f"tool {place} of {name}")
        tools.append({"type": "function", "function": without_nulls(function)})
    return _text(tools)


def calls_text(value: Any, name: str) -> str:
    """ "" for no calls. Raises UserError for a call without a name, or whose arguments are no object."""
    calls = []
    for place, call in enumerate(_items(value, name), start=1):
        where = f"call {place} of {name}"
        function = _function(call, where)
        arguments = function.get("arguments", function.get("parameters", {}))
        if isinstance(arguments, str):
            arguments = _parsed(arguments, f"the arguments of {where}") if arguments.strip() else {}
        if not isinstance(arguments, dict):
            raise UserError(f"the arguments of {where} must be an object, found {kind_of(arguments)}")
        identity = {"id": string(call["id"], f'"id" of {where}')} if isinstance(call, dict) and call.get("id") else {}
        framed = {"name": function["name"], "arguments": arguments}
        calls.append({**identity, "type": "function", "function": framed})
    return _text(calls)


def joined_calls(one: str, other: str) -> str:
    return _text([*json.loads(one or "[]"), *json.loads(other or "[]")])


def name_of_call(calls: str, identity: str) -> str | None:
    """The tool that the call with this id calls: "" where the calls have no ids, None where none has this one."""
    found = json.loads(calls or "[]")
    if not all("id" in call for call in found):
        return ""
    return next((call["function"]["name"] for call in found if call["id"] == identity), None)


def _items(value: Any, name: str) -> list[Any]:
    if says_nothing(value):
        return []
    if isinstance(value, str):
        value = _parsed(value, name)
    items = value if isinstance(value, list) else [value]
    return [_parsed(item, name) if isinstance(item, str) else item for item in items]


def _function(value: Any, name: str) -> dict[str, Any]:
    """{"name", ...} of a function with or without its frame."""
    if not isinstance(value, dict):
        raise UserError(f"{name} must be an object, found {kind_of(value)}")
    value = present(value)
    function = value.get("function", value)
    function = present(function) if isinstance(function, dict) else {}
    if not isinstance(function.get("name"), str) or not function["name"].strip():
        raise UserError(f'{name} names no function (expected {{"type": "function", "function": {{"name", ...}}}})')
    if value.get("type", "function") != "function" and "function" in value:
        raise UserError(f"{name} is of the type {value['type']!r}; only functions are known")
    return function


def _parsed(text: str, name: str) -> Any:
    value = parsed(string(text, name))
    if isinstance(value, UserError):
        raise UserError(f"{name}: {value}")
    return value


def _text(items: list[Any]) -> str:
    if not items:
        return ""
    text = json.dumps(items, ensure_ascii=False)
    return string(text, "a text of the tools")
