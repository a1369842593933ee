"""Which steps of cleaning run, and their bounds."""

from __future__ import annotations

from dataclasses import dataclass, field, fields


def _setting(default, help: str):
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class CleaningSettings:
    """Plain values, so that they travel to processes and into a report. Raises ValueError for impossible ones."""

    normalize_unicode: bool = _setting(True, "NFC, half-width letters and digits, ordinary spaces and line ends")
    simplify: bool | None = _setting(None, "traditional characters to simplified ones (default: poetry only)")
    remove_markup: bool = _setting(True, "HTML entities, tags and comments")
    remove_stray_characters: bool = _setting(True, "control and private-use characters, U+FFFD")
    max_broken_share: float = _setting(0.02, "share of U+FFFD and the like above which a text is unusable")
    shorten_repeated_marks: bool = _setting(True, "！！！！！！ to ！！！")
    remove_boilerplate: bool = _setting(True, "sentences such as 责任编辑：..., 点击查看更多 (not in prompts)")
    mask_personal_data: bool = _setting(True, "telephone, identity and card numbers, e-mail, QQ, WeChat, IP addresses")
    tidy_spaces: bool = _setting(True, "runs of spaces and of blank lines")
    max_repeated_share: float = _setting(0.5, "of one character or sentence in a text; 1 for no bound")
    min_text_chars: int = _setting(5, "shortest text for pretraining, in characters")
    max_text_chars: int = _setting(200_000, "longest text for pretraining, in characters")
    min_prompt_chars: int = _setting(2, "shortest prompt or turn of a user")
    max_prompt_chars: int = _setting(4000, "longest prompt or turn of a user")
    min_answer_chars: int = _setting(1, "shortest answer; a shorter one is removed from its row")
    max_answer_chars: int = _setting(20_000, "longest answer; a longer one is removed from its row")
    min_han_share: float = _setting(
        0.3, "of a row: Han characters among these, Latin words, other letters; 0: no bound"
    )

    def __post_init__(self) -> None:
        for name in ("max_broken_share", "max_repeated_share", "min_han_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name} {getattr(self, name)}: expected a share from 0 to 1")
        for kind in ("text", "prompt", "answer"):
            least, most = getattr(self, f"min_{kind}_chars"), getattr(self, f"max_{kind}_chars")
            if not 1 <= least <= most:
                raise ValueError(f"--min_{kind}_chars {least} --max_{kind}_chars {most}: expected 1 <= min <= max")
        for setting in fields(self):
            assert isinstance(getattr(self, setting.name), (bool, int, float, type(None)))
