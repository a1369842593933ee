"""Settings of a stage: dataclasses filled from an optional YAML file and from flags; flags win.

python -m keju.train_sft [config.yaml] --learning_rate 1e-5
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import difflib
import re
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from transformers import HfArgumentParser, TrainingArguments

from keju.errors import UserError
from keju.stages.spec import stages
from keju.training.cache_folder import cache_folder
from keju.training.flag_effects import CONDITIONS, INHERITED_RANGES, SHOWN_IN_HELP, never
from keju.training.ranges import OutOfRange, Range, range_of, ranged
from keju.training.stage_arguments import (  # noqa: F401  (stages import the dataclasses from here)
    BASE_MODEL_HELP,
    ChatTrainingArguments,
    DataArguments,
    ModelArguments,
    StageTrainingArguments,
    StartArguments,
    ThinkingArguments,
    TokenCacheArguments,
    parsed_object,
    parsed_thinking,
)
from keju.training.yaml_config import CONFIGS, Setting, read_settings

_parsed: dict[str, Any] = {}


def parsed_arguments() -> Mapping[str, Any]:
    """What `parse_arguments` has read last, by name."""
    return _parsed


def parse_arguments(
    *dataclass_types: type, argv: list[str] | None = None, description: str | None = "", takes_any_config: bool = False
) -> tuple:
    """One filled instance for each dataclass, in order.

    argv: what follows the script's name (default: sys.argv[1:]): `[config.yaml]` or `--config FILE`, then flags.
    takes_any_config: the YAML file may be another stage's; of its keys those that are flags here count.
    A mistake prints one line that names the flag or the `file:line` and exits with code 2.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = make_parser(*dataclass_types, description=description, all_flags="--help_all" in argv)
    if "--help_all" in argv:
        parser.print_help()
        parser.exit(0)
    try:
        config, flags = _split_config(argv)
        settings = read_settings(config) if config else []
    except UserError as error:
        parser.error(error.in_flags())
    if takes_any_config:
        settings = [setting for setting in settings if setting.key in parser.names()]
    for setting in settings:
        parser.apply(setting)
    namespace, unknown = parser.parse_known_args(flags)
    if unknown:
        parser.error(_unknown(unknown[0], "unknown flag ", "--", parser.names()))
    _parsed.clear()
    _parsed.update(vars(namespace))
    given = {setting.key for setting in settings}
    given |= {flag[2:].split("=")[0].replace("-", "_") for flag in flags if flag.startswith("--")}
    idle = {name: found for name, found in CONDITIONS.items() if name in given and not found.holds(namespace)}
    for name, condition in idle.items():
        if condition.is_refused and getattr(namespace, name) != parser.own_defaults[name]:
            parser.error(f"--{name}: {condition.why}")
    try:
        filled = tuple(
            kind(**{f.name: getattr(namespace, f.name) for f in dataclasses.fields(kind) if f.init})
            for kind in dataclass_types
        )
    except (ValueError, FileNotFoundError) as error:  # from a dataclass's own checks
        parser.error((error.in_flags() if isinstance(error, UserError) else str(error)).splitlines()[0])
    for name, condition in idle.items():
        if not condition.is_refused:
            print(f"warning: --{name} has no effect: {condition.why}", file=sys.stderr)
    return filled


def make_parser(*dataclass_types: type, description: str | None, all_flags: bool = False) -> _Parser:
    """The parser of `parse_arguments`; all_flags: its help shows every setting of transformers, too."""
    return _Parser(dataclass_types, description=description, all_flags=all_flags)


def prog_name() -> str:
    """How the stage that runs is called: `keju sft`, whichever way it was started."""
    script = Path(sys.argv[0])
    if script.suffix != ".py":
        return script.name
    return next((f"keju {stage.name}" for stage in stages().values() if stage.script == script.stem), script.name)


