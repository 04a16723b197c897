"""Is a block the aggregate of the parts committed to? Figures in a direction that nobody could foresee (papers.md B.3, steps 5 to 9).

Mean and CenteredClip end where `sum_i w_i clip(g_i - v) = 0`. So every contributor i reports the projection `<z, g_i - v>` of its part and
its distance `|g_i - v|`, and the weighted, clipped sum of all projections must vanish (verification 2). z is drawn after the result was
agreed on: a false v is seen unless its error happens to be almost orthogonal to z. If more than half of the contributors find the result
further away than their own parts explain, the block is looked at as well (verification 3): that bounds what a reducer and senders who lie
together can do. What does not vanish is reduced again in the open; verification 1, a contributor's figures against its part, is done there.

z has a random sign for each element, so `<z, e>` of an error e is at most 8 |e| (but for 2 of 10^14 draws, Hoeffding), and half of it or
more in most draws. Legend: E elements of a block, T of a tile, G contributors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from blake3 import blake3

from protocols.codecs.base import Codec
from protocols.ids import BlockIndex
from protocols.parts import TILE_ELEMS, Part, read_part

_SIGNS_DOMAIN = b"swarm.v1.direction"
_HOEFFDING = 8.0
_ROUNDING = 1e-5
"""Of norms: what fp32 folds, fp32 dot products and an iteration that stops at 1e-6 of the radius may leave."""

DOUBT_TIMES = 4.0
"""Verification 3: a result further from a contributor's part than this many times the part's length is doubted. An honest result lies among
honest parts, so it is about as long as they are; whoever reduces states the radius of clipping itself, and one that is too large would let
through what should be clipped."""

LEAST_RADIUS_SHARE, MOST_RADIUS_SHARE = 0.25, 2.0
"""A radius of clipping is the distance within which more than half of the parts lie around the most central one. Those who lie within m of
the result lie within 2 m of each other, so it is at most 2 m. And the result lies within 2.9 radii of the most central part, if 33 of 64
are around that, and nearer in smaller groups: so m is at most 4 radii. A reducer could state a radius so short that whatever it returns
leaves a sum of next to nothing."""

_SIGN_TABLE = (1.0 - 2.0 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)).astype(np.float32)


def direction(coin: bytes, block: BlockIndex, tile: int, elems: int) -> torch.Tensor:
    """z_T: a random sign for each element of a tile of a block, from the round's coin."""
    seed = _SIGNS_DOMAIN + coin + block.to_bytes(8, "little") + tile.to_bytes(8, "little")
    octets = np.frombuffer(blake3(seed).digest(length=-(-elems // 8)), dtype=np.uint8)
    return torch.from_numpy(_SIGN_TABLE[octets].reshape(-1)[:elems])


@dataclass(frozen=True, slots=True)
class Figures:
    """What a contributor says of one block: `<z, g - v>` and `|g - v|`; and for its own use, `|g|`."""

    projection: float
    distance: float
    length: float = 0.0


def figures_of(part_E: Part, result_E: torch.Tensor, coin: bytes, block: BlockIndex) -> Figures:
    """Figures of one part, in one pass, tile by tile; tiles are summed in fp64."""
    projection = squares = own_squares = 0.0
    scratch_T = torch.empty(min(TILE_ELEMS, result_E.numel()))
    for tile, start in enumerate(range(0, result_E.numel(), TILE_ELEMS)):
        result_T = result_E[start : start + TILE_ELEMS]
        difference_T = scratch_T[: result_T.numel()]
        read_part(part_E, start, difference_T)
        own_squares += float(torch.dot(difference_T, difference_T))
        difference_T.sub_(result_T)
        projection += float(torch.dot(direction(coin, block, tile, difference_T.numel()), difference_T))
        squares += float(torch.dot(difference_T, difference_T))
    if not math.isfinite(squares + own_squares):
        return _wide_figures(part_E, result_E, coin, block)
    return Figures(projection, math.sqrt(squares), math.sqrt(own_squares))


def _wide_figures(part_E: Part, result_E: torch.Tensor, coin: bytes, block: BlockIndex) -> Figures:
    """As `figures_of` for parts whose squares do not fit fp32. Decoded parts are finite, so fp64 holds everything."""
    part = torch.empty(result_E.numel())
    for start in range(0, part.numel(), TILE_ELEMS):
        read_part(part_E, start, part[start : start + TILE_ELEMS])
    difference_E = part.double() - result_E.double()
    tiles = range(0, part.numel(), TILE_ELEMS)
    signs_E = torch.cat([direction(coin, block, i, min(TILE_ELEMS, part.numel() - start)) for i, start in enumerate(tiles)])
    lengths = (float(torch.linalg.vector_norm(vector)) for vector in (difference_E, part.double()))
    return Figures(float(torch.dot(signs_E.double(), difference_E)), *lengths)


@dataclass(frozen=True, slots=True)
class BlockFacts:
    """What everybody knows of a reduced block.

    Args:
        weights_G: of its contributors, as the aggregate counts them; positive.
        radius: of clipping; infinite where nothing is clipped.
        norm: of the block.
        codec_error: `codec_error` of the block.
        clipped: whether the radius must be one that CenteredClip observes (`LEAST_RADIUS_SHARE`).
    """

    weights_G: tuple[float, ...]
    radius: float
    norm: float
    codec_error: float
    clipped: bool = False


def codec_error(codec: Codec, result_E: torch.Tensor) -> float:
    """Largest 2-norm of what encoding may have changed in a block."""
    return codec.worst_error(result_E) * math.sqrt(result_E.numel())


def block_norm(result_E: torch.Tensor) -> float:
    """2-norm, summed in fp64 over tiles."""
    tiles = (result_E[start : start + TILE_ELEMS] for start in range(0, result_E.numel(), TILE_ELEMS))
    norms = [float(torch.linalg.vector_norm(tile)) for tile in tiles]
    return math.hypot(*norms) if norms else 0.0


def residual(figures_G: Sequence[Figures], facts: BlockFacts) -> float:
    """|sum_i w_i clip_i <z, g_i - v>| / sum_i w_i."""
    total = sum(facts.weights_G)
    clipped = (w * _factor(f.distance, facts.radius) * f.projection for w, f in zip(facts.weights_G, figures_G, strict=True))
    return abs(math.fsum(clipped)) / total


def tolerance(figures_G: Sequence[Figures], facts: BlockFacts) -> float:
    """What honest rounding and encoding may leave of `residual`: 8 times the codec's largest error, and 1e-5 of the norms involved."""
    total = sum(facts.weights_G)
    clipped = math.fsum(w * min(f.distance, facts.radius) for w, f in zip(facts.weights_G, figures_G, strict=True)) / total
    return _HOEFFDING * facts.codec_error + _ROUNDING * (facts.norm + clipped) + 1e-30


def suspicious(figures_G: Sequence[Figures], facts: BlockFacts) -> bool:
    """Verification 2 of one block, given the figures of all its contributors."""
    return residual(figures_G, facts) > tolerance(figures_G, facts) or (facts.clipped and not _fits(facts, figures_G))


def _fits(facts: BlockFacts, figures_G: Sequence[Figures]) -> bool:
    """Whether a stated radius can be that of these distances. Fewer than half of them, false ones, only move m among the others."""
    majority = sorted(f.distance for f in figures_G)[len(figures_G) // 2]
    slack = facts.codec_error + _ROUNDING * (facts.norm + majority) + 1e-30
    return LEAST_RADIUS_SHARE * (majority - slack) <= facts.radius <= MOST_RADIUS_SHARE * (majority + slack)


def doubts(distance: float, part_norm: float) -> bool:
    """Verification 3, one contributor's vote: its part explains no result so far away."""
    return distance > DOUBT_TIMES * part_norm


def figures_differ(claimed: Figures, found: Figures, margin: float = 1.0) -> bool:
    """Verification 1: whether what a contributor said of its part is not so; with a margin, so clearly that nobody can find otherwise."""
    allowed = margin * 10 * _ROUNDING * (found.distance + 1e-30)
    return abs(claimed.projection - found.projection) > allowed or abs(claimed.distance - found.distance) > allowed


def reductions_differ(claimed_E: torch.Tensor, found_E: torch.Tensor, facts: BlockFacts, spread: float) -> bool:
    """Whether a block is not the aggregate that somebody else finds from the same parts.

    Args:
        claimed_E: as its reducer returned it.
        found_E: as we reduce and encode it.
        facts: of the claimed block.
        spread: of the parts around it: the largest distance that counts, at most the radius.
    """
    distance = block_norm(claimed_E - found_E)
    return distance > 2 * facts.codec_error + 100 * _ROUNDING * (facts.norm + spread) + 1e-30


def _factor(distance: float, radius: float) -> float:
    return 1.0 if distance <= radius else radius / distance


def unverifiable(contributors: Mapping[BlockIndex, Sequence[int]], checked: frozenset[int]) -> tuple[BlockIndex, ...]:
    """Blocks with a contributor who has not reported, so that their sums cannot vanish."""
    return tuple(block for block in sorted(contributors) if not checked.issuperset(contributors[block]))


def drawn_block(coin: bytes, blocks: Sequence[BlockIndex]) -> BlockIndex:
    """One of these blocks, by the coin: it is looked at although nothing is known against it."""
    number = int.from_bytes(blake3(b"swarm.v1.drawn-block" + coin).digest()[:8], "little")
    return blocks[number % len(blocks)]
