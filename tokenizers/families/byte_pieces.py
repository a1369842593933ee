"""tiktoken's ids of many texts at once, found with numpy wherever the vocabulary tells them.

BPE joins neighbours into tokens and does nothing else. Where no token that occurs in a text spans the place between two
of its characters, nothing is ever joined across it, and what is joined on one side is joined without regard to the
other. So a text may be cut there, and each piece has by itself the ids that it has in the text.

Most of the pieces are a token, and a tree of the vocabulary's tokens, stepped for all characters at once, has found it
by the time the pieces are cut. What is left, a few pieces in a hundred, tiktoken encodes. Three things more:

- Before BPE, the pattern PIECE splits a text into matches. A place between two of them is a cut as well, where no match
  depends on what is on the other side. `_verdict` tells such places by two characters on either side.
- Tokens are bytes, and some have parts of characters at their ends. Which characters such a token can span is told by
  the first byte of a part behind a place, and by the last byte of one before it.
- tiktoken takes a match that is a token for that token, and does not look whether BPE would get there. A piece of a
  match is no match. So all is left to tiktoken unless BPE leads from each token's bytes to it, as it does where the
  vocabulary was trained.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Sequence

import numpy as np
import tiktoken

from keju.tokenizers.token_tree import NO_TOKEN, NUM_CODES, TOKEN_WITHOUT_ID, TokenTree

# Words, single digits, punctuation and blanks are merged among themselves only.
PIECE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Bounds the memory, about 100 bytes a character, unless a single text is longer.
CHARACTERS_AT_ONCE = 500_000
# So many pieces, of no more characters than this, are remembered with the ids that tiktoken gave them.
MOST_KNOWN, LONGEST_KNOWN = 100_000, 32
# A byte that is in no UTF-8, and so in no token of more than one byte, joins with nothing.
APART = b"\xff"
# Stands between pieces that tiktoken encodes.
SEPARATOR = " 0"
# Classes of characters as PIECE sees them; END is the place between two texts.
END, LETTER, NUMBER, NEWLINE, SPACE, BLANK, MARK, APOSTROPHE = range(8)
WHITE = (NEWLINE, SPACE, BLANK)
# Beside its class, what a character may do: stand before, or behind, a part of a character in a token.
BEFORE_PART, BEHIND_PART = 8, 16
# Of a place between two characters: not a cut, a cut unless a token spans it, a cut.
NEVER, MAYBE, CUT = np.arange(3, dtype=np.uint8)


def _verdict(before: int, left: int, right: int, after: int) -> int:
    """Whether the place between `left` and `right` is a cut, by the classes of four characters in a row.

    CUT: PIECE always ends a match here, and its matches on both sides are those of the two sides by themselves.
    MAYBE: the same if no token spans the place. NEVER: cutting here could change the matches.
    """
    if END in (left, right) or left == NUMBER:
        return CUT
    if left == LETTER:
        # After an apostrophe a match may end in the middle of a word ('s, 're), which the word by itself does not tell.
        return (NEVER if before == APOSTROPHE else MAYBE) if right == LETTER else CUT
    if left in WHITE:
        if right in WHITE:
            # The last one of several blanks, a match by itself or the beginning of one.
            return CUT if right != NEWLINE and after not in (*WHITE, END) else NEVER
        joined = left != NEWLINE and right == LETTER or left == SPACE and right in (MARK, APOSTROPHE)
        return MAYBE if joined else CUT
    if right == LETTER:
        if before in (MARK, APOSTROPHE, SPACE):
            return CUT
        return NEVER if left == APOSTROPHE else MAYBE
    return {NEWLINE: NEVER, MARK: MAYBE, APOSTROPHE: MAYBE}.get(right, CUT)


@functools.cache
def _table() -> np.ndarray:
    """uint8 [4096]: the verdict for four classes, three bits each."""
    return np.array([_verdict(*classes) for classes in itertools.product(range(8), repeat=4)], np.uint8)


@functools.cache
def _classes() -> np.ndarray:
    """uint8 [NUM_CODES]: the class of each character, asked of tiktoken, whose Unicode is not Python's."""
    single_bytes = {bytes([byte]): byte for byte in range(256)}
    everything = "".join(map(chr, [*range(0xD800), *range(0xE000, NUM_CODES)]))
    classes = np.full(NUM_CODES, MARK, np.uint8)
    for pattern, kind in ((r"\p{L}+", LETTER), (r"\p{N}+", NUMBER), (r"\s+", BLANK), (r"[\r\n]", NEWLINE)):
        finder = tiktoken.Encoding("class", pat_str=pattern, mergeable_ranks=single_bytes, special_tokens={})
        classes[[ord(character) for character in finder.decode(finder.encode_ordinary(everything))]] = kind
    classes[ord(" ")], classes[ord("'")] = SPACE, APOSTROPHE
    return classes