class _Parser(HfArgumentParser):
    """HfArgumentParser with one-line errors, no guessed abbreviations and a help text in groups."""

    def __init__(self, dataclass_types, *, description: str | None, all_flags: bool):
        self._all_flags = all_flags
        self._hints: dict[str, Any] = {}
        self.own_defaults: dict[str, Any] = {}  # by name, before a YAML file changes them
        super().__init__(
            dataclass_types,
            prog=prog_name(),
            usage="%(prog)s [config.yaml] [--flag value ...]",
            description=re.sub(
                r"(?<=\S) {4,}", r" \\\n    ", description or ""
            ),  # where a docstring breaks a command line
            epilog="Flags win over the YAML file. A flag that is true by default is turned off by --no_<flag>."
            + ("" if all_flags else "\n--help_all also shows the settings that transformers adds."),
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument("--config", metavar="FILE", help="YAML file of settings; may also come first, without flag")
        self.add_argument("--help_all", action="store_true", help="show every flag")
        if "local_rank" not in self._hints:  # the deepspeed launcher passes it to every script
            self.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)

    def _add_dataclass_arguments(self, dtype: type) -> None:
        hints, annotated = get_type_hints(dtype), get_type_hints(dtype, include_extras=True)
        self._hints |= hints
        ours = self.add_argument_group(getattr(dtype, "_argument_group_name", dtype.__name__))
        rest = self.add_argument_group("everything else of transformers.TrainingArguments")
        inherited = {f.name for f in dataclasses.fields(TrainingArguments)} - set(SHOWN_IN_HELP)
        for field in dataclasses.fields(dtype):
            if not field.init:
                continue
            field.type = hints[field.name]
            hidden = issubclass(dtype, TrainingArguments) and field.name in inherited
            self._parse_dataclass_field(rest if hidden else ours, field)
            allowed = range_of(annotated[field.name])
            if allowed is None and issubclass(dtype, TrainingArguments):
                allowed = INHERITED_RANGES.get(field.name)
            condition = CONDITIONS.get(field.name)
            is_refused = condition is not None and condition.is_refused and condition.holds is never
            for action in self._actions:
                if action.dest != field.name:
                    continue
                negation = action.option_strings and action.option_strings[0].startswith("--no_")
                if not negation:
                    self.own_defaults[field.name] = action.default
                if negation or is_refused or (hidden and not self._all_flags):
                    action.help = argparse.SUPPRESS
                elif action.help is None:
                    action.help = " "  # so that the formatter still shows its default
                if is_refused:
                    action.type, action.choices = _lenient(action.type), None
                elif allowed is not None:
                    self._restrict(action, allowed)

    @staticmethod
    def _restrict(action: argparse.Action, allowed: Range) -> None:
        """Lets the flag take numbers of a range alone, and its help say so."""
        action.type = ranged(action.type, allowed)
        if action.help != argparse.SUPPRESS and str(allowed) != "finite":
            action.help = f"{action.help.strip().removesuffix('.')} [{allowed}]"

    def names(self) -> list[str]:
        """All flags without their dashes, in the spelling with underscores."""
        return [option[2:] for option in self._option_string_actions if re.fullmatch(r"--\w+", option)]

    def apply(self, setting: Setting) -> None:
        """Makes a YAML value the default of its flag, checked as the flag itself would be."""
        action = next((action for action in self._actions if action.dest == setting.key), None)
        if action is None or setting.key not in self._hints:
            self.error(_unknown(setting.key, f"{setting.where}: unknown key ", "", self._hints))
        if setting.texts is None:
            if not _allows_none(self._hints[setting.key]):
                self.error(f"{setting.where}: {setting.key} needs a value")
            value = None
        else:
            is_list = action.nargs == "+"
            if not is_list and len(setting.texts) != 1:
                self.error(f"{setting.where}: {setting.key} takes one value, not a list")
            if is_list and not setting.texts:
                self.error(f"{setting.where}: {setting.key} needs at least one value")
            values = [self._convert(action, text, setting) for text in setting.texts]
            value = values if is_list else values[0]
        action.required = False
        self.set_defaults(**{setting.key: value})

    def _convert(self, action: argparse.Action, text: str, setting: Setting) -> Any:
        try:
            value = action.type(text) if action.type else text
        except OutOfRange as error:
            self.error(f"{setting.where}: {setting.key}: {error}")
        except (ValueError, TypeError, argparse.ArgumentTypeError):
            kind = "true or false" if action.nargs == "?" else getattr(action.type, "__name__", "value")
            self.error(f"{setting.where}: {setting.key}: expected {kind}, got {text!r}")
        if action.choices is not None and value not in action.choices:
            choices = ", ".join(map(str, action.choices))
            self.error(f"{setting.where}: {setting.key}: {text!r} is none of {choices}")
        return value

    def error(self, message: str) -> None:
        message = re.sub(r"^argument (--\w+)\S*: ", r"\1: ", message)
        required = re.match(r"the following arguments are required: (.*)", message)
        if required:
            missing = [names.split("/")[0] for names in required[1].split(", ")]
            message = f"{', '.join(missing)} must be given (as a flag or in the YAML file)"
        self.exit(2, f"error: {message}\n")


