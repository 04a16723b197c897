"""The collaborative optimizer: any `torch.optim` optimizer, stepped by a whole swarm.

Read in this order: `collaborative` (the wrapper a training loop calls), `gradient_rule` (what is contributed and how the average is
applied), `accumulator`, `master` (fp32 copy of the parameters), `state` (everything a joiner needs, as named tensors).
"""

from swarm.optim.collaborative import CollaborativeOptimizer
from swarm.optim.outcome import StepOutcome, StepStatus

__all__ = ["CollaborativeOptimizer", "StepOutcome", "StepStatus"]
