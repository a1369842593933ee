"""Every step of cleaning by name, in the order in which they run, as one function over the texts of a row.

Later steps see what earlier ones wrote: entities go before the characters they stand for are judged, and boilerplate,
which goes by the length of a sentence, after all that changes it. A pass changes the list of texts in place and says
whether it did, or what makes the row unusable.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from keju.data_prepare.cleaning.boilerplate import without_boilerplate
from keju.data_prepare.cleaning.contamination import EvaluationNgrams
from keju.data_prepare.cleaning.language import han_share
from keju.data_prepare.cleaning.markup import without_markup
from keju.data_prepare.cleaning.personal_data import count_masks, masked
from keju.data_prepare.cleaning.repeated_marks import shorten_runs
from keju.data_prepare.cleaning.repetition import repeats_itself
from keju.data_prepare.cleaning.row_texts import ANSWER, KINDS, PREFIX, PROMPT, SYSTEM, TEXT, RowText, Unusable
from keju.data_prepare.cleaning.settings import CleaningSettings
from keju.data_prepare.cleaning.simplified_characters import simplified
from keju.data_prepare.cleaning.spacing import tidy_prefix, tidy_spaces
from keju.data_prepare.cleaning.stray_characters import without_stray_characters
from keju.data_prepare.cleaning.unicode_form import normal_form
from keju.records.record import CONTRADICTION

Apply = Callable[[str], "str | Unusable"]
Run = Callable[[list[RowText], "Counter[str]"], "bool | Unusable"]


class Pass(NamedTuple):
    """leaves_plain_texts: it need not run where all texts are plain; see `plain_text.py`."""

    name: str
    run: Run
    leaves_plain_texts: bool = False


_NOTHING_LEFT = Unusable("nothing left")


def passes(settings: CleaningSettings, evaluation_ngrams: str | None) -> Iterator[Pass]:
    """Those that the settings ask for. evaluation_ngrams: see `Cleaner`."""
    if settings.normalize_unicode:
        yield Pass("unicode", _each_text(normal_form), leaves_plain_texts=True)
    if settings.remove_markup:
        yield Pass("markup", _each_text(without_markup), leaves_plain_texts=True)
    if settings.remove_stray_characters:
        remove = functools.partial(without_stray_characters, max_broken_share=settings.max_broken_share)
        yield Pass("stray characters", _each_text(remove), leaves_plain_texts=True)
    if settings.simplify:
        yield Pass("simplified characters", _each_text(simplified))
    if settings.shorten_repeated_marks:
        yield Pass("repeated marks", _each_text(shorten_runs), leaves_plain_texts=True)
    if settings.mask_personal_data:
        yield Pass("personal data", _each_text(masked, count=count_masks), leaves_plain_texts=True)
    if settings.tidy_spaces:
        yield Pass("spaces", _each_text(tidy_spaces, prefix=tidy_prefix), leaves_plain_texts=True)
    if settings.remove_boilerplate:
        yield Pass("boilerplate", _each_text(without_boilerplate, (TEXT, ANSWER)))
    if settings.max_repeated_share < 1:
        varied = functools.partial(_varied, most=settings.max_repeated_share)
        yield Pass("repetition", _each_text(varied, (TEXT, PROMPT, ANSWER)))
    yield Pass("length", _length(settings))
    yield Pass("equal answers", _different_answers)
    if settings.min_han_share > 0:
        chinese = functools.partial(_chinese, least=settings.min_han_share)
        yield Pass("language", chinese, leaves_plain_texts=True)
    if evaluation_ngrams:
        yield Pass("evaluation sets", functools.partial(_unseen, EvaluationNgrams(evaluation_ngrams)))


def _each_text(
    apply: Apply | Mapping[str, Apply],
    kinds: tuple[str, ...] = KINDS,
    *,
    prefix: Callable[[str], str] | None = None,
    count: Callable[[str, str], Counter[str]] | None = None,
) -> Run:
    """A pass that applies a function to each text of these kinds by itself, or to each kind its own.

    prefix: another function for prefixes. count: from before and after, what to count of what was changed.
    """
    functions = dict(apply) if isinstance(apply, Mapping) else dict.fromkeys(kinds, apply)
    if prefix:
        functions[PREFIX] = prefix

    def run(texts: list[RowText], changes: Counter[str]) -> bool | Unusable:
        changed, gone = False, []
        for text in texts:
            function = functions.get(text.kind)
            new = text.text if function is None else function(text.text)
            if new == text.text:
                continue
            changed = True
            if isinstance(new, str) and not new.strip():
                new = _NOTHING_LEFT
            if not isinstance(new, Unusable):
                if count is not None:
                    changes.update(count(text.text, new))
                text.text = new
            elif text.can_go:
                changes[f"{text.kind} removed: {new.reason}"] += 1
                gone.append(text)
            else:
                return new._replace(detail=text.text)
        if gone:
            texts[:] = [text for text in texts if not any(text is other for other in gone)]
        return changed

    return run


def _varied(text: str, most: float) -> str | Unusable:
    return Unusable("one character or sentence makes up most of it") if repeats_itself(text, most) else text


def _length(settings: CleaningSettings) -> Run:
    bounds = {
        TEXT: (settings.min_text_chars, settings.max_text_chars),
        PROMPT: (settings.min_prompt_chars, settings.max_prompt_chars),
        ANSWER: (settings.min_answer_chars, settings.max_answer_chars),
        SYSTEM: (1, settings.max_text_chars),
    }

    def bounded(kind: str) -> Callable[[str], str | Unusable]:
        least, most = bounds[kind]
        too_short, too_long = Unusable(f"{kind} too short"), Unusable(f"{kind} too long")
        return lambda text: (
            too_short if len(text) < least or not text.strip() else too_long if len(text) > most else text
        )

    return _each_text({kind: bounded(kind) for kind in bounds})


def _different_answers(texts: list[RowText], changes: Counter[str]) -> bool | Unusable:
    """Of ranked answers with the same text the one with the highest score stays, unless there is no other text."""
    ranked = [text for text in texts if text.score is not None]
    different = {text.text for text in ranked}
    if len(different) == len(ranked):
        return False
    if len(different) == 1 and len({text.score for text in ranked}) > 1:
        return Unusable(CONTRADICTION, ranked[0].text)
    best: dict[str, RowText] = {}
    for text in ranked:
        if text.text not in best or text.score > best[text.text].score:
            best[text.text] = text
    changes["answer removed: equal to one with a higher score"] += len(ranked) - len(best)
    gone = {(text.field, text.index) for text in ranked if best[text.text] is not text}
    texts[:] = [text for text in texts if (text.field, text.index) not in gone]
    return True


def _chinese(texts: list[RowText], changes: Counter[str], least: float) -> bool | Unusable:
    contents = [text.text for text in texts if text.kind in (TEXT, PROMPT, ANSWER)]
    return Unusable("too little Chinese", contents[0]) if han_share(contents) < least else False


def _unseen(ngrams: EvaluationNgrams, texts: list[RowText], changes: Counter[str]) -> bool | Unusable:
    found = ngrams.overlap([text.text for text in texts if text.kind in (TEXT, PROMPT, ANSWER)])
    if found is None:
        return False
    path, _, row = found.where.rpartition(":")
    return Unusable(f"shares {ngrams.length} characters or words with {path}", f"row {row}: {found.run}")
