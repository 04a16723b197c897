"""The part of `swarm-peer plan` about memory: what a member needs, and how to make a run fit into its device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from swarm.cli.common import out

if TYPE_CHECKING:
    from protocols.planning.memory import Choice

_GIB = 2**30


def memory_as_json(found: Sequence[Choice]) -> dict[str, Any]:
    """Every way to train with its bytes, and the flags of the least costly one that fits; None: none does, or the device is not known."""
    from protocols.planning.memory import cheapest_that_fits

    rows = [
        {
            "flags": choice.saving.flags,
            "device": asdict(choice.device),
            "device_bytes": choice.device.total,
            "host": asdict(choice.host),
            "host_bytes": choice.host.total,
            "most_samples": choice.most_samples,
        }
        for choice in found
    ]
    best = cheapest_that_fits(tuple(found))
    return {"choices": rows, "recommended_flags": None if best is None else best.saving.flags}


def show_memory(found: Sequence[Choice], device_bytes: int | None) -> None:
    """One line for a device that is not known; else a table of what members may choose, and advice."""
    if device_bytes is None:
        out.print(_line(found[0]), markup=False, soft_wrap=True)
        out.print()
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    device = f"of {device_bytes / _GIB:.3g} GiB"
    for title in (f"memory, for a device {device}", "device", "main memory", "micro-batch"):
        table.add_column(title, justify="right" if table.columns else "left", no_wrap=True)
    for choice in found:
        fits = str(choice.most_samples) if choice.most_samples else "does not fit"
        name = choice.saving.flags or "nothing saved"
        table.add_row(name, f"{choice.device.total / _GIB:.2f} GiB", f"{choice.host.total / _GIB:.2f} GiB", fits)
    out.print(table)
    out.print("\n" + advice(found), markup=False, soft_wrap=True)
    out.print()


def advice(found: Sequence[Choice]) -> str:
    """One sentence on what to choose for a known device."""
    from protocols.planning.memory import cheapest_that_fits

    best = cheapest_that_fits(tuple(found))
    if best is None:
        return "It fits in no way: not even one sample. Choose a smaller model or a larger device; helpers need none."
    samples = f"with micro-batches of up to {best.most_samples}"
    if not best.saving.flags:
        return f"It fits, {samples}: members need no option."
    return f"It fits {samples} by: swarm-peer join LINK {best.saving.flags}"


def _line(plain: Choice) -> str:
    parts = ", ".join(f"{name} {size_bytes / _GIB:.2f}" for name, size_bytes in asdict(plain.device).items())
    return f"Memory, GiB: device {plain.device.total / _GIB:.2f} ({parts}), main memory {plain.host.total / _GIB:.2f}."
