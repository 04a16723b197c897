"""What saving memory costs: fp32 states, 8-bit states, states in main memory, layers computed again; the same model, steps and text.

    python -m scripts.bench.memory --json

Every way trains a model of its own by the outer rule's inner steps on the standard library's text, turn about, a step of each in every
round, so that whatever else the machine does hits all alike. Bytes are those of tensors that exist; activations are what autograd keeps. On
a CPU "device" is what would lie on a GPU. The median is over the rounds, of the ratio to fp32 states in the same round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from protocols.ids import Epoch
from protocols.planning.memory import Saving, activations, device_memory
from protocols.runspec import RunSpec
from swarm.data.assignment import window_offsets
from swarm.data.dataset import Dataset, build_dataset, stdlib_description
from swarm.data.sources import stdlib_documents
from swarm.models.build import build_model
from swarm.models.recompute import recompute_activations
from swarm.models.vocabulary import BYTE_VOCABULARY
from swarm.optim import OuterSettings
from swarm.optim.inner import InnerMemory
from swarm.optim.outer_rule import OuterRule
from swarm.planning import settings_of, shape_of, trained_of
from swarm.runtime import make_optimizer, rule_settings
from swarm.training.evaluation import held_out_loss
from swarm.training.gradients import accumulate_gradients
from swarm.training.probe import choose_device

WAYS = {
    "fp32": Saving(),
    "8bit": Saving(states="8bit"),
    "offload": Saving(offload=True),
    "8bit, offload": Saving(states="8bit", offload=True),
    "recompute": Saving(recompute=True),
}
HOLDOUT_PERCENT = 5
WINDOWS = 256
MEMBER = bytes(32)


class Way:
    """One way to train.

    Args:
        name: of `WAYS`.
        spec: of the run.
        dataset: what is learnt.
        device: that computes.
    """

    def __init__(self, name: str, spec: RunSpec, dataset: Dataset, device: torch.device) -> None:
        self.name, self.saving = name, WAYS[name]
        self._spec, self._dataset, self._device = spec, dataset, device
        self._model = build_model(spec.model.model_dump(exclude_none=True), spec.run.seed).to(device)
        if self.saving.recompute:
            recompute_activations(self._model)
        self._inner = make_optimizer(spec, self._model, InnerMemory(self.saving.states, self.saving.offload))
        settings = rule_settings(spec)
        if not isinstance(settings, OuterSettings):
            raise TypeError("inner steps are the outer rule's")
        self._rule = OuterRule(self._model, self._inner, settings)
        self.steps_s: list[float] = []

    def step(self) -> None:
        """One inner step, in one micro-batch; timed."""
        first, samples = self._rule.next_sample, self._spec.outer.inner_batch_samples
        offsets = window_offsets(self._spec.run.seed, Epoch(0), MEMBER, range(first, first + samples), self._dataset.positions)
        tokens_BT = self._dataset.sample(offsets)
        before = time.perf_counter()
        accumulate_gradients(self._model, tokens_BT)
        self._rule.add(samples, summed=True)
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        self.steps_s.append(time.perf_counter() - before)

    def loss(self) -> float:
        """Held-out, of the model where it is."""
        return held_out_loss(self._model, self._dataset, windows=WINDOWS)

    def measured_bytes(self) -> dict[str, int]:
        """Of what is there after a pass, in which nothing is stepped."""
        kept: list[torch.Tensor] = []

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept.append(tensor)
            return tensor

        tokens_BT = self._dataset.sample(list(range(self._spec.outer.inner_batch_samples)))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            accumulate_gradients(self._model, tokens_BT)
        weights = list(self._model.parameters())
        own = {tensor.untyped_storage().data_ptr() for tensor in weights}
        found = {
            "weights": _bytes(weights),
            "gradients": _bytes(parameter.grad for parameter in weights),
            "states": _bytes(value for state in self._inner.state.values() for value in state.values()),
            "activations": _bytes(tensor for tensor in kept if tensor.untyped_storage().data_ptr() not in own),
        }
        self._rule.clear_gradients()
        return found


def _bytes(tensors: Iterable[object]) -> int:
    return sum(
        {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors if isinstance(one, torch.Tensor)}.values()
    )


def spec_of(options: argparse.Namespace) -> RunSpec:
    """The run that all of them are members of."""
    config = {"model_type": "bloom", "vocab_size": BYTE_VOCABULARY, "hidden_size": options.hidden, "n_layer": options.layers}
    config |= {"n_head": max(options.hidden // 32, 1), "initializer_range": (3 * options.hidden) ** -0.5}
    return RunSpec.from_settings(
        {
            "run": {"name": "memory", "seed": options.seed},
            "model": {"config": config},
            "data": {"sequence_length": options.tokens, "holdout_percent": HOLDOUT_PERCENT},
            "optimizer": {"rule": "outer", "learning_rate": options.lr},
            "outer": {"inner_batch_samples": options.batch},
            "trust": {"auditors": 0},
            "schedule": {"kind": "constant", "warmup_epochs": 0},
        }
    )


def measure(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Train in every way.

    Returns:
        What `--json` prints.
    """
    device, spec = choose_device(options.device), spec_of(options)
    dataset = build_dataset(stdlib_documents(), stdlib_description(), options.tokens, HOLDOUT_PERCENT)
    ways = [Way(name, spec, dataset, device) for name in WAYS]
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("steps", total=options.steps)
        for number in range(options.steps):
            for way in ways[number % len(ways) :] + ways[: number % len(ways)]:
                way.step()
            progress.advance(task)
    plain, plain_loss = ways[0], ways[0].loss()
    rows = []
    for way in ways:
        found = way.measured_bytes()
        loss = way.loss()
        on_device = sum(found.values()) - (found["states"] if way.saving.offload else 0)
        ratios = [mine / theirs for mine, theirs in zip(way.steps_s[1:], plain.steps_s[1:], strict=True)]
        rows.append(
            {
                "way": way.name,
                "device_bytes": on_device,
                "host_bytes": found["states"] if way.saving.offload else 0,
                "bytes": found,
                "predicted_device_bytes": round(_predicted(spec, way.saving, options.batch, bf16=device.type == "cuda")),
                "step_ms": round(1e3 * statistics.median(way.steps_s[1:]), 2),
                "step_ratio": round(statistics.median(ratios), 3),
                "loss": round(loss, 4),
                "loss_ratio": round(loss / plain_loss, 5),
            }
        )
    about = {"device": device.type, "parameters": trained_of(spec).parameters, "steps": options.steps, "seed": options.seed}
    return {"rows": rows, **about}


