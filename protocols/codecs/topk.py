"""Sparse blocks: of each chunk the largest elements, as a sign and one of a few magnitudes (SparseLoCo, arXiv 2508.15706).

Read `largest.py` (which elements), `levels.py` (what they become) and `records.py` (their bytes) first. All other elements decode to 0: who
sends such a block has to keep what was left out and add it to the next one (error feedback).

Legend: E elements of a block, N chunks of C elements, K slots of a record, L levels, P kept elements.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from protocols.codecs import levels
from protocols.codecs.base import BytesLike, FixedLengthCodec, largest_magnitude
from protocols.codecs.full import bytes_view, view_as
from protocols.codecs.largest import CHUNK_ELEMS, SMALLEST_KEPT, largest_places
from protocols.codecs.records import Chunks, RecordFormat
from protocols.codecs.sparse import SparseBlock

Opened = tuple[int, RecordFormat, Chunks]
"""Where its first chunk begins, and its chunks: the full ones, or the last one."""


class TopKCodec(FixedLengthCodec):
    """Keeps `slots` of 4096 elements; of a shorter chunk, the last one, the same share, rounded up.

    With M the largest magnitude of a block, the error of an element is at most M and 2^-9 of it.

    Args:
        name: as in a run.
        slots: how many elements of a full chunk are kept.
        value_bits: of each: a sign, and which of 2^(value_bits - 1) levels.
        result_slots: how many where a reducer returns blocks. A mean of many sparse blocks has more elements that matter than any of
            them, so fewer may go up than come back.
    """

    def __init__(self, name: str, slots: int, value_bits: int, result_slots: int | None = None) -> None:
        if not 1 <= slots <= CHUNK_ELEMS or value_bits < 2:
            raise ValueError(f"{slots} of {CHUNK_ELEMS} elements with {value_bits} bits are no sparse block")
        self.name = name
        self.slots = slots
        self.value_bits = value_bits
        self._results = TopKCodec(f"topk{result_slots}", result_slots, value_bits) if result_slots else self

    @property
    def results(self) -> TopKCodec:
        """Of as many bits a value, but perhaps another number of slots."""
        return self._results

    def format_for(self, elems: int) -> RecordFormat:
        """Of a chunk of that many elements."""
        return RecordFormat(elems, -(-elems * self.slots // CHUNK_ELEMS), self.value_bits, 2 ** (self.value_bits - 1))

    def encoded_bytes(self, elems: int) -> int:
        """A record for each chunk."""
        return sum(chunks * form.record_bytes for _, chunks, form in self._pieces(elems))

    def _pieces(self, elems: int) -> list[tuple[int, int, RecordFormat]]:
        """Where chunks of one length begin, how many there are, and their format."""
        full, rest = divmod(elems, CHUNK_ELEMS)
        found = [(0, full, self.format_for(CHUNK_ELEMS))] if full else []
        return [*found, (full * CHUNK_ELEMS, 1, self.format_for(rest))] if rest else found

    def encode(self, block_E: torch.Tensor) -> BytesLike:
        """Encode E finite elements.

        Raises:
            ValueError: an element is NaN or infinite.
        """
        source_E = block_E.detach().contiguous()
        data, end = np.empty(self.encoded_bytes(source_E.numel()), dtype=np.uint8), 0
        for start, chunks, form in self._pieces(source_E.numel()):
            source_NC = source_E[start : start + chunks * form.elems].view(chunks, form.elems)
            begin, end = end, end + chunks * form.record_bytes
            form.write(self._chosen(source_NC, form), data[begin:end].reshape(chunks, form.record_bytes))
        return bytes_view(data)

    def _chosen(self, source_NC: torch.Tensor, form: RecordFormat) -> Chunks:
        chunks = len(source_NC)
        places_P = largest_places(source_NC, form.slots)
        kept_P = source_NC.numpy().reshape(-1)[places_P]
        chunks_P = places_P // form.elems
        levels_NL, ranks_P = levels.choose(levels.rounded(np.abs(kept_P)), chunks_P, chunks, self.value_bits - 1)
        counts_N = np.bincount(chunks_P, minlength=chunks)
        filled_NK = np.arange(form.slots) < counts_N[:, None]
        places_NK, codes_NK = np.zeros(filled_NK.shape, dtype=np.int64), np.zeros(filled_NK.shape, dtype=np.int64)
        places_NK[filled_NK] = places_P % form.elems
        codes_NK[filled_NK] = 2 * ranks_P + (kept_P < 0)
        return Chunks(places_NK, codes_NK, filled_NK, levels_NL)

    def open(self, data: BytesLike, elems: int) -> SparseBlock:
        """Check records and list the kept elements; none of the others is touched.

        Raises:
            ValueError: wrong length, levels that are not ascending, not used, NaN, infinite or subnormal, and as `RecordFormat.read`.
        """
        return _listed(self._opened(data, elems), elems)

    def _opened(self, data: BytesLike, elems: int) -> list[Opened]:
        bytes_E, end, found = view_as(data, torch.uint8, self.encoded_bytes(elems)).numpy(), 0, []
        for start, chunks, form in self._pieces(elems):
            begin, end = end, end + chunks * form.record_bytes
            records = bytes_E[begin:end].reshape(chunks, form.record_bytes)
            levels.check_table(form.read_levels(records))
            opened = form.read(records)
            levels.check_use(opened.levels_NL, _elems_of_levels(opened))
            found.append((start, form, opened))
        return found

    def worst_error(self, block_E: torch.Tensor) -> float:
        """Whatever is left out is no larger than what is kept, and that becomes another kept magnitude, rounded."""
        return largest_magnitude(block_E) * (1 + levels.RELATIVE_ERROR)

    def error_norm(self, block_E: torch.Tensor) -> float:
        """From the encoding, which a block and what it was decoded to have in common.

        If all slots of a chunk are used, what is left out is no larger than the smallest kept element, and that no larger than the mean of
        its part, the lowest level. Else only subnormal numbers are left out.
        """
        squares = 0.0
        for _, form, chunks in self._opened(self.encode(block_E), block_E.numel()):
            elems_NL = _elems_of_levels(chunks)
            lowest_N = levels.values(chunks.levels_NL[:, 0]).astype(np.float64) * (1 + 4 * levels.RELATIVE_ERROR)
            left_out_N = form.elems - elems_NL.sum(1)
            lowest_N[left_out_N > form.elems - form.slots] = SMALLEST_KEPT
            squares += float((left_out_N * lowest_N**2 + levels.spread_squares(chunks.levels_NL, elems_NL)).sum())
        return math.sqrt(squares)


def _listed(opened: list[Opened], elems: int) -> SparseBlock:
    places, kept = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.float32)]
    for start, form, chunks in opened:
        rows, _ = np.nonzero(chunks.filled_NK)
        codes_P = chunks.codes_NK[chunks.filled_NK]
        places.append(chunks.places_NK[chunks.filled_NK] + rows * form.elems + start)
        magnitudes_P = levels.values(chunks.levels_NL)[rows, codes_P >> 1]
        kept.append(np.where(codes_P & 1, -magnitudes_P, magnitudes_P))
    return SparseBlock(np.concatenate(places), np.concatenate(kept), elems)


def _elems_of_levels(chunks: Chunks) -> NDArray[np.int64]:
    """How many elements become each level, N x L."""
    rows, _ = np.nonzero(chunks.filled_NK)
    ids_P = rows * chunks.levels_NL.shape[1] + (chunks.codes_NK[chunks.filled_NK] >> 1)
    return np.bincount(ids_P, minlength=chunks.levels_NL.size).reshape(chunks.levels_NL.shape)
