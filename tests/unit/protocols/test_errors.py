from __future__ import annotations

import pytest

from protocols.errors import (
    ConfigError,
    DatasetError,
    ExitCode,
    InviteError,
    LocalProtocolError,
    NetworkSetupError,
    RemoteError,
    RemoteProtocolError,
    RemoteRefusal,
    RemoteTimeout,
    RoundError,
    StateDirError,
    SwarmError,
    UserError,
)
from protocols.ids import PeerId

PEER = PeerId(bytes(32))


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (UserError, ExitCode.USAGE),
        (ConfigError, ExitCode.CONFIG),
        (InviteError, ExitCode.INVITE),
        (DatasetError, ExitCode.DATASET),
        (StateDirError, ExitCode.STATE_DIR),
        (NetworkSetupError, ExitCode.NETWORK),
    ],
)
def test_each_users_mistake_has_its_exit_code(kind: type[UserError], code: ExitCode) -> None:
    assert kind("Do this.").exit_code is code
    assert kind("Do this.", ExitCode.PORT_IN_USE).exit_code is ExitCode.PORT_IN_USE
    assert kind.exit_code is code, "giving one error another code must not change the others"
    assert str(kind("Do this.")) == "Do this."


def test_exit_codes_are_never_renumbered() -> None:
    numbers = {code.name: code.value for code in ExitCode}
    assert numbers == {
        "OK": 0,
        "INTERNAL": 1,
        "USAGE": 2,
        "CONFIG": 10,
        "INVITE": 11,
        "DATASET": 12,
        "STATE_DIR": 13,
        "IDENTITY_IN_USE": 14,
        "NETWORK": 15,
        "PORT_IN_USE": 16,
        "WRONG_RUN": 17,
        "REFUSED": 18,
        "UNHEALTHY": 19,
        "NO_STATE": 20,
        "DEVICE": 21,
        "INTERRUPTED": 130,
    }


def test_remote_errors_name_the_peer() -> None:
    error = RemoteProtocolError(PEER, "bad bytes")
    assert str(error) == f"peer {PEER.short}: bad bytes"
    assert (error.peer, error.reason) == (PEER, "bad bytes")
    assert str(RemoteTimeout(None, "silence")) == "peer unknown: silence"
    assert RemoteRefusal(PEER, "banned", "no").code == "banned"


def test_whose_fault_it_is_follows_from_the_type() -> None:
    assert issubclass(RemoteRefusal, RemoteError)
    assert not issubclass(RemoteTimeout, RemoteProtocolError), "silence is no evidence against anybody"
    for kind in (UserError, RemoteError, LocalProtocolError, RoundError):
        assert issubclass(kind, SwarmError)
    assert not issubclass(LocalProtocolError, RemoteError)
