"""Is a block the aggregate of the parts committed to? Figures in a direction that nobody could foresee (papers.md B.3, steps 5 to 9).

Mean and CenteredClip end where `sum_i w_i clip(g_i - v) = 0`. So every contributor i reports the projection `<z, g_i - v>` of its part and
its distance `|g_i - v|`, and the weighted, clipped sum of all projections must vanish (verification 2). z is drawn after the result was
agreed on: a false v is seen unless its error happens to be almost orthogonal to z. If more than half of the contributors find the result
further away than their own parts explain, the block is looked at as well (verification 3): that bounds what a reducer and senders who lie
together can do. What does not vanish is reduced again in the open; verification 1, a contributor's figures against its part, is done there.

z has a random sign for each element (`Direction`), so `<z, e>` of an error e is about |e|, hardly ever more than 8 |e|, and a tenth of it
or more in nine of ten draws. Legend: E elements of a block, T of a tile, S of a stretch, G contributors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from blake3 import blake3

from protocols.aggregation.base import clip_factor
from protocols.codecs.base import Codec, norm64
from protocols.ids import BlockIndex
from protocols.parts import TILE_ELEMS, Part, read_part

_ROW_DOMAIN = b"swarm.v1.direction-row"
_SIGNS_DOMAIN = b"swarm.v1.direction-signs"
_DOWN = 2.0**-80
_HOEFFDING = 8.0
_FAR = 4.0
"""Times the median distance: what is further away makes no more room for rounding."""

_ROUNDING = 1e-5
"""Of norms: what fp32 folds, fp32 dot products and an iteration that stops at 1e-6 of the radius may leave."""

_MOST = 2.0**170
"""No fp32 part has larger figures: a projection is at most 2^129 times its elements. Sums of larger ones would overflow."""

_DOUBTFUL = 1e-3
"""Of lengths: so close to the limit either word is right."""

LEAST_RADIUS_SHARE, MOST_RADIUS_SHARE = 0.25, 2.0
"""A radius of clipping is the distance within which more than half of the parts lie around the most central one. Those who lie within m of
the result lie within 2 m of each other, so it is at most 2 m. And the result lies within 2.9 radii of the most central part, if 33 of 64
are around that, and nearer in smaller groups: so m is at most 4 radii. A reducer could state a radius so short that whatever it returns
leaves a sum of next to nothing."""

_SIGN_TABLE = (1.0 - 2.0 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)).astype(np.float32)
_ROW_ELEMS = 2**12
_STRETCH_ELEMS = 2**15


def _signs(seed: bytes, count: int) -> torch.Tensor:
    octets = np.frombuffer(blake3(seed).digest(length=-(-count // 8)), dtype=np.uint8)
    return torch.from_numpy(_SIGN_TABLE[octets].reshape(-1)[:count])


class Direction:
    """z of one block: rows of 2^12 signs, all of them one row that the coin gives times a sign of their own.

    Against an error that is fixed before the coin it is as good as a sign for each element but for errors whose rows are alike: these are
    seen, or not, by that one row (of errors of that kind a hundred times the tolerance, one in a hundred passes a block). It costs one
    product of a matrix and a vector instead of a hash for each element.

    Args:
        coin: of the round.
        block: which.
        elems: E.
    """

    def __init__(self, coin: bytes, block: BlockIndex, elems: int) -> None:
        seed = coin + block.to_bytes(8, "little")
        self._row = _signs(_ROW_DOMAIN + seed, _ROW_ELEMS)
        self._signs = _signs(_SIGNS_DOMAIN + seed, -(-elems // _ROW_ELEMS))

    def project(self, start: int, vector_S: torch.Tensor) -> float:
        """<z, x> of a stretch that begins at `start`, a multiple of 2^12."""
        count, first = vector_S.numel(), start // _ROW_ELEMS
        whole = count // _ROW_ELEMS
        rows = torch.mv(vector_S[: whole * _ROW_ELEMS].view(whole, _ROW_ELEMS), self._row)
        total = float(torch.dot(rows, self._signs[first : first + whole]))
        rest = vector_S[whole * _ROW_ELEMS :]
        if rest.numel():
            total += float(torch.dot(rest, self._row[: rest.numel()])) * float(self._signs[first + whole])
        return total


@dataclass(frozen=True, slots=True)
class Figures:
    """What a contributor says of one block: `<z, g - v>` and `|g - v|`; and for its own use `|g|`."""

    projection: float
    distance: float
    length: float = 0.0


def figures_of(part_E: Part, result_E: torch.Tensor, coin: bytes, block: BlockIndex) -> Figures:
    """Figures of one part, in one pass, stretch by stretch in a core's cache; stretches are summed in fp64."""
    elems = result_E.numel()
    direction = Direction(coin, block, elems)
    projection = squares = own_squares = 0.0
    scratch_T, difference_S = torch.empty(min(TILE_ELEMS, elems)), torch.empty(min(_STRETCH_ELEMS, elems))
    for start in range(0, elems, TILE_ELEMS):
        part_T = _tile(part_E, start, scratch_T[: min(TILE_ELEMS, elems - start)])
        for inner in range(0, part_T.numel(), _STRETCH_ELEMS):
            part_S, at = part_T[inner : inner + _STRETCH_ELEMS], start + inner
            own_squares += float(torch.dot(part_S, part_S))
            difference = torch.sub(part_S, result_E[at : at + part_S.numel()], out=difference_S[: part_S.numel()])
            squares += float(torch.dot(difference, difference))
            projection += direction.project(at, difference)
    if not math.isfinite(squares + own_squares + projection):
        return _wide_figures(part_E, result_E, direction)
    return Figures(projection, math.sqrt(squares), math.sqrt(own_squares))


