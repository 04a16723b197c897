"""Entropy coding of small numbers whose histogram is sent along: asymmetric numeral systems (J. Duda, arXiv 1311.2540), many lanes at once.

A lane is a state x, 2^32 <= x < 2^64. Coding a symbol of frequency f of 2^16 multiplies it by about 2^16/f; what does not fit any more
goes out as a word of 32 bits. Lanes take turns by symbols, so one step of all of them is a few numpy calls. What lanes cost is little: each
starts with 32 bits of something that has to be sent anyway, and of its last state only the bits below the uppermost are written.

Numbers that are nearly always 0 take far less than a bit each: several of them are one symbol, as many as keep the alphabet at 256.

Legend: E numbers, A different ones, S symbols, F lanes, R rows of F symbols.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]
Words = NDArray[np.uint64]
Bits = NDArray[np.uint8]

SCALE_BITS = 16
LARGEST_ALPHABET = 256
_SCALE = 1 << SCALE_BITS
_WORD, _TABLE = np.uint64(32), np.uint64(SCALE_BITS)
_LOWEST = np.uint64(1 << 32)
_LOWER = np.uint64(2**32 - 1)
_FULL = np.uint64(64 - SCALE_BITS)
_MOST_IN_ONE = 8
_EXACT = 40


def frequencies(counts_A: Numbers) -> Numbers:
    """Counts as shares of 2^16, none below 1; needs at least two and at most 256 numbers."""
    shares_A = np.maximum(counts_A * _SCALE // int(counts_A.sum()), 1)
    shares_A[int(np.argmax(shares_A))] += _SCALE - int(shares_A.sum())
    return shares_A


class Alphabet:
    """Symbols: several numbers each.

    Args:
        shares_A: of each number, of 2^16.

    Raises:
        ValueError: they are no shares.
    """

    def __init__(self, shares_A: Numbers) -> None:
        size = shares_A.size
        if not 2 <= size <= LARGEST_ALPHABET or int(shares_A.min()) < 1 or int(shares_A.sum()) != _SCALE:
            raise ValueError("frequencies do not add up")
        self.together = max(count for count in range(1, _MOST_IN_ONE + 1) if size**count <= LARGEST_ALPHABET)
        places = size ** np.arange(self.together)
        self._numbers = np.arange(size**self.together)[:, None] // places % size
        exact = np.full(len(self._numbers), 1 << _EXACT, dtype=np.int64)
        for column in range(self.together):
            exact = exact * shares_A[self._numbers[:, column]] >> SCALE_BITS
        shares = shares_A if self.together == 1 else frequencies(exact)
        self.shares = shares.astype(np.uint64)
        self.begins = (np.cumsum(shares) - shares).astype(np.uint64)
        self.owners = np.repeat(np.arange(shares.size, dtype=np.uint8), shares)
        self._places = places

    def count(self, elems: int) -> int:
        """S of so many numbers."""
        return -(-elems // self.together)

    def symbols(self, numbers_E: Numbers | Bits) -> Numbers | Bits:
        """E numbers, filled up with zeros, as S symbols."""
        if self.together == _MOST_IN_ONE:  # of 0 and 1, which lie in the bits of a byte in this order
            return np.packbits(numbers_E.astype(np.uint8, copy=False), bitorder="little")
        filled = np.zeros(self.count(numbers_E.size) * self.together, dtype=np.int64)
        filled[: numbers_E.size] = numbers_E
        found: Numbers = filled.reshape(-1, self.together) @ self._places
        return found

    def numbers_of(self, symbols_S: Bits, elems: int) -> Numbers | Bits:
        """The reverse.

        Raises:
            ValueError: filled up with something else.
        """
        filled = np.unpackbits(symbols_S, bitorder="little") if self.together == _MOST_IN_ONE else self._numbers[symbols_S].reshape(-1)
        if bool(filled[elems:].any()):
            raise ValueError("a number that is not there is not zero")
        return filled[:elems]


def begun(seeds_F: Words) -> Words:
    """States that begin with seeds, below 2^32 each, which come back when decoding."""
    return seeds_F | _LOWEST


def seeds_of(states_F: Words) -> Words:
    """The reverse.

    Raises:
        ValueError: states that no seeds lead to.
    """
    if bool((states_F >> _WORD != 1).any()):
        raise ValueError("lanes do not end where they begin")
    return states_F & _LOWER


def encode(alphabet: Alphabet, numbers_E: Numbers | Bits, states_F: Words) -> tuple[Words, Words]:
    """The next states of all lanes, and words of 32 bits. What is coded last is decoded first.

    Args:
        alphabet: that the numbers are of.
        numbers_E: what is coded; at least one.
        states_F: of `begun`, or of what was coded before.
    """
    symbols_S, lanes = alphabet.symbols(numbers_E), states_F.size
    states_F = states_F.copy()
    out: list[Words] = []
    for start in range((symbols_S.size - 1) // lanes * lanes, -1, -lanes):
        row = symbols_S[start : start + lanes]
        shares, states = alphabet.shares[row], states_F[: row.size]
        full = states >= shares << _FULL
        out.append(states[full] & _LOWER)
        np.right_shift(states, _WORD, out=states, where=full)
        quotients, rests = np.divmod(states, shares)
        states[:] = (quotients << _TABLE) + rests + alphabet.begins[row]
    return states_F, np.concatenate(out[::-1])


def decode(alphabet: Alphabet, elems: int, states_F: Words, words: Words) -> tuple[Numbers | Bits, Words, Words]:
    """The numbers, the states before them, and the words that are left.

    Raises:
        ValueError: too few words, or symbols that are not of so many numbers.
    """
    count, lanes, at = alphabet.count(elems), states_F.size, 0
    symbols_S, states_F = np.empty(count, dtype=np.uint8), states_F.copy()
    for start in range(0, count, lanes):
        states = states_F[: min(lanes, count - start)]
        slots = states & np.uint64(_SCALE - 1)
        row = alphabet.owners[slots]
        symbols_S[start : start + lanes] = row
        states[:] = alphabet.shares[row] * (states >> _TABLE) + slots - alphabet.begins[row]
        low = np.flatnonzero(states < _LOWEST)
        if at + low.size > words.size:
            raise ValueError("words are missing")
        states[low] = states[low] << _WORD | words[at : at + low.size]
        at += low.size
    return alphabet.numbers_of(symbols_S, elems), states_F, words[at:]


def bits_of(values: Words, widths: Numbers) -> Bits:
    """Each value as so many bits, the highest first, one after the other."""
    owners = np.repeat(np.arange(values.size), widths)
    down = np.repeat(np.cumsum(widths), widths) - np.arange(owners.size) - 1
    return (values[owners] >> down.astype(np.uint64) & np.uint64(1)).astype(np.uint8)


def values_of(bits: Bits, widths: Numbers) -> Words:
    """The reverse; bits must be there."""
    ends = np.cumsum(widths)
    total = int(ends[-1]) if ends.size else 0
    owners = np.repeat(np.arange(widths.size), widths)
    down = (np.repeat(ends, widths) - np.arange(total) - 1).astype(np.uint64)
    found = np.zeros(widths.size, dtype=np.uint64)
    np.bitwise_or.at(found, owners, bits[:total].astype(np.uint64) << down)
    return found


class BitReader:
    """Bits, taken one part after the other."""

    def __init__(self, bits: Bits) -> None:
        self._bits = bits

    def take(self, count: int) -> Bits:
        """The next ones."""
        if count > self._bits.size:
            raise ValueError("an encoding is too short")
        taken, self._bits = self._bits[:count], self._bits[count:]
        return taken

    def numbers(self, widths: Numbers) -> Words:
        """The next ones as numbers."""
        return values_of(self.take(int(widths.sum())), widths)

    def at_end(self) -> bool:
        """Whether only what fills a byte is left."""
        return self._bits.size < 8 and not bool(self._bits.any())


def bit_lengths(states_F: Words) -> Numbers:
    """Of numbers from 2^32 on."""
    return np.frexp((states_F >> _WORD).astype(np.float64))[1].astype(np.int64) + 32
