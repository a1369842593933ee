"""Which steps of cleaning run, and their bounds.

Texts of the web are cleaned by all steps. Records that people have made are left as they are: markup, spaces, marks and
characters are what a row about code, tables or typography is about. Each flag decides for itself where it is given.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, fields

from keju.errors import UserError

NO_BOUND = 1 << 31  # characters
# Setting -> its value for texts of the web, for records.
DEFAULTS = {
    "normalize_unicode": (True, False),
    "remove_markup": (True, False),
    "remove_stray_characters": (True, False),
    "shorten_repeated_marks": (True, False),
    "remove_boilerplate": (True, False),
    "mask_personal_data": (True, False),
    "tidy_spaces": (True, False),
    "max_repeated_share": (0.5, 1.0),
    "min_text_chars": (5, 1),
    "max_text_chars": (200_000, NO_BOUND),
    "min_prompt_chars": (2, 1),
    "max_prompt_chars": (4000, NO_BOUND),
    "max_answer_chars": (20_000, NO_BOUND),
    "min_han_share": (0.3, 0.0),
}
HELP = {
    "normalize_unicode": "NFC, half-width letters and digits, ordinary spaces and line ends",
    "remove_markup": "HTML entities, tags and comments",
    "remove_stray_characters": "control and private-use characters, U+FFFD",
    "shorten_repeated_marks": "！！！！！！ to ！！！",
    "remove_boilerplate": "sentences such as 责任编辑：..., 点击查看更多 (not in prompts)",
    "mask_personal_data": "telephone, identity and card numbers, e-mail, QQ, WeChat, IP addresses",
    "tidy_spaces": "runs of spaces and of blank lines",
    "max_repeated_share": "of one character or sentence in a text; 1 for no bound",
    "min_text_chars": "shortest text for pretraining, in characters",
    "max_text_chars": "longest text for pretraining, in characters",
    "min_prompt_chars": "shortest prompt or turn of a user",
    "max_prompt_chars": "longest prompt or turn of a user",
    "max_answer_chars": "longest answer; a longer one is removed from its row",
    "min_han_share": "of a row: Han characters among these, Latin words, other letters; 0: no bound",
}


def _setting(default, help: str):
    return dataclasses.field(default=default, metadata={"help": help})


def _by_kind(name: str):
    web, records = ("no bound" if value == NO_BOUND else value for value in DEFAULTS[name])
    return _setting(None, f"{HELP[name]} (default: {web}; records: {records})")


@dataclass(frozen=True)
class CleaningSettings:
    """Plain values, so that they travel to processes and into a report. None: what DEFAULTS say, see `resolved`.

    Raises UserError for impossible ones.
    """

    normalize_unicode: bool | None = _by_kind("normalize_unicode")
    simplify: bool | None = _setting(None, "traditional characters to simplified ones (default: poetry only)")
    remove_markup: bool | None = _by_kind("remove_markup")
    remove_stray_characters: bool | None = _by_kind("remove_stray_characters")
    max_broken_share: float = _setting(0.02, "share of U+FFFD and the like above which a text is unusable")
    shorten_repeated_marks: bool | None = _by_kind("shorten_repeated_marks")
    remove_boilerplate: bool | None = _by_kind("remove_boilerplate")
    mask_personal_data: bool | None = _by_kind("mask_personal_data")
    tidy_spaces: bool | None = _by_kind("tidy_spaces")
    max_repeated_share: float | None = _by_kind("max_repeated_share")
    min_text_chars: int | None = _by_kind("min_text_chars")
    max_text_chars: int | None = _by_kind("max_text_chars")
    min_prompt_chars: int | None = _by_kind("min_prompt_chars")
    max_prompt_chars: int | None = _by_kind("max_prompt_chars")
    min_answer_chars: int = _setting(1, "shortest answer; a shorter one is removed from its row")
    max_answer_chars: int | None = _by_kind("max_answer_chars")
    min_han_share: float | None = _by_kind("min_han_share")

    def resolved(self, *, curated: bool) -> CleaningSettings:
        """With a value for every setting. curated: for records that people have made."""
        left = {name: values[curated] for name, values in DEFAULTS.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **left)

    def __post_init__(self) -> None:
        for name in ("max_broken_share", "max_repeated_share", "min_han_share"):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) <= 1:
                raise UserError(f"expected a share from 0 to 1, got {getattr(self, name)}", option=name)
        for kind in ("text", "prompt", "answer"):
            least, most = getattr(self, f"min_{kind}_chars"), getattr(self, f"max_{kind}_chars")
            if None not in (least, most) and not 1 <= least <= most:
                raise UserError(f"must be from 1 to --max_{kind}_chars {most}, got {least}", option=f"min_{kind}_chars")
        for setting in fields(self):
            assert isinstance(getattr(self, setting.name), (bool, int, float, type(None)))