def _lead_bit(utf8: bytes) -> np.uint64:
    """A number below 64 for the first byte of a character; one for all that are characters by themselves."""
    return np.uint64(63 if utf8[0] < 0x80 else utf8[0] - 0xC0)


@functools.cache
def _lead_bits() -> np.ndarray:
    """uint64 [NUM_CODES]: the same for each code point."""
    codes = np.arange(NUM_CODES, dtype=np.uint64)
    bits = 0x20 + (codes >> 12)
    bits[:0x800] = codes[:0x800] >> 6
    bits[:0x80] = 63
    bits[0x10000:] = 0x30 + (codes[0x10000:] >> 18)
    return bits


class BytePieces:
    """bpe: an encoding with the pattern PIECE; ranks: its tokens and their ids."""

    def __init__(self, bpe: tiktoken.Encoding, ranks: dict[bytes, int]) -> None:
        self._encode = bpe.encode_ordinary
        self._known: dict[str, list[int]] = {}
        self._separator_ids = self._encode(SEPARATOR)
        self._trained = True
        strings, ids, others = [], [], []
        for token, index in ranks.items():
            try:
                string = token.decode()
            except UnicodeDecodeError:
                others.append(token)
                continue
            self._trained &= bpe._encode_single_piece(APART + token)[1:] == [index]
            strings.append(string)
            ids.append(index if self._encode(string) == [index] else TOKEN_WITHOUT_ID)  # PIECE may split a token
        self._tree = TokenTree(strings, ids)
        self._traits = _classes().copy()
        self._parts_behind = np.zeros(NUM_CODES, np.uint64)  # bits: first bytes
        self._parts_before = np.zeros(NUM_CODES, np.uint64)  # bits: last bytes, which are 0x80 to 0xBF
        for token in others:
            self._add_parts(token)
        self._traits[self._parts_behind != 0] |= BEFORE_PART
        self._traits[self._parts_before != 0] |= BEHIND_PART

    def _add_parts(self, token: bytes) -> None:
        """Notes each place in a token with a part of a character, by what is on both sides."""
        characters = re.findall(rb"[\x80-\xbf]+|[^\x80-\xbf][\x80-\xbf]*", token)
        for left, right in itertools.pairwise(characters):
            if left[0] & 0xC0 != 0x80:
                for character in left.decode(errors="ignore"):
                    self._parts_behind[ord(character)] |= np.uint64(1) << _lead_bit(right)
                continue
            try:
                behind = [ord(right.decode())]
            except UnicodeDecodeError:
                behind = np.flatnonzero(_lead_bits() == _lead_bit(right))
            self._parts_before[behind] |= np.uint64(1) << np.uint64(left[-1] & 0x3F)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, as bpe.encode_ordinary gives them."""
        if not self._trained:
            return [self._encode(text) for text in texts]
        rows, batch, size = [], [], 0
        for text in texts:
            batch.append(text)
            size += len(text)
            if size >= CHARACTERS_AT_ONCE:
                rows += self._batch_ids(batch)
                batch, size = [], 0
        return rows + (self._batch_ids(batch) if batch else [])

    def _batch_ids(self, texts: list[str]) -> list[list[int]]:
        joined = "\n".join([*texts, ""])
        try:
            codes = np.frombuffer(joined.encode("utf-32-le"), np.uint32)
        except UnicodeEncodeError:  # lone surrogates, which tiktoken replaces
            return [self._encode(text) for text in texts]
        text_ends = np.cumsum([len(text) + 1 for text in texts]) - 1
        begins, ends, ids = self._pieces(codes, text_ends)
        unknown = ids < 0
        spans = zip(begins[unknown].tolist(), ends[unknown].tolist(), strict=True)
        rows = self._encoded([joined[begin:end] for begin, end in spans])
        counts = np.ones(len(ids) + 1, np.int64)
        counts[:-1][unknown] = [len(row) for row in rows]
        firsts = np.cumsum(counts) - counts  # where the ids of each piece begin; the last one is no piece
        flat = np.empty(firsts[-1], np.int64)
        single = np.zeros(len(flat), bool)
        single[firsts[:-1][~unknown]] = True
        flat[single] = ids[~unknown]
        flat[~single] = list(itertools.chain.from_iterable(rows))
        flat = flat.tolist()
        bounds = firsts[np.searchsorted(begins, text_ends)].tolist()
        return [flat[begin:end] for begin, end in itertools.pairwise([0, *bounds])]

    def _pieces(self, codes: np.ndarray, text_ends: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Begins and ends (int64 [P]) of the pieces of all texts, and their ids (int32 [P]), below 0 where not known.

        codes: uint32 [N], code points of texts, at whose ends (int64, the last one N - 1) are characters of no text.
        """
        verdicts = self._verdicts(codes, text_ends)
        cuts = verdicts == CUT
        ids, ends = self._tree.longest(codes, cuts)
        reach = np.maximum.accumulate(ends)
        cuts[1:-1] |= (verdicts[1:-1] == MAYBE) & (reach[:-1] <= np.arange(1, len(codes)))
        bounds = np.flatnonzero(cuts)
        in_text = np.ones(len(codes), bool)
        in_text[text_ends] = False
        of_text = in_text[bounds[:-1]]
        begins, piece_ends = bounds[:-1][of_text], bounds[1:][of_text]
        return begins, piece_ends, np.where(ends[begins] == piece_ends, ids[begins], NO_TOKEN)

    def _verdicts(self, codes: np.ndarray, text_ends: np.ndarray) -> np.ndarray:
        """uint8 [N + 1]: NEVER, MAYBE or CUT before each of the `codes` and behind the last."""
        traits = self._traits[codes]
        classes = np.zeros(len(codes) + 2, np.uint16)
        classes[1:-1] = traits & 7
        classes[1:-1][text_ends] = END
        pairs = classes[:-1] << 3 | classes[1:]
        verdicts = np.full(len(codes) + 1, CUT)
        inner, left, right = verdicts[1:-1], codes[:-1], codes[1:]
        inner[:] = _table()[pairs[:-2] << 6 | pairs[2:]]
        places = np.flatnonzero(traits[:-1] & BEFORE_PART)
        spanned = self._parts_behind[left[places]] >> _lead_bits()[right[places]] & 1 != 0
        inner[places[spanned]] &= CUT  # what was MAYBE is NEVER
        places = np.flatnonzero(traits[1:] & BEHIND_PART)
        last_bits = (left[places] & 0x3F).astype(np.uint64)
        spanned = (left[places] >= 0x80) & (self._parts_before[right[places]] >> last_bits & 1 != 0)
        inner[places[spanned]] &= CUT
        return verdicts

    def _encoded(self, pieces: list[str]) -> list[list[int]]:
        """The ids of each piece, as tiktoken gives them now or has given them before."""
        if len(self._known) > MOST_KNOWN:
            self._known = {}
        known = self._known  # another thread may begin anew
        rows = list(map(known.get, pieces))
        missing = [at for at, row in enumerate(rows) if row is None]
        if missing:
            new = list(dict.fromkeys(pieces[at] for at in missing))
            fresh = dict(zip(new, self._encode_each(new), strict=True))
            known.update((piece, ids) for piece, ids in fresh.items() if len(piece) <= LONGEST_KNOWN)
            for at in missing:
                rows[at] = fresh[pieces[at]]
        return rows

    def _encode_each(self, pieces: list[str]) -> list[list[int]]:
        """tiktoken gets one text with SEPARATOR behind each piece.

        The separator's blank is the last one in a row of blanks and before a digit, and therefore a match of PIECE by
        itself, as the digit is; and no piece has that digit in it.
        """
        ids = self._encode("".join(piece + SEPARATOR for piece in pieces))
        behind = np.flatnonzero(np.array(ids) == self._separator_ids[-1]) + 1
        bounds = itertools.pairwise([0, *behind.tolist()])
        return [ids[begin : end - len(self._separator_ids)] for begin, end in bounds]