def _lenient(convert: Callable[[str], Any] | None) -> Callable[[str], Any]:
    """`convert`, which leaves what it cannot read as it is: of an option that is refused in any case."""

    def converted(text: str) -> Any:
        try:
            return convert(text) if convert else text
        except (ValueError, TypeError, argparse.ArgumentTypeError):
            return text

    return converted


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """One name a flag, with what it expects."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=38, width=120)

    def _expand_help(self, action: argparse.Action) -> str:
        """The default of a folder as it is called, not where it is on this machine."""
        shown = copy.copy(action)
        if isinstance(action.default, str):
            for folder, name in ((str(cache_folder("")), "~/.cache/keju"), (str(CONFIGS), "examples/configs")):
                shown.default = shown.default.replace(folder, name)
        return super()._expand_help(shown)

    def _get_help_string(self, action: argparse.Action) -> str:
        return action.help if action.default in (None, "") else super()._get_help_string(action)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        if action.choices is not None:
            expected = "{" + ",".join(map(str, action.choices)) + "}"
            expected = expected if len(expected) < 60 else "NAME"
        elif action.nargs == "?":
            expected = "[BOOL]"
        else:
            expected = action.metavar or getattr(action.type, "__name__", "value").upper()
        return f"{action.option_strings[0]} {expected}{' ...' if action.nargs == '+' else ''}"


def _split_config(argv: list[str]) -> tuple[str | None, list[str]]:
    """The YAML file (the first argument, or after --config) and the flags."""
    configs, flags = [], []
    rest = iter(argv)
    for position, argument in enumerate(rest):
        # The deepspeed launcher puts --local_rank=N before what the user typed.
        first = position == 0 or (position == 1 and argv[0].startswith("--local_rank="))
        if argument == "--config":
            configs.append(next(rest, None))
        elif argument.startswith("--config="):
            configs.append(argument.partition("=")[2])
        elif first and not argument.startswith("-"):
            configs.append(argument)
        else:
            flags.append(argument)
    if len(configs) > 1:
        raise UserError(f"more than one config file: {', '.join(map(str, configs))}")
    if configs == [None]:
        raise UserError("--config: expected a YAML file")
    return (configs[0] if configs else None), flags


def _unknown(given: str, what: str, prefix: str, names) -> str:
    if prefix and not given.startswith(prefix):
        return f"unexpected argument {given}; flags start with -- and a config file comes first"
    name = given.removeprefix(prefix).split("=")[0]
    nearest = difflib.get_close_matches(name.replace("-", "_").lower(), list(names), n=1, cutoff=0.6)
    hint = f"did you mean {prefix}{nearest[0]}?" if nearest else "--help lists all"
    return f"{what}{prefix}{name}; {hint}"


def _allows_none(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint)
