"""jieba's words, many texts at once: the same words as jieba.cut, found with numpy instead of a loop over characters.

jieba cuts a text into blocks (runs of characters that may stand in a word), takes in each block the most probable
sequence of words of its dictionary, and hands what that leaves of single characters to a hidden Markov model. The steps
are the same here, each taken for all blocks together, and all sums and ties come out as jieba's do, to the last bit.

Blocks are laid out by rows: row j holds, for each block of at least j characters, what belongs to the character that is
j characters before the block's end; in a row the longest block comes first. So "the same block, one character on" is
the same column of row j - 1, and a step through all blocks at once is an operation on rows.

jieba itself stays as it is released and untouched: we own an instance of its segmenter and split into blocks ourselves.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Iterator
from itertools import chain
from math import log
from typing import NamedTuple

import numpy as np

# jieba's `re_han_default`: what may stand in a word. The patch that the published Pangu code asks for adds < and >.
RELEASED_BLOCK = re.compile(r"([\u4E00-\u9FD5a-zA-Z0-9+#&\._%\-]+)")
PATCHED_BLOCK = re.compile(r"([\u4E00-\u9FD5a-zA-Z0-9+#&\._%\-<>]+)")
BLANK = re.compile(r"(\r\n|\s)")
# Characters from here on are in no block; tables over characters end here.
NUM_CODES = 0xA000
FIRST_HAN, LAST_HAN = 0x4E00, 0x9FD5
# Fewer characters than this are cut one block at a time by jieba itself, and so are longer blocks: rows of numpy
# operations want many columns.
WORTH_ROWS = 1000
LONGEST_BLOCK = 128
# Bounds the memory, about 110 bytes a character, unless a single text is longer.
CHARACTERS_AT_ONCE = 1_000_000
TABLE_BITS = 21


@functools.cache
def _jieba():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jieba's source has invalid escapes and imports pkg_resources
        import jieba
    return jieba


@functools.cache
def dictionary():
    """Our own segmenter over jieba's own dictionary.

    Read from the package: jieba would cache it in a file in the shared temporary folder and unmarshal what it finds
    there. Its global segmenter, which users may have given words of their own, plays no part.
    """
    segmenter = _jieba().Tokenizer()
    segmenter.FREQ, segmenter.total = segmenter.gen_pfdict(segmenter.get_dict_file())
    # The original adds six special tokens as words, each counted once. We split at them before jieba sees the text,
    # but the total decides ties: it changes the rounding of log probabilities, so that 50 times 啊 is cut otherwise.
    segmenter.total += 6
    segmenter.initialized = True
    return segmenter


def _cut_block():
    """What cuts a single block. Private to jieba: its public `cut` takes the pattern of blocks from a global."""
    return dictionary()._Tokenizer__cut_DAG


def cut(text: str, block: re.Pattern) -> Iterator[str]:
    """The words of jieba.cut(text), with `block` in the place of jieba's own pattern."""
    cut_block = _cut_block()
    for part in block.split(text):
        if not part:
            continue
        if block.match(part):
            yield from cut_block(part)
        else:
            for rest in BLANK.split(part):
                yield from [rest] if BLANK.match(rest) else rest


