"""How conversations are rendered, and which of their turns are trained: settings that decide tokens."""

from __future__ import annotations

from dataclasses import dataclass

from keju.errors import UserError

TRAIN_TURNS = ("all", "last")
TRAIN_THOUGHTS = ("all", "last", "none")


@dataclass(frozen=True)
class ChatSettings:
    """enable_thinking: what a chat template is given under this name; None: nothing, its own default.

    train_turns: every assistant turn is trained, or the last one only.
    train_thoughts: what is thought before an answer is trained in all turns, in the last one, or in none.
    """

    enable_thinking: bool | None = None
    train_turns: str = "all"
    train_thoughts: str = "all"

    def __post_init__(self) -> None:
        for name, choices in (("train_turns", TRAIN_TURNS), ("train_thoughts", TRAIN_THOUGHTS)):
            if getattr(self, name) not in choices:
                raise UserError(f"{getattr(self, name)}: choose from {', '.join(choices)}", option=name)
