"""Something real to train, and quick: a tiny transformer on the sources of Python's standard library, whose every gradient can be replayed.

Which samples a member uses follows from (seed, epoch, member, index) as in real runs (`swarm/data/assignment.py`), and each sample's
gradient has the same bits however many others are computed with it: whoever has the parameters can recompute anyone's contribution.

Letters: P members, S samples, D parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from protocols.ids import Epoch, PeerId
from scripts.attacks import tiny_transformer
from swarm.data.assignment import window_offsets
from swarm.data.dataset import Dataset, build_dataset, stdlib_description
from swarm.data.sources import stdlib_documents
from swarm.optim.gradient_rule import GradientRule
from swarm.optim.master import MasterParams
from swarm.optim.settings import GradientSettings

D = tiny_transformer.D
HOLDOUT_PERCENT = 5
HELD_OUT_WINDOWS = 256
LEARNING_RATE = 0.2
MOMENTUM = 0.9
CLIP_NORM = 1.0
"""Of the averaged gradient, before the step: without a limit one accepted attack would end a run for good."""


def load_text() -> Dataset:
    """Sources of the standard library, split into training and held-out bytes; takes some 50 ms.

    Raises:
        DatasetError: this Python has no sources.
    """
    return build_dataset(stdlib_documents(), stdlib_description(), tiny_transformer.T, HOLDOUT_PERCENT)


class Workload:
    """Pure functions of the parameters, the same for all members.

    Args:
        text: what is learnt.
        seed: of the first parameters and of which samples members use.
        samples: S, that a member takes in an epoch.
    """

    def __init__(self, text: Dataset, seed: int, samples: int = 4) -> None:
        self.seed = seed
        self.samples = samples
        self._text = text
        self._held_out = text.held_out_sample(HELD_OUT_WINDOWS)

    def initial_params(self) -> torch.Tensor:
        """Parameters at the beginning, params_D fp32."""
        return tiny_transformer.initial_params(self.seed)

    def sample_gradients(
        self, epoch: int, peer: PeerId, first_sample: int, samples: int, params_D: torch.Tensor, *, flipped: bool = False
    ) -> torch.Tensor:
        """Gradient of every sample of a stretch, gradients_SD, to add up or to compare one by one.

        Args:
            epoch, peer: whose samples.
            first_sample: index of the first one within the epoch, from 0.
            samples: how many, at least 1.
            params_D: the state.
            flipped: with label y replaced by 255 - y.
        """
        tokens_ST = self._tokens(epoch, peer, range(first_sample, first_sample + samples))
        return _gradients(params_D, tokens_ST, flipped=flipped)

    def gradient(
        self, epoch: int, peer: PeerId, first_sample: int, samples: int, params_D: torch.Tensor, *, flipped: bool = False
    ) -> torch.Tensor:
        """Mean gradient over a stretch of a member's samples, mean_D fp32; see `sample_gradients`."""
        return mean_in_order(self.sample_gradients(epoch, peer, first_sample, samples, params_D, flipped=flipped))

    def gradients(self, epoch: int, peers: Sequence[PeerId], params_D: torch.Tensor, *, flipped: bool = False) -> torch.Tensor:
        """Everybody's contributions in one call: row p has the bits of `gradient` over all samples of member p.

        Args:
            epoch: of the samples.
            peers: P members.
            params_D: the state that all of them hold.
            flipped: as in `sample_gradients`.

        Returns:
            means_PD fp32.
        """
        if not peers:
            return torch.empty(0, D)
        tokens_NT = torch.cat([self._tokens(epoch, peer, range(self.samples)) for peer in peers])
        rows_PSD = _gradients(params_D, tokens_NT, flipped=flipped).view(len(peers), self.samples, D)
        return torch.stack([mean_in_order(rows_SD) for rows_SD in rows_PSD])

    def favourite_gradient(self, params_D: torch.Tensor) -> torch.Tensor:
        """What a member contributes that always takes the same samples, the first of the text; mean_D."""
        tokens_ST = self._text.sample(range(self.samples))
        return mean_in_order(_gradients(params_D, tokens_ST, flipped=False))

    def loss(self, params_D: torch.Tensor) -> float:
        """Mean loss on held-out text, nats a byte: ln 256 = 5.55 for whoever knows nothing."""
        inputs_NT, targets_NT = self._held_out[:, :-1], self._held_out[:, 1:]
        with torch.no_grad():
            return float(tiny_transformer.window_losses(params_D.expand(len(inputs_NT), D), inputs_NT, targets_NT).mean())

    def _tokens(self, epoch: int, peer: PeerId, indices: range) -> torch.Tensor:
        return self._text.sample(window_offsets(self.seed, epoch, peer.public_key, indices, self._text.positions))


class Learner:
    """One member's parameters and momentum, stepped as members of a real run step theirs (`swarm.optim.gradient_rule`).

    Args:
        workload: what is trained.
        epochs: length of the run: the learning rate falls to nothing in its last third.
    """

    def __init__(self, workload: Workload, epochs: int) -> None:
        self._model = _FlatModel(workload.initial_params())
        optimizer = torch.optim.SGD(self._model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, nesterov=True)
        masters = MasterParams(self._model, optimizer)
        self._rule = GradientRule(
            masters,
            optimizer,
            GradientSettings(learning_rate=lambda epoch: LEARNING_RATE * min(1.0, 3 * (epochs - epoch) / epochs), grad_clip_norm=CLIP_NORM),
        )

    @property
    def params(self) -> torch.Tensor:
        """The state, params_D; changes with the next `apply`."""
        return self._model.params_D.detach()

    def apply(self, mean_D: torch.Tensor, epoch: int) -> bool:
        """Take the step that closes an epoch.

        Args:
            mean_D: what the members agreed on; not written to.
            epoch: its number, from 0.

        Returns:
            False if the mean was not finite; then nothing changes.
        """
        return self._rule.apply(mean_D, Epoch(epoch))


class _FlatModel(nn.Module):
    def __init__(self, params_D: torch.Tensor) -> None:
        super().__init__()
        self.params_D = nn.Parameter(params_D)


def mean_in_order(rows_SD: torch.Tensor) -> torch.Tensor:
    """Mean of rows, added one after the other, so that it has the same bits everywhere; mean_D."""
    total_D = rows_SD[0].clone()
    for row_D in rows_SD[1:]:
        total_D += row_D
    return total_D.div_(len(rows_SD))


def _gradients(params_D: torch.Tensor, tokens_NT: torch.Tensor, *, flipped: bool) -> torch.Tensor:
    targets_NT = tokens_NT[:, 1:]
    return tiny_transformer.window_gradients(
        params_D.expand(len(tokens_NT), D), tokens_NT[:, :-1], 255 - targets_NT if flipped else targets_NT
    )
