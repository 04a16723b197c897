"""How much of the time members of a slow swarm compute, at the ratio of computing to bytes of a published grid.

    python -m scripts.bench.utilisation --mbit 50 --h 32 --json

The grid ("diloco-measured", 2026): four machines train 30.8 million parameters by DiLoCo and exchange fp32 after every H steps. Its cells
at 50 Mbit/s say how long a step is beside an exchange: some 23 ms. Here the model is smaller, and the step, of four processes on this
machine's cores, is another one. So the step is measured first, and the links are shaped such that it is as long beside what the whole model
would take to send in fp32 as it is there. Then, in the same namespaces:

    blocking    the grid's way: H steps, then everybody waits for gloo's fp32 all-reduce
    ours        whole members: outer rule, rounds beside computing, few bytes; an epoch's target is H steps of everybody

`share_computing` is the time in forward, backward and inner steps by all time. With rounds beside computing nobody waits when a round takes
longer than an epoch; epochs grow instead. So H as it really was is measured too (`h_effective`).
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from scripts.bench.fleet import BenchmarkError
from scripts.bench.netns import NamespaceError, shaped_hosts
from scripts.bench.training_fleet import FINISH_TIMEOUT_S, Judge, TrainingFleet
from scripts.bench.training_plans import Common, Plan
from scripts.bench.training_report import Trained

PUBLISHED_PARAMETERS = 30.8e6
PUBLISHED_STEP_S = 0.0228
"""2.41 % at H = 32 and 50 Mbit/s, with a ring of four that sends 1.5 times 123 MB: 0.0247 x 29.6 s / 32. Their H = 128 says 0.030 s."""

PUBLISHED = {(32, 50.0): 0.0241, (128, 50.0): 0.1155}
NEVER = 10**9
CALIBRATION_S = 15.0
LEARNING_RATE = 2e-3
BLOCK_ELEMS = 2**16


@dataclass(frozen=True, slots=True)
class Setting:
    """What is compared.

    Args:
        common: model and micro-batch.
        parameters: of the model.
        h: inner steps of a round.
        mbit: of the published grid.
        codec: ours.
    """

    common: Common
    parameters: int
    h: int
    mbit: float
    codec: str

    def link_mbit(self, step_s: float) -> float:
        """The link that makes our step as short beside the bytes of the whole model as the published one is."""
        return self.mbit * (self.parameters / PUBLISHED_PARAMETERS) * (PUBLISHED_STEP_S / step_s)


def blocking_plan(h: int) -> Plan:
    """DiLoCo with a blocking fp32 all-reduce."""
    settings = {"learning_rate": LEARNING_RATE, "betas": (0.9, 0.95), "weight_decay": 0.01, "target_batch_samples": 0}
    return Plan("blocking", "gloo", "blocking", {**settings, "inner_steps": h, "never": NEVER})


def our_plan(setting: Setting) -> Plan:
    """Our members by the outer rule."""
    common = setting.common
    target = common.peers * setting.h * common.micro_batch_samples
    sparse = setting.codec.startswith("topk")
    outer = {"optimizer": "fedavgm", "momentum": 0.0, "learning_rate": 2.0 if sparse else 1.0}
    averaging = {"codec": setting.codec, "overlap": True, "block_elems": BLOCK_ELEMS, "error_feedback": 0.9 if sparse else 0.0}
    settings = {
        "schedule": {"kind": "constant", "total_epochs": 10**8},
        "trust": {"verify": False},
        "optimizer": {"learning_rate": LEARNING_RATE, "rule": "outer", "target_batch_samples": target},
        "outer": {"inner_batch_samples": common.micro_batch_samples, **outer},
        "averaging": averaging,
    }
    return Plan("ours", "outer", "ours", settings)


def train(plan: Plan, setting: Setting, mbit: float, seconds: float, judge: Judge, round_s: float = 0.0) -> Trained:
    """One system in namespaces of its own; a round of `round_s` that has begun may end."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="utilisation-benchmark-")))
        hosts = stack.enter_context(shaped_hosts([mbit] * setting.common.peers))
        fleet = TrainingFleet(plan, setting.common, hosts, directory / plan.name, FINISH_TIMEOUT_S + 2 * round_s, "utilisation")
        return fleet.run(seconds, judge)


