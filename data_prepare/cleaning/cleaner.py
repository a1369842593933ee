"""Cleans one item at a time; what it did is counted step by step.

cleaner = Cleaner(CleaningSettings(simplify=True))
cleaned = [cleaner.clean(item) for item in read(folder, piece)]
report = merge([cleaner.steps, ...])          # of several processes or pieces, in any order
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from keju.data_prepare.cleaning.passes import passes
from keju.data_prepare.cleaning.plain_text import is_plain
from keju.data_prepare.cleaning.row_texts import RowText, Unusable, texts_of, with_texts
from keju.data_prepare.cleaning.settings import CleaningSettings
from keju.data_prepare.corpus import Item
from keju.data_prepare.step import Step
from keju.errors import UserError

_SHOWN_CHARS = 80
_AROUND = 20  # characters beside a change that are shown with it


@dataclass(frozen=True, slots=True)
class Dropped:
    """An item that is of no use: the step that found so, why, and where the item is and how it begins."""

    step: str
    reason: str
    example: str


class Cleaner:
    """What `clean` returns depends on the settings and the item alone; `steps` counts all items that it has seen.

    evaluation_ngrams: a folder of `write_evaluation_ngrams`; rows that share n-grams with it are dropped.
    Settings that say nothing are those for texts of the web.
    Raises UserError if the settings need a package or a folder that is not there.
    """

    def __init__(self, settings: CleaningSettings, evaluation_ngrams: str | None = None) -> None:
        settings = settings.resolved(curated=False)
        self._passes = [(one, Step(one.name)) for one in passes(settings, evaluation_ngrams)]

    @property
    def steps(self) -> list[Step]:
        return [step for _, step in self._passes]

    def clean(self, item: Item) -> Item | Dropped:
        """The item with cleaned texts (the very same item if none had to change), or why it is dropped.

        A row is dropped if its text, its prompt, a turn, or every answer with the highest score is unusable.
        """
        try:
            texts = texts_of(item.row)
        except UserError as error:
            raise UserError(f"{item.where}: {error}") from error
        plain = all(is_plain(text.text) for text in texts)
        any_changed, before = False, _by_place(texts)
        for one, step in self._passes:
            step.rows_in += 1
            if plain and one.leaves_plain_texts:
                step.rows_out += 1
                continue
            count = len(texts)
            verdict = one.run(texts, step.changes)
            if len(texts) < count and _best_score(texts) != _best_score(texts_of(item.row)):
                verdict = Unusable("no usable best answer", texts[0].text if texts else "")
            if isinstance(verdict, Unusable):
                example = f"{item.where}: {_shown(verdict.detail)}"
                step.drop(verdict.reason, example)
                return Dropped(step.name, verdict.reason, example)
            step.rows_out += 1
            step.rows_changed += verdict
            if verdict:
                after = _by_place(texts)
                step.show_change(item.where, lambda old=before, new=after: _first_change(old, new))
                before = after
            any_changed |= verdict
        return replace(item, row=with_texts(item.row, texts)) if any_changed else item


def _best_score(texts: list[RowText]) -> float | None:
    return max((text.score for text in texts if text.score is not None), default=None)


def _by_place(texts: list[RowText]) -> dict[tuple, str]:
    return {text.place: text.text for text in texts}


def _first_change(before: dict[tuple, str], after: dict[tuple, str]) -> tuple[str, str]:
    """The surroundings of the first difference between the texts of a row, before and after."""
    place = next(place for place, text in before.items() if after.get(place) != text)
    old, new = before[place], after.get(place, "")
    at = len(os.path.commonprefix([old, new]))
    end = len(os.path.commonprefix([old[at:][::-1], new[at:][::-1]]))
    begin = max(0, at - _AROUND)
    return tuple(text[begin : max(len(text) - end, at) + _AROUND][:_SHOWN_CHARS] for text in (old, new))


def _shown(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"