def _tile(part_E: Part, start: int, scratch_T: torch.Tensor) -> torch.Tensor:
    """A tile of a part, decoded where it has to be."""
    if isinstance(part_E, torch.Tensor):
        return part_E[start : start + scratch_T.numel()]
    part_E.read(start, scratch_T)
    return scratch_T


def _wide_figures(part_E: Part, result_E: torch.Tensor, direction: Direction) -> Figures:
    """As `figures_of` for parts whose squares do not fit fp32. Scaled down by a power of two, everything does."""
    part_E64 = torch.empty(result_E.numel())
    for start in range(0, part_E64.numel(), TILE_ELEMS):
        read_part(part_E, start, part_E64[start : start + TILE_ELEMS])
    difference_E = part_E64.double() - result_E.double()
    scaled_E = (difference_E * _DOWN).float()
    starts = range(0, scaled_E.numel(), _STRETCH_ELEMS)
    projection = math.fsum(direction.project(start, scaled_E[start : start + _STRETCH_ELEMS]) for start in starts) / _DOWN
    lengths = (float(torch.linalg.vector_norm(vector)) for vector in (difference_E, part_E64.double()))
    return Figures(projection, *lengths)


@dataclass(frozen=True, slots=True)
class BlockFacts:
    """What everybody knows of a reduced block.

    Args:
        weights_G: of its contributors, as the aggregate counts them; positive.
        radius: of clipping; infinite where nothing is clipped.
        norm: of the block.
        codec_error: `codec_error` of the block.
        clipped: whether the radius must be one that CenteredClip observes (`LEAST_RADIUS_SHARE`).
        reducer: who has signed for it, as an index into the plan.
    """

    weights_G: tuple[float, ...]
    radius: float
    norm: float
    codec_error: float
    clipped: bool = False
    reducer: int | None = None


def codec_error(codec: Codec, result_E: torch.Tensor) -> float:
    """Largest 2-norm of what encoding may have changed in a block."""
    return codec.error_norm(result_E)


def block_norm(result_E: torch.Tensor) -> float:
    """2-norm, summed in fp64 over tiles."""
    tiles = (result_E[start : start + TILE_ELEMS] for start in range(0, result_E.numel(), TILE_ELEMS))
    norms = [float(torch.linalg.vector_norm(tile)) for tile in tiles]
    if all(math.isfinite(norm) for norm in norms):
        return math.hypot(*norms) if norms else 0.0
    return norm64(result_E)  # or one huge element makes everything else tolerable


def residual(figures_G: Sequence[Figures], facts: BlockFacts) -> float:
    """|sum_i w_i clip_i <z, g_i - v>| / sum_i w_i."""
    total = sum(facts.weights_G)
    clipped = (w * clip_factor(f.distance, facts.radius) * f.projection for w, f in zip(facts.weights_G, figures_G, strict=True))
    return abs(math.fsum(clipped)) / total


