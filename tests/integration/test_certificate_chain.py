"""The run's certificates under real TLS: what gRPC accepts and refuses with them, delegates included."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
import uvloop

from peers.credentials import MemberCredentials
from peers.interfaces import Clock
from protocols.certificate_chain import CertificateChain
from protocols.errors import RemoteProtocolError
from protocols.ids import PeerId
from protocols.issuing import Issuer, issue_delegate, make_run_ca
from tests.helpers.run_world import DAY_S, FixedClock, RunWorld, ed25519, tls_key

# TLS judges dates by the machine's clock: these certificates are valid whenever the test runs.
ALWAYS = (0.0, 4_000_000_000.0)
WORLD = RunWorld(not_before=ALWAYS[0], not_after=ALWAYS[1])
SAME_NAME = RunWorld(number=2, not_before=ALWAYS[0], not_after=ALWAYS[1])
DELEGATE = WORLD.delegate()
TIMEOUT_S = 10.0


class WhoAreYou(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """Answers every call with the caller's identity, as the data plane finds it out."""

    def __init__(self, credentials: MemberCredentials, clock: Clock) -> None:
        self._authenticate = credentials.tls(clock, lambda peer: False).authenticate

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        async def answer(request: bytes, context: grpc.aio.ServicerContext) -> bytes:  # type: ignore[type-arg]
            (leaf_pem,) = context.auth_context()["x509_pem_cert"]
            try:
                return str(self._authenticate(leaf_pem)).encode()
            except RemoteProtocolError as error:
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, error.reason)

        return grpc.unary_unary_rpc_method_handler(answer)


def _as_it_is(message: bytes) -> bytes:
    return message


@asynccontextmanager
async def serving(credentials: MemberCredentials) -> AsyncIterator[str]:
    tls = credentials.tls(FixedClock(), lambda peer: False)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((WhoAreYou(credentials, FixedClock()),))
    pair = (tls.private_key_pem, tls.certificate_chain_pem)
    server_credentials = grpc.ssl_server_credentials([pair], tls.run_ca_pem, require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", server_credentials)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def dial(address: str, callee: PeerId, pinned_pem: bytes, key_pem: bytes, chain_pem: bytes) -> str:
    credentials = grpc.ssl_channel_credentials(pinned_pem, key_pem, chain_pem)
    options = [("grpc.ssl_target_name_override", callee.tls_name), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
        reply: bytes = await channel.unary_unary("/any/method", _as_it_is, _as_it_is)(b"", timeout=TIMEOUT_S)
        return reply.decode()


def call(
    server: MemberCredentials, caller_chain: CertificateChain, caller: int, *, pinned: bytes | None = None, callee: PeerId | None = None
) -> str:
    """One call from `caller`, with that chain, to a server that pins nothing and trusts the run's root."""

    async def work() -> str:
        async with asyncio.timeout(3 * TIMEOUT_S), serving(server) as address:
            pin = server.chain.leaf_pem if pinned is None else pinned
            return await dial(address, callee or server.peer, pin, tls_key(caller).private_pem, caller_chain.pem)

    return uvloop.run(work())


@pytest.mark.parametrize("server_issuer", [None, DELEGATE])
@pytest.mark.parametrize("caller_issuer", [None, DELEGATE])
def test_members_meet_whoever_admitted_them(server_issuer: Issuer | None, caller_issuer: Issuer | None) -> None:
    server = WORLD.credentials(1, server_issuer)
    caller = WORLD.credentials(2, caller_issuer)
    assert call(server, caller.chain, 2) == str(caller.peer)


def test_the_runs_root_would_verify_the_server_too() -> None:
    server = WORLD.credentials(1, DELEGATE)
    assert call(server, WORLD.chain(2), 2, pinned=server.run_ca_pem) == str(WORLD.credentials(2).peer)


def refused(server: MemberCredentials, chain: CertificateChain, caller: int = 2, **how: object) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        call(server, chain, caller, **how)  # type: ignore[arg-type]
    return caught.value


def test_callers_that_no_authority_of_the_run_admitted_are_refused_by_tls() -> None:
    server = WORLD.credentials(1)
    pretended = Issuer(DELEGATE.private_key, make_run_ca(DELEGATE.private_key, "test-run", 1, WORLD.not_before, WORLD.not_after))
    sub_key = ed25519(77)
    sub = Issuer(sub_key, issue_delegate(pretended, sub_key.public_key().public_bytes_raw(), 5, WORLD.not_before, WORLD.not_after))
    sub_leaf = WORLD.chain(2, sub).certificates[0]
    expired = WORLD.chain(2, not_after=WORLD.not_before + DAY_S)
    strangers = {
        "another run": SAME_NAME.chain(2),
        "another run's delegate": SAME_NAME.chain(2, SAME_NAME.delegate()),
        "a delegate's delegate": CertificateChain((sub_leaf, sub.certificate)),
        "without the delegate's certificate": CertificateChain(WORLD.chain(2, DELEGATE).certificates[:1]),
        "expired": expired,
    }
    for name, chain in strangers.items():
        assert refused(server, chain).code() is grpc.StatusCode.UNAVAILABLE, name


def test_a_leaf_that_is_bound_to_another_run_is_refused_by_us() -> None:
    """Same authority, so TLS is content; the peer's own signature in the leaf names the other run."""
    sibling = RunWorld(not_before=ALWAYS[0], not_after=ALWAYS[1], mode="open")
    assert sibling.authority_key == WORLD.authority_key
    error = refused(WORLD.credentials(1), sibling.chain(2))
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "has not signed its key for this run" in str(error.details())


def test_a_server_with_another_leaf_than_the_pinned_one_is_refused() -> None:
    server = WORLD.credentials(1, DELEGATE)
    chain = WORLD.chain(2)
    assert refused(server, chain, pinned=WORLD.chain(3).leaf_pem).code() is grpc.StatusCode.UNAVAILABLE
    assert refused(server, chain, callee=WORLD.credentials(3).peer).code() is grpc.StatusCode.UNAVAILABLE


def test_a_caller_without_the_key_of_its_certificate_is_refused() -> None:
    with pytest.raises((grpc.aio.AioRpcError, ValueError)):
        call(WORLD.credentials(1), WORLD.chain(2), caller=3)
