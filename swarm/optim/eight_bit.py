"""Optimizers with 8-bit states, by bitsandbytes: imported only where a member has asked for them.

Each moment is one byte an element, a place on a dynamic-range scale, and one fp32 maximum for every 256 elements (Dettmers et al., arXiv
2110.02861, sections 2.1 and 2.2). Tensors of fewer than 4096 elements keep fp32 states: biases and normalisations, where 8 bits cost most.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # on import it complains of a 4-bit kernel that nobody needs

from bitsandbytes.optim import AdamW8bit, SGD8bit  # noqa: E402  after its logger has been told to be quiet


class _OwnFormat:
    """What both add to bitsandbytes' classes."""

    state: dict[torch.Tensor, dict[str, object]]
    param_groups: list[dict[str, list[torch.Tensor]]]
    init_state: Callable[[dict[str, list[torch.Tensor]], torch.Tensor, int, int], None]

    def new_state(self, param: torch.nn.Parameter) -> dict[str, object]:
        """See `swarm.optim.inner.OwnFormat`; the parameter need not be one of ours."""
        kept, params = self.state.pop(param, None), self.param_groups[0]["params"]
        try:
            self.param_groups[0]["params"] = [param]
            self.init_state(self.param_groups[0], param, 0, 0)
            return self.state.pop(param)
        finally:
            self.param_groups[0]["params"] = params
            if kept is not None:
                self.state[param] = kept


class EightBitAdamW(_OwnFormat, AdamW8bit):  # type: ignore[misc]
    """AdamW; without weight decay it is Adam too."""

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step. Small tensors' would be compiled for each shape, which takes a compiler and seconds, and gains nothing."""
        with torch.compiler.set_stance("force_eager"):
            return super().step(closure)


class EightBitSGD(_OwnFormat, SGD8bit):  # type: ignore[misc]
    """SGD with momentum."""

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """See `EightBitAdamW.step`."""
        with torch.compiler.set_stance("force_eager"):
            return super().step(closure)
