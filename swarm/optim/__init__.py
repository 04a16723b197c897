"""The collaborative optimizer: any `torch.optim` optimizer, with which a whole swarm trains together.

Read in this order: `collaborative` (the wrapper a training loop calls), `rule` (what a sync rule is), then the two: `gradient_rule` with
`accumulator` and `master`, and `outer_rule` with `inner_batch`, `anchor`, `fragments` and `outer_optimizers`; `settings` of both; and
`state` (everything a joiner needs, as named tensors).
"""

from swarm.optim.collaborative import CollaborativeOptimizer
from swarm.optim.outcome import StepOutcome, StepStatus
from swarm.optim.settings import GradientSettings, OuterSettings

__all__ = ["CollaborativeOptimizer", "GradientSettings", "OuterSettings", "StepOutcome", "StepStatus"]
