"""The codecs: bits, errors and speed, ours beside hivemind's on the same vectors.

    python -m scripts.bench.codecs --json

Standard normal blocks are encoded and decoded by one thread. Speed is GB of fp32 input, or output, for each second of CPU time of the
process; medians over rounds in which all codecs take turns. Decoding includes all checks of what came from a network, and writes to where
the block belongs. As in a peer, freed memory is kept (`peers.memory`). What sparse codecs leave out counts as an error; whoever trains with
them adds it to the next block. Then comes a table of rates (`rates.py`): one step for all elements, and entropy coding.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from peers.memory import keep_freed_memory
from protocols.codecs import CODEC_NAMES, Codec, both_ways
from scripts.bench import data, rates

SEED = 20


class Measured(Protocol):
    """A codec, whoever's."""

    name: str

    def encode(self, block_E: torch.Tensor) -> Any:
        """What travels."""

    def decode_into(self, encoded: Any, out_E: torch.Tensor) -> torch.Tensor:
        """The decoded block: `out_E`, or another one if the codec makes its own."""

    def encoded_bytes(self, encoded: Any) -> int:
        """Length of what travels."""

    def claimed_error(self, block_E: torch.Tensor) -> float | None:
        """Largest error the codec admits; None if it says nothing."""


class Ours:
    """One of our codecs."""

    def __init__(self, codec: Codec) -> None:
        self.name = codec.name
        self._codec = codec

    def encode(self, block_E: torch.Tensor) -> bytearray | memoryview | bytes:
        """As it is."""
        return self._codec.encode(block_E)

    def decode_into(self, encoded: bytearray, out_E: torch.Tensor) -> torch.Tensor:
        """In place."""
        self._codec.decode_into(encoded, out_E)
        return out_E

    def encoded_bytes(self, encoded: bytearray) -> int:
        """As it is."""
        return len(encoded)

    def claimed_error(self, block_E: torch.Tensor) -> float:
        """The codec's bound for this block."""
        return self._codec.worst_error(block_E)


class Hiveminds:
    """One of hivemind's codecs."""

    def __init__(self, name: str, codec: Any) -> None:
        self.name = name
        self._codec = codec

    def encode(self, block_E: torch.Tensor) -> Any:
        """A message of its own."""
        from hivemind.compression import CompressionInfo

        return self._codec.compress(block_E, CompressionInfo.from_tensor(block_E))

    def decode_into(self, encoded: Any, out_E: torch.Tensor) -> torch.Tensor:
        """It allocates its result."""
        decoded_E: torch.Tensor = self._codec.extract(encoded)
        return decoded_E

    def encoded_bytes(self, encoded: Any) -> int:
        """Without the message's other fields."""
        return len(encoded.buffer)

    def claimed_error(self, block_E: torch.Tensor) -> None:
        """None is documented."""


def hivemind_codecs() -> list[Hiveminds]:
    """fp16 and 8 bits, the latter in C++ as well if bitsandbytes is installed."""
    from importlib.util import find_spec

    from hivemind.compression import BlockwiseQuantization, Float16Compression, Uniform8BitQuantization

    from scripts.bench.hivemind_codecs import repair

    repair()
    found = [Hiveminds("hivemind fp16", Float16Compression()), Hiveminds("hivemind uniform8", Uniform8BitQuantization())]
    return [*found, Hiveminds("hivemind blockwise8", BlockwiseQuantization())] if find_spec("bitsandbytes") else found


@dataclass
class Figures:
    """What was measured of one codec.

    Args:
        bits: an element takes, on average.
        mse: mean square error of an element.
        worst_error: largest error found.
        claimed_error: largest error the codec admits for the same blocks.
        encode_s, decode_s: CPU seconds of one round over all blocks.
    """

    bits: float
    mse: float
    worst_error: float
    claimed_error: float | None
    encode_s: list[float] = field(default_factory=list)
    decode_s: list[float] = field(default_factory=list)

    def row(self, codec: str, fp32_bytes: int) -> dict[str, Any]:
        """For the JSON object; `gb_s` is the slower direction."""
        encode_gb_s, decode_gb_s = (fp32_bytes / max(statistics.median(s), 1e-9) / 1e9 for s in (self.encode_s, self.decode_s))
        return {
            "codec": codec,
            "bits": round(self.bits, 4),
            "mse": self.mse,
            "worst_error": self.worst_error,
            "claimed_error": self.claimed_error,
            "gb_s": round(min(encode_gb_s, decode_gb_s), 3),
            "encode_gb_s": round(encode_gb_s, 3),
            "decode_gb_s": round(decode_gb_s, 3),
        }


def judge(codec: Measured, blocks: Sequence[torch.Tensor]) -> Figures:
    """Bits and errors over all blocks."""
    sent_bytes, squares, worst, claimed = 0, 0.0, 0.0, 0.0
    out_E = torch.empty_like(blocks[0])
    for block_E in blocks:
        encoded = codec.encode(block_E)
        sent_bytes += codec.encoded_bytes(encoded)
        error_E = codec.decode_into(encoded, out_E).double() - block_E.double()
        squares += float(error_E.square().sum())
        worst = max(worst, float(error_E.abs().max()))
        claimed = max(claimed, codec.claimed_error(block_E) or 0.0)
    elems = sum(block_E.numel() for block_E in blocks)
    admits = codec.claimed_error(blocks[0]) is not None
    return Figures(8 * sent_bytes / elems, squares / elems, worst, claimed if admits else None)


