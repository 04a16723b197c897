"""How a sync rule works: `GradientSettings` or `OuterSettings`, for `CollaborativeOptimizer`. Run files say the same in their own way."""

from __future__ import annotations

import math
from dataclasses import dataclass

from protocols.codecs import codec_named
from protocols.errors import ConfigError
from swarm.optim.feedback import ErrorFeedback
from swarm.optim.outer_optimizers import OUTER_NAMES, OuterName
from swarm.optim.rule import LearningRate


@dataclass(frozen=True, slots=True)
class FeedbackSettings:
    """Error feedback (`swarm.optim.feedback`).

    Args:
        codec: name of how blocks travel, as in the run.
        block_elems: elements of a block, as in the run.
        decay: beta, above 0 and at most 1.
        step_ahead: gamma, at least 0 and at most 1: how much of what is kept a member's model holds by the outer rule.

    Raises:
        ConfigError: a number that makes no sense.
    """

    codec: str
    block_elems: int
    decay: float = 0.95
    step_ahead: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1:
            raise ConfigError(f"the decay of error feedback is above 0 and at most 1, not {self.decay}")
        if not 0 <= self.step_ahead <= 1:
            raise ConfigError(f"step_ahead is at least 0 and at most 1, not {self.step_ahead}")

    def make(self) -> ErrorFeedback:
        """With nothing kept yet.

        Raises:
            ValueError: an unknown codec.
        """
        return ErrorFeedback(codec_named(self.codec), self.block_elems, self.decay, self.step_ahead)


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientSettings:
    """The gradient rule: one optimizer step an epoch, by the mean gradient (`swarm.optim.gradient_rule`).

    Args:
        learning_rate: of the optimizer's steps, by the epoch's number; None keeps the optimizer's.
        grad_clip_norm: largest 2-norm of the gradient of one step; None for no limit.
        overlap: go on computing while a round runs, and apply its result when it is there. With the gradient rule some of an epoch's
            gradients are then of the parameters of one epoch before.
        feedback: keeps what few bytes leave out; None where nothing is kept.

    Raises:
        ConfigError: a limit that is not positive.
    """

    learning_rate: LearningRate | None = None
    grad_clip_norm: float | None = None
    overlap: bool = False
    feedback: FeedbackSettings | None = None

    def __post_init__(self) -> None:
        if self.grad_clip_norm is not None and not 0 < self.grad_clip_norm < math.inf:
            raise ConfigError(f"grad_clip_norm must be positive, not {self.grad_clip_norm}")


@dataclass(frozen=True, slots=True, kw_only=True)
class OuterSettings(GradientSettings):
    """The outer rule: steps of one's own, then one outer step on how far they led (`swarm.optim.outer_rule`).

    Args:
        learning_rate, grad_clip_norm: of the inner steps.
        inner_batch_samples: of one inner step of one member, at least 1.
        optimizer: of the outer step.
        outer_learning_rate, momentum, beta2, eps: of the outer step, see `swarm.optim.outer_optimizers`.
        fragments: epochs that it takes to average the whole model, a fragment in each; at least 1.
        mixing: alpha, the weight of what a member has locally when a result is applied, at least 0, below 1.

    Raises:
        ConfigError: a value that makes no sense.
    """

    inner_batch_samples: int = 32
    optimizer: OuterName = "nesterov"
    outer_learning_rate: float = 0.7
    momentum: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-3
    fragments: int = 1
    mixing: float = 0.0

    @property
    def keeps_own_params(self) -> bool:
        """Whether a member's model is somewhere else than the anchor when an epoch begins."""
        return self.overlap or self.fragments > 1 or self.mixing > 0 or self._ahead

    @property
    def _ahead(self) -> bool:
        return self.feedback is not None and self.feedback.step_ahead > 0

    def __post_init__(self) -> None:
        super(OuterSettings, self).__post_init__()  # slots make a new class, which `super()` alone does not know
        if self.optimizer not in OUTER_NAMES:
            raise ConfigError(f"unknown outer optimizer {self.optimizer!r}; known: {', '.join(OUTER_NAMES)}")
        if self.inner_batch_samples < 1 or not 0 <= self.mixing < 1 or not 0 <= self.momentum < 1:
            raise ConfigError("the outer rule needs inner_batch_samples of at least 1, and mixing and momentum of at least 0 and below 1")
        if not self.outer_learning_rate > 0 or not self.eps > 0 or not 0 <= self.beta2 < 1:
            raise ConfigError("the outer rule needs an outer_learning_rate and an eps above 0, and beta2 of at least 0 and below 1")
        if self._ahead and self.mixing:
            raise ConfigError("step_ahead says where a member's model goes, and so does mixing: one of them must be 0")
