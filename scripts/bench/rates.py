"""Rate and distortion of uniform quantisation, beside the reference figures: bits of the paper's code, the entropy, and of ours.

Mitchell et al., arXiv 2201.02664; the reference figures are those of `papers.md` I.3 (deviation 1, 10^6 samples). Part of the benchmark of
codecs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from protocols import rate_distortion

SAMPLES = 10**6
REFERENCE = {
    "normal": {
        0.25: (0.0052, 5.18, 4.05),
        0.5: (0.0208, 3.81, 3.06),
        1.0: (0.0832, 2.66, 2.11),
        2.0: (0.331, 1.64, 1.24),
        2.5: (0.494, 1.27, 0.96),
        3.75: (0.823, 0.54, 0.39),
        5.0: (0.961, 0.16, 0.11),
    },
    "laplace": {
        0.25: (0.0052, 4.70, 3.95),
        0.5: (0.0205, 3.43, 2.97),
        1.0: (0.0787, 2.37, 2.01),
        2.0: (0.269, 1.41, 1.13),
        2.5: (0.378, 1.11, 0.86),
        3.75: (0.624, 0.61, 0.44),
        5.0: (0.794, 0.32, 0.22),
    },
}
"""By distribution and step: mean square error, bits of runs and gamma codes, entropy."""


def samples(distribution: str, seed: int, count: int = SAMPLES) -> NDArray[np.float64]:
    """Numbers of deviation 1."""
    random = np.random.default_rng(seed)
    return random.standard_normal(count) if distribution == "normal" else random.laplace(size=count) / np.sqrt(2)


def rate(distribution: str, step: float, values_E: NDArray[np.float64]) -> dict[str, Any]:
    """One row: what was measured, and the reference.

    Raises:
        RuntimeError: something else was decoded.
    """
    numbers_E = rate_distortion.quantised(torch.from_numpy(values_E), step)
    started_s = time.process_time()
    data = rate_distortion.encode(numbers_E)
    encoded_s = time.process_time()
    decoded_E = rate_distortion.decode(data, numbers_E.size)
    decoded_s = time.process_time()
    if not np.array_equal(decoded_E, numbers_E):
        raise RuntimeError(f"{distribution} with a step of {step} is decoded to something else")
    mse, gamma_bits, entropy = REFERENCE[distribution][step]
    bits, least = 8 * len(data) / numbers_E.size, rate_distortion.entropy_bits(numbers_E) / numbers_E.size
    return {
        "distribution": distribution,
        "step": step,
        "mse": float(np.square(decoded_E * step - values_E).mean()),
        "gamma_bits": rate_distortion.gamma_bits(numbers_E).size / numbers_E.size,
        "entropy": least,
        "bits": bits,
        "above_entropy": bits / least - 1,
        "gb_s": 4e-9 * numbers_E.size / max(encoded_s - started_s, decoded_s - encoded_s, 1e-9),
        "reference": {"mse": mse, "gamma_bits": gamma_bits, "entropy": entropy},
    }


def rates(seed: int) -> list[dict[str, Any]]:
    """All rows of the reference."""
    return [rate(name, step, values_E) for name in REFERENCE for values_E in [samples(name, seed)] for step in REFERENCE[name]]


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """The same for people; in brackets the reference."""
    shown = Table(title="One step, entropy coded: bits an element")
    for heading in ("numbers", "step", "mse", "runs, gamma", "entropy", "ours", "above entropy", "GB/s"):
        shown.add_column(heading, justify="left" if heading == "numbers" else "right")
    for row in rows:
        reference = row["reference"]
        pairs = (
            (row["mse"], reference["mse"], 4),
            (row["gamma_bits"], reference["gamma_bits"], 2),
            (row["entropy"], reference["entropy"], 2),
        )
        beside = (f"{found:.{digits}f} ({known})" for found, known, digits in pairs)
        ends = (f"{row['bits']:.3f}", f"{100 * row['above_entropy']:.2f} %", f"{row['gb_s']:.2f}")
        shown.add_row(row["distribution"], f"{row['step']}", *beside, *ends)
    return shown
