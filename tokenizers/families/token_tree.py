"""The tokens of a vocabulary as a tree that is stepped with numpy, for all characters of many texts at once."""

from __future__ import annotations

import numpy as np

NUM_CODES = 0x110000
CODE_BITS = 21
# Longer strings are known by so many characters.
LONGEST = 16
# Not an id: no string ends here; one does that has no id, or one does perhaps.
NO_TOKEN, TOKEN_WITHOUT_ID = -1, -2


class TokenTree:
    """Strings with ids as a tree of states, one for each beginning of a string, of up to LONGEST characters.

    State 0: no string begins so. The states of each length from 2 on are the places of a hash table, in which (state,
    character) is found where it leads to.
    """

    def __init__(self, strings: list[str], ids: list[int]) -> None:
        lengths = np.array([len(string) for string in strings])
        codes = np.frombuffer("".join(strings).encode("utf-32-le"), np.uint32)
        begins = np.cumsum(lengths) - lengths
        firsts = np.unique(codes[begins])
        self._first = np.zeros(NUM_CODES, np.int64)
        self._first[firsts] = np.arange(1, len(firsts) + 1)
        states = self._first[codes[begins]]
        self._tables: list[tuple[int, np.ndarray]] = []  # of length 2, 3, ...: the state of the first place, and keys
        num_states, inner = len(firsts) + 1, []
        for length in range(2, min(int(lengths.max()), LONGEST) + 1):
            left = np.flatnonzero(lengths >= length)
            inner.append(states[left])
            keys, inverse = np.unique(_keys(states[left], codes[begins[left] + length - 1]), return_inverse=True)
            table, places = _hash_table(keys)
            self._tables.append((num_states, table))
            states[left] = (num_states + places)[inverse]
            num_states += len(table)
        self._goes_on = np.zeros(num_states, bool)
        self._goes_on[np.concatenate([*inner, states[lengths > LONGEST]])] = True
        self._ids = np.full(num_states, NO_TOKEN, np.int32)
        self._ids[states[lengths <= LONGEST]] = np.array(ids)[lengths <= LONGEST]

    def longest(self, codes: np.ndarray, closed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What id (int32 [N]) the longest string has that begins at each of the `codes`, and its end (int64 [N]).

        closed: bool [N + 1], places that no string may span, the two ends among them. NO_TOKEN ends after a character;
        where a string may be longer than LONGEST, TOKEN_WITHOUT_ID ends at the next closed place.
        """
        states = self._first[codes]
        ids, ends = self._ids[states], np.arange(1, len(codes) + 1)
        items = np.flatnonzero(self._goes_on[states] & ~closed[1:])
        states = states[items]
        for length, (begin, table) in enumerate(self._tables, start=2):
            places = _find(table, _keys(states, codes[items + length - 1]))
            found = np.flatnonzero(places >= 0)
            items, states = items[found], begin + places[found]
            ids_here = self._ids[states]
            is_string = np.flatnonzero(ids_here != NO_TOKEN)
            ids[items[is_string]] = ids_here[is_string]
            ends[items[is_string]] = items[is_string] + length
            more = np.flatnonzero(self._goes_on[states] & ~closed[items + length])
            items, states = items[more], states[more]
        places = np.flatnonzero(closed)
        ids[items] = TOKEN_WITHOUT_ID
        ends[items] = places[np.searchsorted(places, items + 1)]
        return ids, ends


def _keys(states: np.ndarray, codes: np.ndarray) -> np.ndarray:
    return states.astype(np.uint64) << np.uint64(CODE_BITS) | codes


def _places(table: np.ndarray, keys: np.ndarray) -> np.ndarray:
    bits = len(table).bit_length() - 1
    return (keys * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(64 - bits)).astype(np.int64)


def _hash_table(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint64, a power of two: a table with the keys in it (none is 0, which is an empty place); and where each is."""
    table = np.zeros(1 << (4 * len(keys)).bit_length(), np.uint64)
    places = _places(table, keys)
    left = np.arange(len(keys))
    while left.size:  # each round all try their place; whoever finds it taken tries the next one
        free = left[table[places[left]] == 0]
        table[places[free]] = keys[free]
        left = left[table[places[left]] != keys[left]]
        places[left] = (places[left] + 1) & (len(table) - 1)
    return table, places


def _find(table: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """int64: where the keys are in the table, -1 for those that are not in it."""
    places = _places(table, keys)
    found = table[places]
    missed = np.flatnonzero(found != keys)
    taken = missed[found[missed] != 0]
    left, at, wanted = taken, places[taken], keys[taken]
    places[missed] = -1
    while left.size:  # another key has the place: it may be in the next one
        at = (at + 1) & (len(table) - 1)
        found = table[at]
        places[left[found == wanted]] = at[found == wanted]
        more = (found != wanted) & (found != 0)
        left, at, wanted = left[more], at[more], wanted[more]
    return places
