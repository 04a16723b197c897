"""Loss at equal bits of ways to send little: sparse codecs, codecs with a rate, low rank, and count-sketches, with the same error feedback.

    python -m scripts.bench.reducers --json

Members are whole sync rules (`swarm.optim.outer_rule`) with models of their own, averaged in turn without a network, as a butterfly would:
what is asked is what few bytes do to the loss. All make equally many inner steps. Bits are those of one member's contribution; codecs take
as many on the way back. What a member's contribution lost is added to its next one; the outer rule is that of `scripts.bench.bytes`.

Low rank is PowerSGD (arXiv 1905.13727) with two averages a round, of all matrices that are worth it; other tensors go as fp32 and are not
counted, in its favour. Count-sketch is S2 (arXiv 2110.02140): the largest of each chunk, sketched and added up; its bitmap is counted at
its entropy, its buckets as fp16, and noise of the others that share a bucket is not fed back, as nobody can tell it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from protocols import low_rank, sketch
from protocols.codecs import codec_named
from protocols.codecs.base import Codec
from protocols.codecs.rate import RateCodec
from protocols.codecs.topk import TopKCodec
from protocols.ids import Epoch
from protocols.layout import FlatLayout
from scripts.bench.bytes import DECAY, DENSE, SPARSE
from scripts.learning.task import MODEL, OUTER, small_task
from swarm.data.assignment import window_offsets
from swarm.models.build import build_model
from swarm.optim import OuterSettings
from swarm.optim.outer_rule import OuterRule
from swarm.training.evaluation import held_out_loss
from swarm.training.gradients import accumulate_gradients

WINDOWS = 512
NO_HASH = bytes(32)
_BUCKET_BITS = 16
Sent = tuple[torch.Tensor, list[torch.Tensor], float]
"""The average, what of each member is in it, and bits of one member."""


class Reducer(Protocol):
    """A way to average with few bytes.

    Args:
        name: in tables.
        rule: the outer rule that goes with it.
    """

    name: str
    rule: OuterSettings

    def average(self, wanted: list[torch.Tensor], layout: FlatLayout) -> Sent:
        """One round."""


class Plain:
    """All of it, as fp32."""

    name, rule = "fp32", DENSE

    def average(self, wanted: list[torch.Tensor], layout: FlatLayout) -> Sent:
        """The mean."""
        return torch.stack(wanted).mean(0), wanted, 32.0 * wanted[0].numel()


class Coded:
    """A codec, both ways; what comes back as 0 stays with its members (`swarm.optim.feedback`).

    Args:
        codec: it.
        rule: the outer rule.
    """

    def __init__(self, codec: Codec, rule: OuterSettings = SPARSE) -> None:
        self.name = codec.name + (" momentum" if rule.momentum else "")
        self._codec, self.rule = codec, rule

    def average(self, wanted: list[torch.Tensor], layout: FlatLayout) -> Sent:
        """Encoded, averaged, encoded."""
        elems = layout.size_elems
        data = [self._codec.encode(each) for each in wanted]
        sent = [self._codec.decode(each, elems) for each in data]
        average = self._codec.decode(self._codec.encode(torch.stack(sent).mean(0)), elems)
        return average, [each * (average != 0) for each in sent], 8.0 * len(data[0])


class LowRank:
    """PowerSGD.

    Args:
        rank: of each matrix.
        codec: of the factors, both ways.
        rule: the outer rule.
    """

    def __init__(self, rank: int, codec: Codec, rule: OuterSettings) -> None:
        self.name = f"rank {rank} {codec.name}" + (" momentum" if rule.momentum else "")
        self.rule, self._rank, self._codec = rule, rank, codec
        self._starts: dict[str, np.ndarray[Any, np.dtype[np.float32]]] = {}

    def average(self, wanted: list[torch.Tensor], layout: FlatLayout) -> Sent:
        """Of each matrix P, then Q; all that is else as it is."""
        average, bits = torch.stack(wanted).mean(0), 0.0
        sent = [each.clone() for each in wanted]
        for slot in layout.slots:
            shape = slot.shape
            if len(shape) == 2 and low_rank.worth_it(*shape, self._rank):
                at = slice(slot.start_elems, slot.start_elems + slot.size_elems)
                matrices = [each[at].view(shape).numpy() for each in wanted]
                found, own, spent = self._matrix(slot.name, matrices)
                average[at] = torch.from_numpy(found).flatten()
                bits += spent
                for each, approximation in zip(sent, own, strict=True):
                    each[at] = torch.from_numpy(approximation).flatten()
        return average, sent, bits

    def _matrix(self, name: str, matrices: list[Any]) -> tuple[Any, list[Any], float]:
        columns = matrices[0].shape[1]
        start = self._starts.get(name)
        if start is None:
            start = np.random.default_rng(columns).standard_normal((columns, self._rank)).astype(np.float32)
        factors, p_bits = self._mean([low_rank.first_factor(each, start) for each in matrices])
        basis = low_rank.orthonormal(factors)
        seconds = [low_rank.second_factor(each, basis) for each in matrices]
        second, q_bits = self._mean(seconds)
        self._starts[name] = second
        return low_rank.product(basis, second), [low_rank.product(basis, each) for each in seconds], p_bits + q_bits

    def _mean(self, factors: list[Any]) -> tuple[Any, float]:
        blocks = [self._codec.encode(torch.from_numpy(each).flatten()) for each in factors]
        sent = torch.stack([self._codec.decode(each, factors[0].size) for each in blocks])
        mean = self._codec.decode(self._codec.encode(sent.mean(0)), factors[0].size)
        return mean.view(factors[0].shape).numpy(), 8.0 * len(blocks[0])


class Sketched:
    """The largest elements, in a count-sketch.

    Args:
        kept: of each 4096.
        rows: of the sketch.
        bucket_share: buckets, all rows together, of elements.
    """

    rule = SPARSE

    def __init__(self, kept: int, rows: int, bucket_share: float) -> None:
        self.name = f"sketch {kept} {rows}x{bucket_share:.4f}"
        self._codec, self._rows, self._share, self._seed = TopKCodec("kept", kept, 8), rows, bucket_share, 0

    def average(self, wanted: list[torch.Tensor], layout: FlatLayout) -> Sent:
        """Bitmaps or-ed, sketches added up."""
        elems = layout.size_elems
        sent = [self._codec.decode(self._codec.encode(each), elems) for each in wanted]
        self._seed += 1  # other collisions each time
        how = sketch.CountSketch(self._rows, max(1, int(self._share * elems / self._rows)), self._seed)
        table = np.sum([how.sketch(each.numpy()) for each in sent], axis=0) / len(sent)
        anywhere = np.bitwise_or.reduce([sketch.bitmap(each.numpy()) for each in sent])
        average = torch.from_numpy(how.read(table, anywhere, elems))
        share = float((average != 0).float().mean())
        bitmap = elems * (-share * math.log2(share) - (1 - share) * math.log2(1 - share)) if 0 < share < 1 else 0.0
        return average, sent, bitmap + _BUCKET_BITS * how.rows * how.buckets


class Swarm:
    """Members, from the first step to the held-out loss.

    Args:
        reducer: how they average.
        members: how many.
        h: inner steps between averages.
        seed: of everything random.
    """

    def __init__(self, reducer: Reducer, members: int, h: int, seed: int) -> None:
        task = small_task(target_samples=1, until_samples=1)
        self._reducer, self._h, self._seed = reducer, h, seed
        self._dataset, self._batch = task.dataset, OUTER.inner_batch_samples
        self._models = [build_model(MODEL, seed) for _ in range(members)]
        settings = replace(reducer.rule, overlap=False)
        self._rules = [OuterRule(model, task.inner_optimizer(model), settings) for model in self._models]
        self._kept: list[torch.Tensor | float] = [0.0] * members
        self.bits = 0.0

    def run(self, epochs: int, progress: Progress, task: Any) -> float:
        """Train; returns the held-out loss of what all hold."""
        for epoch in range(epochs):
            for member in range(len(self._rules)):
                for _ in range(self._h):
                    self._step(member, epoch)
                    progress.advance(task)
            self._average(Epoch(epoch), epochs)
        with self._rules[0].shared.computing():
            return held_out_loss(self._models[0], self._dataset, windows=WINDOWS)

    def _step(self, member: int, epoch: int) -> None:
        rule, key = self._rules[member], member.to_bytes(32, "big")
        indices = range(rule.next_sample, rule.next_sample + self._batch)
        offsets = window_offsets(self._seed, epoch, key, indices, self._dataset.positions)
        accumulate_gradients(self._models[member], self._dataset.sample(offsets))
        rule.add(self._batch, summed=True)

    def _average(self, epoch: Epoch, epochs: int) -> None:
        layout = self._rules[0].layout(epoch)
        parts = [rule.contribution(epoch, NO_HASH).vector for rule in self._rules]
        wanted = [part + DECAY * kept for part, kept in zip(parts, self._kept, strict=True)]
        average, sent, bits = self._reducer.average(wanted, layout)
        self._kept = [each - gone for each, gone in zip(wanted, sent, strict=True)]
        self.bits += bits / layout.size_elems / epochs
        for rule in self._rules:
            rule.begin_next()
            rule.apply(average, epoch)


def reducers() -> list[Reducer]:
    """All of them, by bits."""
    coded: list[Reducer] = [
        Coded(codec) for codec in (codec_named("topk64"), RateCodec("rd16", 16), codec_named("topk128"), RateCodec("rd37", 37))
    ]
    coded += [Coded(codec_named(name), rule) for name in ("rd20", "rd50", "rd100") for rule in (SPARSE, DENSE)]
    ranks: list[Reducer] = [
        LowRank(rank, codec_named(codec), rule)
        for rank, codec in ((1, "int4"), (1, "int8"), (2, "int4"), (4, "int4"))
        for rule in (SPARSE, DENSE)
    ]
    sketches: list[Reducer] = [Sketched(16, 1, 0.01), Sketched(64, 1, 0.03), Sketched(64, 3, 0.06), Sketched(64, 3, 0.2)]
    return [Plain(), *coded, *ranks, *sketches]


def measure(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """All reducers, or those whose names begin as asked.

    Returns:
        What `--json` prints.
    """
    began_s = time.perf_counter()
    torch.set_num_threads(1)
    chosen = [each for each in reducers() if not options.only or each.name.startswith(tuple(options.only))]
    rows: list[dict[str, Any]] = []
    with Progress(console=console, transient=True) as progress:
        for reducer in chosen:
            task = progress.add_task(reducer.name, total=options.epochs * options.h * options.members)
            swarm = Swarm(reducer, options.members, options.h, options.seed)
            loss = swarm.run(options.epochs, progress, task)
            rows.append({"reducer": reducer.name, "bits": round(swarm.bits, 3), "loss": round(loss, 4)})
            console.print(_table(rows))
    about = {"members": options.members, "h": options.h, "epochs": options.epochs, "seed": options.seed}
    return {"rows": rows, **about, "wall_s": round(time.perf_counter() - began_s, 1)}


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table("reducer", "bits an element", "held-out loss")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; see `--help`.

    Returns:
        Process exit code: 0, 2 wrong arguments.
    """
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.reducers", description="Loss at equal bits of ways to send little.")
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--h", type=int, default=8, help="inner steps between averages")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--only", nargs="+", default=[], help="reducers whose names begin so")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="end standard output with one JSON object on a line")
    options = parser.parse_args(arguments)
    if min(options.members, options.h, options.epochs) < 1 or options.seed < 0:
        parser.error("--members, --h and --epochs are at least 1, --seed at least 0.")
    found = measure(options, Console(stderr=True))
    if options.json:
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
