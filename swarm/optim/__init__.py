"""The collaborative optimizer: any `torch.optim` optimizer, with which a whole swarm trains together.

Read in this order: `collaborative` (the wrapper a training loop calls), `rule` (what a sync rule is), then the two: `gradient_rule` with
`accumulator` and `master`, and `outer_rule` with `inner_batch`, `anchor`, `fragments` and `outer_optimizers`; `feedback` (what few bytes
leave out); `settings`; and `state` (everything a joiner needs, as named tensors).
"""

from swarm.optim.collaborative import CollaborativeOptimizer
from swarm.optim.outcome import StepOutcome, StepStatus
from swarm.optim.settings import FeedbackSettings, GradientSettings, OuterSettings

__all__ = ["CollaborativeOptimizer", "FeedbackSettings", "GradientSettings", "OuterSettings", "StepOutcome", "StepStatus"]
