"""One machine's view of the network: identity, connections, the shared dictionary, timers, and driving the machines of `protocols`.

No model, no data and no optimizer in here. In reading order:

- `interfaces`: the seams Transport, RecordStore and Clock; each has two implementations.
- `clock`, `simulation`: wall-clock time; an event loop on virtual time.
- `identity`, `credentials`, `private_files`: the key that is this peer, the certificates that say it is a member, and their files.
- `transport/`: simulated, and gRPC with mutual TLS.
- `store/`: in memory, and hivemind's DHT.
- `libp2p_daemon`, `libp2p_node`, `libp2p_wire`: the libp2p daemon and the small calls that are served through it.
- `admission_desk`, `joining`: letting strangers in, and being let in.
- `notary`: signing our round messages and checking those of others.
- `averaging/`: one averaging round, in order.
- `state_snapshot`, `state_server`, `state_transfer`: the shared state, served and fetched in verified pieces.
- `training_peer`, `bridge`, `local`: what the trainer sees of a peer; `bridge.PeerHandle` is the only object that the trainer's thread and
  the network's thread both touch.
- `roster`, `node`: who is there; and one member put together, owner of every task. `memory`: buffers kept for the next large message.
- `probe/`: looking at a node from outside with py-libp2p, in a process of its own.
"""