def measure(setting: Setting, seconds: float, judge: Judge, console: Console, *, with_blocking: bool) -> dict[str, Any]:
    """Calibrate, then both, or ours alone.

    Returns:
        What `--json` prints.

    Raises:
        BenchmarkError: a member failed.
        NamespaceError: no namespaces can be had.
    """
    console.print(f"calibrating: {CALIBRATION_S:.0f} s of computing without any exchange")
    alone = train(blocking_plan(NEVER), setting, 10_000.0, CALIBRATION_S, judge).notes
    step_s = float(alone["total_s"]) / int(alone["steps"])
    link = setting.link_mbit(step_s)
    ring_s = 8 * 4 * setting.parameters * 2 * (setting.common.peers - 1) / setting.common.peers / (link * 1e6)
    console.print(f"a step takes {1e3 * step_s:.0f} ms, so links are shaped to {link:.3f} Mbit/s; an fp32 exchange needs {ring_s:.0f} s")
    blocking: Mapping[str, Any] = {}
    if with_blocking:
        round_s = ring_s + setting.h * step_s
        blocking = train(blocking_plan(setting.h), setting, link, 0.5 * round_s, judge, round_s).notes
    console.print(f"ours: {seconds:.0f} s, {setting.codec}")
    began_s = time.monotonic()
    ours = train(our_plan(setting), setting, link, seconds, judge)
    epochs = int(ours.notes["epochs"])
    steps = int(ours.notes["samples"]) / setting.common.micro_batch_samples
    return {
        "share_computing": round(ours.notes["computing_s"] / ours.notes["total_s"], 4),
        "share_blocking": round(blocking["computing_s"] / blocking["total_s"], 4) if blocking else None,
        "share_published": PUBLISHED.get((setting.h, setting.mbit)),
        "h": setting.h,
        "h_effective": round(steps / max(epochs, 1), 1),
        "step_s": round(step_s, 4),
        "step_s_beside_rounds": round(ours.notes["total_s"] / steps, 4),
        "link_mbit": round(link, 3),
        "epochs": epochs,
        "codec": setting.codec,
        "sent_bytes": list(ours.sent_bytes),
        "received_bytes": list(ours.received_bytes),
        "loss": round(ours.curve[-1][1], 4),
        "rounds_blocking": blocking.get("rounds"),
        "wall_s": round(time.monotonic() - began_s, 1),
    }


def _table(found: dict[str, Any]) -> Table:
    table = Table("H", "published", "blocking, here", "ours", "H as it was", "step, ms", "beside rounds", "link, Mbit/s", "epochs")
    known = [found[name] for name in ("share_published", "share_blocking", "share_computing")]
    shares = ["" if share is None else f"{share:.2%}" for share in known]
    steps = [f"{1e3 * found[name]:.0f}" for name in ("step_s", "step_s_beside_rounds")]
    table.add_row(str(found["h"]), *shares, str(found["h_effective"]), *steps, str(found["link_mbit"]), str(found["epochs"]))
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; see `--help`.

    Returns:
        Process exit code: 0 measured, 1 a member failed or no namespaces, 2 wrong arguments, 130 interrupted.
    """
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.utilisation", description="Share of time that members compute.")
    parser.add_argument("--mbit", type=float, default=50.0, help="link of the published grid; ours is shaped to the same ratio")
    parser.add_argument("--h", type=int, default=32, help="inner steps of a round")
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long ours trains")
    parser.add_argument("--codec", default="topk64", help="of ours")
    parser.add_argument("--preset", default="mini", help="model, a preset of swarm.models")
    parser.add_argument("--micro-batch", type=int, default=1, help="samples of an inner step")
    parser.add_argument("--ours-only", action="store_true", help="leave out the blocking exchange, which takes minutes for one round")
    parser.add_argument("--json", action="store_true", help="end standard output with one JSON object on a line")
    options = parser.parse_args(arguments)
    if options.peers < 2 or options.h < 1 or options.mbit <= 0 or options.seconds < 1 or options.micro_batch < 1:
        parser.error("--peers needs at least 2, --h, --seconds and --micro-batch at least 1, --mbit more than 0.")
    console = Console(stderr=True, highlight=False)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    common = Common(options.peers, 1, {"preset": options.preset}, 64, options.micro_batch)
    judge = Judge(common)
    try:
        setting = Setting(common, judge.parameters, options.h, options.mbit, options.codec)
        found = measure(setting, options.seconds, judge, console, with_blocking=not options.ours_only)
    except (BenchmarkError, NamespaceError) as error:
        console.print(f"utilisation benchmark: {error}", markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("utilisation benchmark: interrupted; every process and namespace it had started has ended.")
        return 130
    console.print(_table(found))
    if options.json:
        sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