def run_round(codec: Measured, blocks: Sequence[torch.Tensor], figures: Figures) -> None:
    """Encode all blocks, decode all blocks."""
    out_E = torch.empty_like(blocks[0])
    # Kept, as a sender keeps what it has not sent; a peer's received bytes are writable.
    encoded = [codec.encode(block_E) for block_E in blocks]
    received = [bytearray(one) if isinstance(one, bytes | bytearray | memoryview) else one for one in encoded]
    del encoded
    figures.encode_s.append(_cpu_s(codec.encode, blocks))
    figures.decode_s.append(_cpu_s(lambda one: codec.decode_into(one, out_E), received))


def _cpu_s(work: Callable[[Any], object], items: Sequence[Any]) -> float:
    started_s = time.process_time()
    for item in items:
        work(item)
    return time.process_time() - started_s


def measure(codecs: Sequence[Measured], blocks: Sequence[torch.Tensor], rounds: int, console: Console) -> dict[str, Figures]:
    """All codecs in turn, `rounds` times."""
    figures = {codec.name: judge(codec, blocks) for codec in codecs}
    for number in range(rounds):
        for codec in codecs:
            run_round(codec, blocks, figures[codec.name])
        console.print(f"round {number + 1}/{rounds}")
    return figures


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """The same for people."""
    shown = Table(title="Codecs: standard normal numbers, one core")
    for heading in ("codec", "bits", "mse", "worst error", "claimed", "encode GB/s", "decode GB/s"):
        shown.add_column(heading, justify="left" if heading == "codec" else "right")
    for row in rows:
        claimed = "" if row["claimed_error"] is None else f"{row['claimed_error']:.2e}"
        speeds = (f"{row[key]:.2f}" if row[key] < 100 else "no copy" for key in ("encode_gb_s", "decode_gb_s"))
        shown.add_row(row["codec"], f"{row['bits']:.2f}", f"{row['mse']:.2e}", f"{row['worst_error']:.2e}", claimed, *speeds)
    return shown


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line of the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.codecs", description="Bits, errors and speed of the codecs.")
    parser.add_argument("--mib", type=int, default=64, help="fp32 input of one round, MiB")
    parser.add_argument("--block-elems", type=int, default=2**20, help="elements of a block; the default is that of a run")
    parser.add_argument("--rounds", type=int, default=7, help="rounds over all codecs")
    parser.add_argument("--codecs", default=",".join(CODEC_NAMES), help="comma-separated codecs of ours")
    parser.add_argument("--against", choices=("hivemind", "none"), default="hivemind", help="whose codecs to measure beside ours")
    parser.add_argument("--json", action="store_true", help="end standard output with one JSON object on a line")
    options = parser.parse_args(arguments)
    options.codecs = [name for name in options.codecs.split(",") if name]
    if unknown := [name for name in options.codecs if name not in CODEC_NAMES]:
        parser.error(f"--codecs {','.join(unknown)} is unknown; choose from {', '.join(CODEC_NAMES)}.")
    if not options.codecs:
        parser.error(f"--codecs names none; choose from {', '.join(CODEC_NAMES)}.")
    if min(options.mib, options.rounds, options.block_elems) < 1 or options.block_elems > options.mib * 2**18:
        parser.error("--mib, --rounds and --block-elems need at least 1, and a block has to fit into the input.")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point.

    Returns:
        Process exit code: 0 measured, 1 an error was larger than claimed, 2 wrong arguments.
    """
    options = parse_arguments(arguments)
    console = Console(stderr=True, highlight=False)
    torch.set_num_threads(1)
    keep_freed_memory()
    count = options.mib * 2**18 // options.block_elems
    vector_D = torch.from_numpy(data.vector(SEED, 0, count * options.block_elems))
    blocks = list(vector_D.view(count, options.block_elems).unbind(0))
    ours: list[Measured] = [Ours(codec) for name in options.codecs for codec in both_ways(name)]
    others: list[Measured] = [] if options.against == "none" else list(hivemind_codecs())
    figures = measure([*ours, *others], blocks, options.rounds, console)
    rows = [figures[codec.name].row(codec.name, vector_D.nbytes) for codec in [*ours, *others]]
    console.print(table(rows))
    rate_rows = rates.rates(SEED)
    console.print(rates.table(rate_rows))
    if options.json:
        settings = {"mib": options.mib, "block_elems": options.block_elems, "rounds": options.rounds, "seed": SEED}
        versions = {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()}
        machine = {"cpus": os.cpu_count(), "simd": torch.backends.cpu.get_cpu_capability(), "system": platform.platform()}
        halves = {"rows": rows[: len(ours)], "hivemind_rows": rows[len(ours) :], "rate_rows": rate_rows}
        sys.stdout.write(json.dumps({**halves, **settings, "about": versions, "machine": machine}) + "\n")
    broken = [row["codec"] for row in rows if row["claimed_error"] is not None and row["worst_error"] > row["claimed_error"]]
    if broken:
        console.print(f"codec benchmark: larger errors than claimed: {', '.join(broken)}", markup=False)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
