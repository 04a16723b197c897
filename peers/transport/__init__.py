"""How bytes get from peer to peer: `Transport` of `peers.interfaces`, twice.

limits.py              what both refuse to send
handling.py            runs a handler; what the caller learns of its exceptions
owned_tasks.py         tasks that end with the block that owns them
simulated_network.py   links, queues, loss, partitions and crashes, all from one seed
simulated_stream.py    one end of a stream there
simulated.py           the transport on that network
tls.py                 the credentials that the real one needs
grpc_options.py        channel and server settings, each with its reason
grpc_errors.py         gRPC status codes <-> our error tree
grpc_stream.py         one stream, dialled or served
grpc_mtls.py           the transport over gRPC with mutual TLS
"""
