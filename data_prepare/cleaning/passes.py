"""Every step of cleaning by name, in the order in which they run, as one function over the texts of a row.

Later steps see what earlier ones wrote: entities go before the characters they stand for are judged, and boilerplate,
which goes by the length of a sentence, after all that changes it. A pass changes the list of texts in place and says
whether it did, or what makes the row unusable.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator

from keju.data_prepare.cleaning.boilerplate import without_boilerplate
from keju.data_prepare.cleaning.contamination import EvaluationNgrams
from keju.data_prepare.cleaning.language import han_share
from keju.data_prepare.cleaning.markup import without_markup
from keju.data_prepare.cleaning.personal_data import count_masks, masked
from keju.data_prepare.cleaning.repeated_marks import shorten_runs
from keju.data_prepare.cleaning.repetition import repeated_share
from keju.data_prepare.cleaning.row_texts import ANSWER, KINDS, PREFIX, PROMPT, SYSTEM, TEXT, RowText, Unusable
from keju.data_prepare.cleaning.settings import CleaningSettings
from keju.data_prepare.cleaning.simplified_characters import simplified
from keju.data_prepare.cleaning.spacing import tidy_prefix, tidy_spaces
from keju.data_prepare.cleaning.stray_characters import without_stray_characters
from keju.data_prepare.cleaning.unicode_form import normal_form

Pass = Callable[[list[RowText], "Counter[str]"], "bool | Unusable"]

_NOTHING_LEFT = Unusable("nothing left")


def passes(settings: CleaningSettings, evaluation_ngrams: str | None) -> Iterator[tuple[str, Pass]]:
    """(name, pass) of every step that the settings ask for. evaluation_ngrams: see `Cleaner`."""
    contents = (TEXT, PROMPT, ANSWER)
    if settings.normalize_unicode:
        yield "unicode", _each_text(normal_form)
    if settings.remove_markup:
        yield "markup", _each_text(without_markup)
    if settings.remove_stray_characters:
        share = settings.max_broken_share
        yield "stray characters", _each_text(functools.partial(without_stray_characters, max_broken_share=share))
    if settings.simplify:
        yield "simplified characters", _each_text(simplified)
    if settings.shorten_repeated_marks:
        yield "repeated marks", _each_text(shorten_runs)
    if settings.mask_personal_data:
        yield "personal data", _each_text(masked, count=count_masks)
    if settings.tidy_spaces:
        yield "spaces", _each_text(tidy_spaces, prefix=tidy_prefix)
    if settings.remove_boilerplate:
        yield "boilerplate", _each_text(without_boilerplate, (TEXT, ANSWER))
    if settings.max_repeated_share < 1:
        yield "repetition", _each_text(functools.partial(_varied, most=settings.max_repeated_share), contents)
    yield "length", _length(settings)
    yield "equal answers", _different_answers
    if settings.min_han_share > 0:
        yield "language", functools.partial(_chinese, least=settings.min_han_share)
    if evaluation_ngrams:
        yield "evaluation sets", functools.partial(_unseen, EvaluationNgrams(evaluation_ngrams))


def _each_text(
    apply: Callable[[str], str | Unusable],
    kinds: tuple[str, ...] = KINDS,
    *,
    prefix: Callable[[str], str] | None = None,
    count: Callable[[str, str], Counter[str]] | None = None,
) -> Pass:
    """A pass that applies a function to each text of these kinds by itself.

    prefix: another function for prefixes. count: from before and after, what to count of what was changed.
    """
    functions = dict.fromkeys(kinds, apply) | ({PREFIX: prefix} if prefix else {})

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
    return Unusable("one character or sentence makes up most of it") if repeated_share(text) > most else text


def _length(settings: CleaningSettings) -> Pass:
    bounds = {
        TEXT: (settings.min_text_chars, settings.max_text_chars),
        PROMPT: (settings.min_prompt_chars, settings.max_prompt_chars),
        ANSWER: (settings.min_answer_chars, settings.max_answer_chars),
        SYSTEM: (1, settings.max_text_chars),
    }

    def bounded(kind: str) -> Pass:
        least, most = bounds[kind]
        too_short, too_long = Unusable(f"{kind} too short"), Unusable(f"{kind} too long")

        def judged(text: str) -> str | Unusable:
            return too_short if len(text) < least else too_long if len(text) > most else text

        return _each_text(judged, (kind,))

    by_kind = [bounded(kind) for kind in bounds]

    def run(texts: list[RowText], changes: Counter[str]) -> bool | Unusable:
        changed = False
        for each in by_kind:
            verdict = each(texts, changes)
            if isinstance(verdict, Unusable):
                return verdict
            changed |= verdict
        return changed

    return run


def _different_answers(texts: list[RowText], changes: Counter[str]) -> bool:
    """Of ranked answers with the same text the one with the highest score stays."""
    ranked = [text for text in texts if text.score is not None]
    if len({text.text for text in ranked}) == len(ranked):
        return False
    best: dict[str, RowText] = {}
    for text in ranked:
        if text.text not in best or text.score > best[text.text].score:
            best[text.text] = text
    changes["answer removed: equal to one with a higher score"] += len(ranked) - len(best)
    texts[:] = [text for text in texts if text.score is None or best[text.text] is text]
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
