"""What an attacker may know when it chooses its contribution, and what an attack is.

Letters: G honest members, D elements of a contribution.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from protocols.errors import LocalProtocolError


@dataclass(frozen=True)
class AttackView:
    """One attacker's knowledge of one epoch. The attackers collude: all see the same honest contributions and share one generator.

    Args:
        epoch: the epoch.
        own_D: what an honest member in its place would contribute; not written to.
        own_weight: the samples behind it.
        n: members in this epoch, attackers included.
        f: attackers among them.
        rng: drawn from by all colluders; colluders in several processes begin with the same seed.
        label_flipped: gives the gradient on the member's own samples with flipped labels.
        wrong_samples: gives the gradient on samples that are not the member's own.
        past: what an honest member in its place would have contributed in earlier epochs, newest last.
        honest_GD: what the honest members contribute in this epoch; no rows for an attacker that sees nobody else.
        honest_ids: who contributed each row; the row numbers if empty.
    """

    epoch: int
    own_D: torch.Tensor
    own_weight: float
    n: int
    f: int
    rng: np.random.Generator
    label_flipped: Callable[[], torch.Tensor]
    wrong_samples: Callable[[], torch.Tensor]
    past: Sequence[torch.Tensor] = ()
    honest_GD: torch.Tensor | None = None
    honest_ids: tuple[Hashable, ...] = ()

    def others(self) -> torch.Tensor:
        """The honest contributions, others_GD, for attacks that cannot do without.

        Raises:
            LocalProtocolError: this attacker sees nobody else.
        """
        if self.honest_GD is None or not len(self.honest_GD):
            raise LocalProtocolError("this attack needs the contributions of honest members, and the attacker sees none")
        return self.honest_GD

    def honest_mean(self) -> torch.Tensor:
        """Mean of the honest contributions, mean_D; an attacker that sees nobody takes its own for it, which is right on average."""
        return self.own_D if self.honest_GD is None or not len(self.honest_GD) else self.honest_GD.mean(dim=0)


class VectorAttack(ABC):
    """What an attacker contributes instead of its gradient. One object serves all colluders of a process, epoch after epoch.

    `needs_view` is True where the attack makes no sense without others' contributions; any other also works in a process of its own that
    knows no more than its own gradient.
    """

    name: ClassVar[str]
    needs_view: ClassVar[bool] = False

    @abstractmethod
    def contribution(self, view: AttackView) -> tuple[torch.Tensor, float]:
        """What this attacker sends.

        Returns:
            (vector_D fp32, the weight it claims); the vector may be one of the view's own, so it must not be written to.

        Raises:
            LocalProtocolError: `needs_view`, and the attacker sees nobody.
        """