def tolerance(figures_G: Sequence[Figures], facts: BlockFacts) -> float:
    """What honest rounding and encoding may leave of `residual`: 8 times the codec's largest error, and 1e-5 of the norms involved.

    A distance counts up to four times the median one, so that nobody makes room for others' lies by claiming a huge one.
    """
    total = sum(facts.weights_G)
    most = min(facts.radius, _FAR * sorted(f.distance for f in figures_G)[len(figures_G) // 2])
    clipped = math.fsum(w * min(f.distance, most) for w, f in zip(facts.weights_G, figures_G, strict=True)) / total
    return _HOEFFDING * facts.codec_error + _ROUNDING * (facts.norm + clipped) + 1e-30


def suspicious(figures_G: Sequence[Figures], facts: BlockFacts) -> bool:
    """Verification 2 of one block, given the figures of all its contributors.

    A projection far longer than its distance is possible in theory and made up in practice: it could cancel anybody's lie. Figures that no
    part can have belong to a liar.
    """
    if any(max(abs(f.projection), f.distance) > _MOST for f in figures_G):
        return True
    slack = tolerance(figures_G, facts)
    absurd = any(abs(f.projection) > _HOEFFDING * f.distance + slack for f in figures_G)
    return absurd or residual(figures_G, facts) > slack or (facts.clipped and not _fits(facts, figures_G))


def _fits(facts: BlockFacts, figures_G: Sequence[Figures]) -> bool:
    """Whether a stated radius can be that of these distances. Fewer than half of them, false ones, only move m among the others."""
    majority = sorted(f.distance for f in figures_G)[len(figures_G) // 2]
    slack = facts.codec_error + _ROUNDING * (facts.norm + majority) + 1e-30
    return LEAST_RADIUS_SHARE * (majority - slack) <= facts.radius <= MOST_RADIUS_SHARE * (majority + slack)


def doubts(distance: float, part_norm: float) -> bool:
    """Verification 3, one contributor's vote: nothing at all would be closer to its part than this result.

    A mean holds some of every part in it, so it is closer to nearly all of them than zero is, however noisy they are: `|g - v| < |g|`
    where `2 <g, v> > |v|^2`. What is turned against most parts, or is mostly noise of its own, is not. A block that most contributors
    doubt is looked at; of those that more than a third doubt one is drawn, because noise alone makes some doubt and looking costs the
    parts of all. So those who lie together are found by and by, however many honest members they please. To doubt what one's own part
    does not doubt, or the reverse, is a false check.
    """
    return distance > part_norm


def doubt_differs(doubted: bool, found: Figures, margin: float = 1.0) -> bool:
    """Verification 1: whether a contributor's doubt, or its lack, is not what its part gives; the margin is that of `figures_differ`."""
    clear = abs(found.distance - found.length) > margin * _DOUBTFUL * found.length
    return clear and doubted != doubts(found.distance, found.length)


def figures_differ(claimed: Figures, found: Figures, margin: float = 1.0) -> bool:
    """Verification 1: whether what a contributor said of its part is not so; with a margin, so clearly that nobody can find otherwise."""
    allowed = margin * 10 * _ROUNDING * (found.distance + 1e-30)
    return abs(claimed.projection - found.projection) > allowed or abs(claimed.distance - found.distance) > allowed


def reductions_differ(claimed_E: torch.Tensor, found_E: torch.Tensor, facts: BlockFacts, spread: float) -> bool:
    """Whether a block is not the aggregate that somebody else finds from the same parts.

    Args:
        claimed_E: as its reducer returned it.
        found_E: as we reduce and encode it.
        facts: of the block that we find: whoever claims another must not choose what it is allowed.
        spread: of the parts around it: the largest distance that counts, at most the radius.
    """
    distance = block_norm(claimed_E - found_E)
    return distance > 2 * facts.codec_error + 2 * _ROUNDING * (facts.norm + spread) + 1e-30


def unverifiable(contributors: Mapping[BlockIndex, Sequence[int]], checked: frozenset[int]) -> tuple[BlockIndex, ...]:
    """Blocks with a contributor who has not reported, so that their sums cannot vanish."""
    return tuple(block for block in sorted(contributors) if not checked.issuperset(contributors[block]))


def drawn_block(coin: bytes, blocks: Sequence[BlockIndex]) -> BlockIndex:
    """One of these blocks, by the coin: it is looked at although nothing is known against it."""
    number = int.from_bytes(blake3(b"swarm.v1.drawn-block" + coin).digest()[:8], "little")
    return blocks[number % len(blocks)]
