"""What honest peers must agree on: pure and deterministic. Time, randomness and bytes come in as arguments; nothing here does I/O.

Two peers that disagree about a line of this package cannot work together, so `SPEC.md` describes it. In reading order:

- `ids`, `errors`: who and what is meant; whose fault it is.
- `canonical`, `signing`: one byte form for every value, and who vouches for it.
- `runspec`, `run_document`: all that members of a run share, its fingerprint, and what a stranger is told about it.
- `certificate`, `certificate_chain`, `issuing`: the run's X.509 authority, and how a TLS key is bound to a peer.
- `invite`, `admission`: how a stranger becomes a member.
- `records`, `record_keeping`, `progress`: the shared dictionary, who may write what into it, and what progress records add up to.
- `messages`, `messages_state`, `frames`: what members say to each other; `proto/` is how it looks on the wire.
- `layout`, `partition`, `deadline`: named tensors as one flat vector of blocks; who reduces which block; how long to wait.
- `codecs`, `aggregation`, `parts`: a block as bytes; many blocks as one; a block in either form.
- `rendezvous`, `butterfly`, `settlement`: the pure machines of one averaging round: who takes part, reduce the blocks, end with the same
  bytes everywhere.
- `manifest`: the shared state as hash-addressed pieces.
"""
