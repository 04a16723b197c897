"""Training one member's share: `trainer` is the loop; `gradients`, `probe`, `evaluation` and `generation` are what it computes with."""