def _predicted(spec: RunSpec, saving: Saving, samples: int, *, bf16: bool) -> float:
    trained = trained_of(spec)
    found = activations(shape_of(spec), trained.parameters, bf16=bf16, recompute=saving.recompute)
    return device_memory(trained, found, settings_of(spec), saving, samples).total


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.memory", description="What saving memory costs.")
    parser.add_argument("--layers", type=int, default=4, help="of the model")
    parser.add_argument("--hidden", type=int, default=256, help="its width, a multiple of 32")
    parser.add_argument("--tokens", type=int, default=64, help="in a window")
    parser.add_argument("--batch", type=int, default=8, help="samples of an inner step")
    parser.add_argument("--steps", type=int, default=300, help="inner steps in each way")
    parser.add_argument("--lr", type=float, default=2e-3, help="learning rate")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="cpu", help="that computes")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="end standard output with one JSON object on a line")
    options = parser.parse_args(arguments)
    if options.hidden % 32 or min(options.hidden, options.layers, options.batch, options.threads) < 1 or options.steps < 2:
        parser.error("--hidden is a multiple of 32, --layers, --batch and --threads are at least 1, --steps at least 2.")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; see `--help`.

    Returns:
        Process exit code: 0, 2 wrong arguments.
    """
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    console = Console(stderr=True)
    found = measure(options, console)
    table = Table(
        "way", "MiB", "predicted", "host", "states", "ms", "ratio", "loss", "ratio", caption="MiB on the device, predicted, on the host"
    )
    for row in found["rows"]:
        sizes = (row["device_bytes"], row["predicted_device_bytes"], row["host_bytes"], row["bytes"]["states"])
        mib = [f"{size / 2**20:.1f}" for size in sizes]
        table.add_row(
            row["way"], *mib, f"{row['step_ms']:.1f}", f"{row['step_ratio']:.2f}", f"{row['loss']:.4f}", f"{row['loss_ratio']:.4f}"
        )
    console.print(table)
    if options.json:
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