def join_words(texts: list[str], block: re.Pattern, stand_ins: dict[str, str]) -> list[str]:
    """The words of each text with spaces between them, the characters of `stand_ins` replaced in the words.

    Equal to cutting the texts one by one with `cut`; many texts together are cut an order of magnitude faster.
    """
    # Words that a user told jieba never to make are global to it. Only jieba's own code knows of them.
    if sum(map(len, texts)) < WORTH_ROWS or _jieba().finalseg.Force_Split_Words:
        replaced = str.maketrans(stand_ins)
        return [" ".join(word.translate(replaced) for word in cut(text, block)) for text in texts]
    joined, batch, size = [], [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= CHARACTERS_AT_ONCE:
            joined += _join_batch(batch, block, stand_ins)
            batch, size = [], 0
    return joined + (_join_batch(batch, block, stand_ins) if batch else [])


def _join_batch(texts: list[str], block: re.Pattern, stand_ins: dict[str, str]) -> list[str]:
    codes = np.frombuffer("\n".join([*texts, ""]).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)
    ends = np.cumsum([len(text) + 1 for text in texts]) - 1  # where the newlines are that we put between texts
    begins = np.concatenate([[0], ends[:-1] + 1])
    space_before = word_starts(codes, block)
    space_before[begins] = False
    out_index = np.arange(len(codes)) + np.cumsum(space_before)
    out = np.full(out_index[-1] + 1, ord(" "), np.uint32)
    out[out_index] = codes
    for old, new in stand_ins.items():
        out[out_index[codes == ord(old)]] = ord(new)
    text = out.tobytes().decode("utf-32-le", "surrogatepass")
    # The newline behind a text may have a blank before it, which is not the text's.
    bounds = zip(out_index[begins].tolist(), (out_index[ends] - space_before[ends]).tolist(), strict=True)
    return [text[begin:end] for begin, end in bounds]


def word_starts(codes: np.ndarray, block: re.Pattern) -> np.ndarray:
    """bool [N]: whether a word of jieba starts at each of the `codes` (int64 [N], code points)."""
    starts = np.ones(len(codes), bool)
    starts[1:] &= (codes[1:] != ord("\n")) | (codes[:-1] != ord("\r"))
    inside = _block_table(block)[np.minimum(codes, NUM_CODES - 1)]
    edges = np.flatnonzero(np.diff(inside, prepend=False, append=False))
    begins, ends = edges[::2], edges[1::2]
    lengths = ends - begins
    for begin, end in zip(begins[lengths > LONGEST_BLOCK], ends[lengths > LONGEST_BLOCK], strict=True):
        text = codes[begin:end].astype(np.uint32).tobytes().decode("utf-32-le")
        words = np.array([len(word) for word in _cut_block()(text)])
        starts[begin:end] = False
        starts[begin + np.cumsum(words) - words] = True
    short = lengths <= LONGEST_BLOCK
    if short.any():
        _cut_blocks(codes, begins[short], lengths[short], starts)
    return starts


@functools.cache
def _block_table(block: re.Pattern) -> np.ndarray:
    return np.array([block.match(chr(code)) is not None for code in range(NUM_CODES)])


class Rows:
    """Sequences of different lengths as rows: row j has one column for each sequence of at least j items.

    lengths: int64 [S]. Item (row j, column c) is at `offset[j] + c` of a flat array with `size` items; row 0, with a
    column for each sequence, is room for what lies beyond the end. `order[c]` is the sequence of column c.
    """

    def __init__(self, lengths: np.ndarray) -> None:
        self.order = np.argsort(-lengths, kind="stable")
        self.lengths = lengths[self.order]
        self.height = int(self.lengths[0])
        self.width = np.searchsorted(-self.lengths, -np.arange(self.height + 1), side="right")
        self.offset = np.concatenate([[0], np.cumsum(self.width)])
        self.size = int(self.offset[-1])
        self.row = np.repeat(np.arange(self.height + 1), self.width)
        self.column = np.arange(self.size) - self.offset[self.row]

    def slice(self, row: int) -> slice:
        return slice(self.offset[row], self.offset[row + 1])


class Words(NamedTuple):
    """jieba's dictionary as a tree of states, one for each beginning of a word; tables over code points and states."""

    first: np.ndarray  # int32 [NUM_CODES]: state after one character, -1 when no word begins so
    single: np.ndarray  # float64 [NUM_CODES]: log probability of the character as a word (jieba has one for each)
    probability: np.ndarray  # float64 [states]: log probability of the word that ends here, NaN when none does
    keys: np.ndarray  # int64 [2**TABLE_BITS]: hash table of (state << 16 | character), -1 where empty
    values: np.ndarray  # int32: the state behind that character

    def next(self, states: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """The states after one more character; -1 when no word goes on so."""
        wanted = states << 16 | codes
        slots = _slots(wanted)
        found = self.keys[slots]
        result = np.where(found == wanted, self.values[slots], -1)
        other = np.flatnonzero((found != wanted) & (found >= 0))
        while other.size:  # another key has the slot: it may be in the next one
            slots[other] = (slots[other] + 1) & (2**TABLE_BITS - 1)
            found = self.keys[slots[other]]
            hit = found == wanted[other]
            result[other[hit]] = self.values[slots[other[hit]]]
            other = other[~hit & (found >= 0)]
        return result


def _slots(keys: np.ndarray) -> np.ndarray:
    return (keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(64 - TABLE_BITS)).astype(np.int64)


@functools.cache
def _words() -> Words:
    frequencies, log_total = dictionary().FREQ, log(dictionary().total)
    state_of = {word: state for state, word in enumerate(frequencies)}
    first = np.full(NUM_CODES, -1, np.int32)
    single = np.full(NUM_CODES, log(1) - log_total)
    # math.log, not numpy's: the last bit decides ties.
    probability = np.array([log(count) - log_total if count else np.nan for count in frequencies.values()])
    for word, state in state_of.items():
        if len(word) == 1 and ord(word) < NUM_CODES:
            first[ord(word)] = state
            if frequencies[word]:
                single[ord(word)] = probability[state]
    longer = [word for word in frequencies if len(word) > 1]
    parents = np.array([state_of[word[:-1]] for word in longer], np.int64)
    wanted = parents << 16 | np.array([ord(word[-1]) for word in longer], np.int64)
    states = np.array([state_of[word] for word in longer], np.int32)
    keys = np.full(2**TABLE_BITS, -1, np.int64)
    values = np.full(2**TABLE_BITS, -1, np.int32)
    slots = _slots(wanted)
    left = np.arange(len(longer))
    while left.size:  # each round all try their slot; whoever finds it taken tries the next one
        free = left[keys[slots[left]] < 0]
        keys[slots[free]] = wanted[free]
        won = keys[slots[left]] == wanted[left]
        values[slots[left[won]]] = states[left[won]]
        left = left[~won]
        slots[left] = (slots[left] + 1) & (2**TABLE_BITS - 1)
    return Words(first, single, probability, keys, values)


def _cut_blocks(codes: np.ndarray, begins: np.ndarray, lengths: np.ndarray, starts: np.ndarray) -> None:
    """Sets `starts` in the blocks codes[begins : begins + lengths], none longer than LONGEST_BLOCK."""
    rows = Rows(lengths)
    begins = begins[rows.order]
    position = begins[rows.column] + rows.lengths[rows.column] - rows.row  # of codes; row 0 is just behind a block
    in_rows = codes[position]
    first_item = rows.offset[1]
    in_rows[:first_item] = 0
    edges, lengths_in_dictionary = _edges(rows, in_rows)
    chosen = _most_probable(rows, in_rows, edges)

    begin_here = np.zeros(rows.size, bool)
    begin_here[rows.offset[rows.lengths] + np.arange(len(rows.lengths))] = True
    for row in range(rows.height, 0, -1):
        columns = np.flatnonzero(begin_here[rows.slice(row)])
        begin_here[rows.offset[row - chosen[rows.offset[row] + columns]] + columns] = True

    place = position[first_item:]
    starts[place] = begin_here[first_item:]
    single = np.zeros(len(codes) + 1, bool)
    single[place] = begin_here[first_item:] & (chosen[first_item:] == 1)
    in_dictionary = np.zeros(len(codes), np.int64)
    in_dictionary[place] = lengths_in_dictionary[first_item:]
    bounds = np.flatnonzero(np.diff(single, prepend=False))
    run_begins, run_lengths = bounds[::2], bounds[1::2] - bounds[::2]
    # A run of single characters that is a word all the same (a less probable one) is left as it is.
    is_word = (in_dictionary[run_begins] >> np.minimum(run_lengths, 62)) & 1
    unknown = (run_lengths > 1) & (is_word == 0)
    _cut_runs(codes, run_begins[unknown], run_lengths[unknown], starts)


class Edges(NamedTuple):
    """Words of the dictionary, of one length, by where they begin: row j's are at `bounds[j] : bounds[j + 1]`."""

    length: int
    column: np.ndarray
    probability: np.ndarray
    bounds: list[int]


def _edges(rows: Rows, codes: np.ndarray) -> tuple[list[Edges], np.ndarray]:
    """All words of two characters or more; and for each item a bit set of the lengths of words that begin there."""
    words = _words()
    edges = []
    lengths = np.zeros(rows.size, np.int64)
    items = np.arange(rows.offset[1], rows.size)
    states = words.first[codes[items]].astype(np.int64)
    for length in range(2, rows.height + 1):
        goes_on = (states >= 0) & (rows.row[items] >= length)
        items, states = items[goes_on], states[goes_on]
        following = rows.offset[rows.row[items] - (length - 1)] + rows.column[items]
        states = words.next(states, codes[following]).astype(np.int64)
        items, states = items[states >= 0], states[states >= 0]
        if not items.size:
            break
        probability = words.probability[states]
        is_word = ~np.isnan(probability)
        found = items[is_word]
        lengths[found] |= 1 << min(length, 62)
        bounds = np.searchsorted(rows.row[found], np.arange(rows.height + 2)).tolist()
        edges.append(Edges(length, rows.column[found], probability[is_word], bounds))
    return edges, lengths


def _most_probable(rows: Rows, codes: np.ndarray, edges: list[Edges]) -> np.ndarray:
    """int64 [rows.size]: how long the word is that begins at an item on the most probable way to the block's end."""
    best = _words().single[codes]
    best[rows.slice(0)] = 0.0
    chosen = np.ones(rows.size, np.int64)
    for row in range(1, rows.height + 1):
        here = best[rows.slice(row)]
        here += best[rows.offset[row - 1] : rows.offset[row - 1] + rows.width[row]]
        length_here = chosen[rows.slice(row)]
        for edge in edges:
            begin, end = edge.bounds[row], edge.bounds[row + 1]
            if begin == end:
                continue
            columns = edge.column[begin:end]
            candidate = edge.probability[begin:end] + best[rows.offset[row - edge.length] + columns]
            better = candidate >= here[columns]  # of two equal ways jieba takes the longer word
            columns = columns[better]
            here[columns] = candidate[better]
            length_here[columns] = edge.length
    return chosen


# -- runs of single characters ---------------------------------------------------------------------------------------


def _cut_runs(codes: np.ndarray, begins: np.ndarray, lengths: np.ndarray, starts: np.ndarray) -> None:
    """Sets `starts` in the runs codes[begins : begins + lengths] of characters that the dictionary leaves single."""
    inside = np.zeros(len(codes) + 1, np.int64)
    np.add.at(inside, begins, 1)
    np.add.at(inside, begins + lengths, -1)
    inside = np.cumsum(inside[:-1]) > 0
    is_first = np.zeros(len(codes), bool)
    is_first[begins] = True
    han = (codes >= FIRST_HAN) & (codes <= LAST_HAN)
    is_first[1:] |= inside[1:] & (han[1:] != han[:-1])
    items = np.flatnonzero(inside)
    starts[items] = is_first[items]
    piece_begins = np.flatnonzero(is_first & inside)
    piece_lengths = np.diff(np.append(np.flatnonzero(is_first[items]), len(items)))
    is_han = han[piece_begins]
    hidden = is_han & (piece_lengths > 1)
    if hidden.any():
        _hidden_markov(codes, piece_begins[hidden], piece_lengths[hidden], starts)
    for_pattern = ~is_han & (piece_lengths > 1)
    if for_pattern.any():
        _cut_latin(codes, piece_begins[for_pattern], piece_lengths[for_pattern], starts)


def _cut_latin(codes: np.ndarray, begins: np.ndarray, lengths: np.ndarray, starts: np.ndarray) -> None:
    """Latin words and numbers, each one word; what is between them, another."""
    last = np.cumsum(lengths + 1) - 1  # of each piece, in a text where a newline follows each
    place = np.arange(last[-1] + 1) + np.repeat(begins - (last - lengths), lengths + 1)
    place[last] = len(codes)
    text = np.append(codes, ord("\n"))[place].astype(np.uint32).tobytes().decode("utf-32-le")
    matches = _jieba().finalseg.re_skip.finditer(text)
    spans = np.fromiter(chain.from_iterable(match.span() for match in matches), np.int64)
    places = place[spans]
    starts[places[places < len(codes)]] = True


BEGIN, END, MIDDLE, SINGLE = range(4)  # in alphabetical order of jieba's names for them: B E M S
# By state: which two states may come before it. Of two equally probable ones, jieba takes the later in the alphabet.
BEFORE = {BEGIN: (END, SINGLE), END: (BEGIN, MIDDLE), MIDDLE: (BEGIN, MIDDLE), SINGLE: (END, SINGLE)}


@functools.cache
def _probabilities() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log probabilities: of the first state [4], from state to state [4, 4], of characters by state [4, NUM_CODES]."""
    hidden_markov, impossible = _jieba().finalseg, _jieba().finalseg.MIN_FLOAT
    start = np.array([hidden_markov.start_P[state] for state in "BEMS"])
    step = np.array([[hidden_markov.trans_P[old].get(new, impossible) for new in "BEMS"] for old in "BEMS"])
    emission = np.full((4, NUM_CODES), impossible)
    for state, name in enumerate("BEMS"):
        for character, value in hidden_markov.emit_P[name].items():
            if ord(character) < NUM_CODES:
                emission[state, ord(character)] = value
    return start, step, emission


def _hidden_markov(codes: np.ndarray, begins: np.ndarray, lengths: np.ndarray, starts: np.ndarray) -> None:
    """The most probable states of the characters of each piece, Chinese all of them; a word starts at B and at S.

    Row j holds the j-th characters of the pieces here, counted from their beginnings; nothing is read from row 0.
    """
    start, step, emission = _probabilities()
    rows = Rows(lengths)
    begins = begins[rows.order]
    place = begins[rows.column] + rows.row - 1
    place[rows.slice(0)] = begins
    emitted = emission[:, codes[place]]
    came_from = np.zeros((4, rows.size), np.int8)
    state = np.zeros(rows.size, np.int8)
    value = start[:, None] + emitted[:, rows.slice(1)]
    for row in range(1, rows.height + 1):
        if row > 1:
            before = value[:, : rows.width[row]]
            value = np.empty_like(before)
            for now, (lower, higher) in BEFORE.items():
                emission_here = emitted[now, rows.slice(row)]
                first = before[lower] + step[lower, now] + emission_here
                second = before[higher] + step[higher, now] + emission_here
                value[now] = np.maximum(first, second)
                came_from[now, rows.slice(row)] = np.where(second >= first, higher, lower)
        ends_here = rows.width[row + 1] if row < rows.height else 0  # pieces from this column on have no further row
        last = np.where(value[SINGLE, ends_here:] >= value[END, ends_here:], SINGLE, END)
        state[rows.offset[row] + ends_here : rows.offset[row + 1]] = last
    for row in range(rows.height, 1, -1):
        items = np.arange(rows.offset[row], rows.offset[row + 1])
        state[rows.offset[row - 1] : rows.offset[row - 1] + len(items)] = came_from[state[items], items]
    later = slice(rows.offset[2], rows.size)
    starts[place[later]] = (state[later] == BEGIN) | (state[later] == SINGLE)
