"""How bytes get from peer to peer: every implementation of `Transport` of `peers.interfaces`.

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
pipe.py                one raw libp2p stream: frames in and out of the daemon's socket
libp2p_frames.py       what such a stream says
libp2p_stream.py       a stream over it, dialled or served
libp2p_call.py         a call over it
libp2p_serving.py      who dials, whether it is a member, which handler answers
libp2p_streams.py      the transport over libp2p streams
membership.py          how members show that they are members where the connection does not
fallback.py            two transports as one: direct, and libp2p where no direct connection can be made
"""
