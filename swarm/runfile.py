"""A run as files: the TOML somebody writes, and what a coordinator's state directory keeps of it.

<state_dir>/run/spec.signed     the signed specification, as members exchange it (`SignedRunSpec.to_bytes`)
<state_dir>/run/spec.json       the same for people; never read
<state_dir>/run/authority.key   the authority's Ed25519 seed, 32 bytes, mode 0600; only where the run was made
<state_dir>/run/ca.pem          the run's root certificate
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from peers.identity import Identity
from peers.private_files import PUBLIC_MODE, make_private_dir, read_bounded, write_atomic
from protocols.admission import MEMBER_LIFETIME_S
from protocols.certificate_chain import MAX_CERTIFICATE_BYTES, ders_from_pem, pem_from_der
from protocols.errors import ConfigError, ExitCode, RemoteProtocolError, StateDirError
from protocols.ids import SwarmTime
from protocols.invite import TOKEN_BYTES, Invite, make_invite
from protocols.issuing import Issuer, issue_delegate, make_run_ca, serial_for
from protocols.runspec import MAX_SPEC_BYTES, RunSpec, SignedRunSpec

if TYPE_CHECKING:
    from swarm.data.dataset import Dataset

MAX_RUN_FILE_BYTES = 2**20
RUN_LIFETIME_S = 10 * 365 * 86_400.0
"""How long a run's root certificate is valid."""

_CLOCK_SLACK_S = 3600.0

SIGNED_SPEC = "spec.signed"
AUTHORITY_KEY = "authority.key"
RUN_CA = "ca.pem"


def read_spec(path: Path) -> RunSpec:
    """Read a run file; paths of data files in it are taken relative to where the command runs.

    Raises:
        ConfigError: it cannot be read, is no TOML, or holds an unknown or wrong setting.
    """
    try:
        with path.expanduser().open("rb") as file:
            raw = file.read(MAX_RUN_FILE_BYTES + 1)
        if len(raw) > MAX_RUN_FILE_BYTES:
            raise ConfigError(f"{path} is far too long for a run file: name a TOML file of at most {MAX_RUN_FILE_BYTES} bytes.")
        text = raw.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"Cannot read the run file {path}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is no run file: it is not UTF-8 text.") from None
    return RunSpec.from_toml(text)


def preset_spec(preset: str, name: str | None) -> RunSpec:
    """A run that trains a preset on the standard library's text, with default settings.

    Raises:
        ConfigError: no such preset, or the name cannot be used.
    """
    return RunSpec.from_settings({"run": {"name": name or f"{preset}-bloom"}, "model": {"preset": preset}})


def open_dataset(spec: RunSpec, root: Path) -> Dataset:
    """The data a run trains on, found on this machine and checked against the fingerprint in the spec, if there is one.

    Args:
        spec: of the run.
        root: folder below which its files are looked for.

    Raises:
        DatasetError: a file is missing or too short, or the data is not the run's.
    """
    from swarm.data.dataset import check_fingerprint, load_dataset

    dataset = load_dataset(spec.data, root)
    if spec.data.fingerprint is not None:
        check_fingerprint(bytes.fromhex(spec.data.fingerprint), dataset.fingerprint, dataset.description, None)
    return dataset


def check_fragments(spec: RunSpec) -> None:
    """That the model can be averaged in as many fragments as the run file says; a member would notice only when it begins to train.

    Raises:
        ConfigError: it has not so many parts, or the model cannot be built from the spec.
    """
    if spec.optimizer.rule != "outer" or spec.outer.fragments == 1:
        return  # building even the outline of a model means importing torch
    from swarm.models.build import meta_parameters
    from swarm.optim.fragments import fragments_of

    fragments_of(meta_parameters(spec.model.model_dump(exclude_none=True)), spec.outer.fragments)


def create_run(state_dir: Path, spec: RunSpec, *, now: SwarmTime, root: Path | None = None) -> SignedRunSpec:
    """Make a run: fingerprint its data, make an authority key, sign, and write everything into the state directory.

    Args:
        state_dir: created when missing; must not hold a run yet.
        spec: what all members will share; its data fingerprint is filled in.
        now: our clock, for the root certificate.
        root: folder below which data files are looked for; the current one by default.

    Raises:
        ConfigError: the model cannot be built from the spec, or cut into its fragments.
        DatasetError: the data cannot be used.
        StateDirError: not writable, or a run is in there already.
    """
    from swarm.models.config import resolve_config

    folder = state_dir / "run"
    if (folder / SIGNED_SPEC).exists():
        held = load_spec(state_dir)
        raise StateDirError(f"{state_dir} already holds the run {held.spec.run.name} ({held.run_id.short}): choose another --state-dir.")
    resolve_config(spec.model.model_dump(exclude_none=True))
    check_fragments(spec)
    fingerprint = open_dataset(spec, root or Path.cwd()).fingerprint.hex()
    spec = spec.model_copy(update={"data": spec.data.model_copy(update={"fingerprint": fingerprint})})
    authority = Identity.generate()
    signed = SignedRunSpec.sign(spec, authority)
    begins, ends = SwarmTime(now - _CLOCK_SLACK_S), SwarmTime(now + RUN_LIFETIME_S)
    run_ca = make_run_ca(authority.private_key, spec.run.name, serial_for(signed.run_id.digest), begins, ends)
    make_private_dir(folder)
    write_atomic(folder / AUTHORITY_KEY, authority.seed)
    write_atomic(folder / RUN_CA, pem_from_der(run_ca), PUBLIC_MODE)
    save_spec(state_dir, signed)
    return signed


def open_run(state_dir: Path, spec: RunSpec, *, now: SwarmTime, root: Path | None = None) -> tuple[SignedRunSpec, Issuer]:
    """Go on with the run in a state directory, or make it there if there is none yet; arguments as for `create_run`.

    Raises:
        ConfigError: another run is in there.
        DatasetError, StateDirError: as `create_run` and `load_run`.
    """
    if (state_dir / "run" / SIGNED_SPEC).exists():
        signed, authority = load_run(state_dir)
        if _without_fingerprint(signed.spec) != _without_fingerprint(spec):
            raise ConfigError(f"{state_dir} holds a run with other settings: name a new state directory, or go back to the old settings.")
        return signed, authority
    create_run(state_dir, spec, now=now, root=root)
    return load_run(state_dir)


def _without_fingerprint(spec: RunSpec) -> RunSpec:
    return spec.model_copy(update={"data": spec.data.model_copy(update={"fingerprint": None})})


def save_spec(state_dir: Path, signed: SignedRunSpec) -> None:
    """Keep a run's specification in a state directory; the signed form goes last, so that there is a whole run or none.

    Raises:
        StateDirError: not writable.
    """
    folder = state_dir / "run"
    make_private_dir(folder)
    write_atomic(folder / "spec.json", json.dumps(json.loads(signed.spec.canonical_bytes()), indent=1).encode(), PUBLIC_MODE)
    write_atomic(folder / SIGNED_SPEC, signed.to_bytes(), PUBLIC_MODE)


def load_spec(state_dir: Path) -> SignedRunSpec:
    """The run this state directory belongs to.

    Raises:
        StateDirError: there is none, or its file is damaged.
    """
    path = state_dir / "run" / SIGNED_SPEC
    raw = read_bounded(path, 2 * MAX_SPEC_BYTES, private=False)
    if raw is None:
        raise StateDirError(f"{state_dir} holds no run: make one with swarm-peer init, or join one.", ExitCode.NO_STATE)
    try:
        return SignedRunSpec.from_bytes(raw)
    except RemoteProtocolError as error:
        raise StateDirError(f"{path} is damaged ({error.reason}): restore it, or start over with another --state-dir.") from None


def load_run(state_dir: Path) -> tuple[SignedRunSpec, Issuer]:
    """A run that was made here, and its authority.

    Raises:
        StateDirError: there is no run, it was made elsewhere, or a file is damaged.
    """
    signed = load_spec(state_dir)
    folder = state_dir / "run"
    seed = read_bounded(folder / AUTHORITY_KEY, 32, private=True)
    pem = read_bounded(folder / RUN_CA, 2 * MAX_CERTIFICATE_BYTES, private=False)
    if seed is None or pem is None:
        raise StateDirError(
            f"{state_dir} does not hold the authority of the run {signed.spec.run.name}: use the one where swarm-peer init made it."
        )
    try:
        (run_ca,) = ders_from_pem(pem)
        authority = Issuer(Ed25519PrivateKey.from_private_bytes(seed), run_ca)
    except ValueError:
        raise StateDirError(f"The authority key or certificate in {folder} is damaged: restore it from a copy.") from None
    if authority.public_key != signed.authority_key:
        raise StateDirError(f"{folder / AUTHORITY_KEY} is another run's: restore the right one from a copy.")
    return signed, authority


def new_invite(
    signed: SignedRunSpec, authority: Issuer, addresses: Sequence[str], *, now: SwarmTime, lifetime_s: float, max_uses: int = 0
) -> str:
    """A new invite link.

    Args:
        signed, authority: of the run.
        addresses: libp2p addresses of members, best first.
        now: our clock.
        lifetime_s: how long it lets peers in.
        max_uses: how many peers it lets in, in a private run; 0: any number.
    """
    expires_at = SwarmTime(now + lifetime_s)
    certificate, seed = b"", b""
    if signed.spec.admission.mode == "open":
        delegate = Ed25519PrivateKey.generate()
        public_key = delegate.public_key().public_bytes_raw()
        begins = SwarmTime(now - _CLOCK_SLACK_S)
        # Members certify themselves with this key, and no certificate outlives its issuer's: it must outlast the invite by a membership.
        ends = SwarmTime(expires_at + MEMBER_LIFETIME_S)
        certificate = issue_delegate(authority, public_key, serial_for(signed.run_id.digest, public_key), begins, ends)
        seed = delegate.private_bytes_raw()
    invite = Invite(
        run=signed.run_id,
        run_name=signed.spec.run.name,
        authority_key=signed.authority_key,
        addresses=tuple(addresses),
        token=secrets.token_bytes(TOKEN_BYTES),
        expires_at=expires_at,
        max_uses=max_uses,
        delegate_certificate=certificate,
        delegate_seed=seed,
    )
    return make_invite(invite, Identity(authority.private_key))


def write_invite(path: Path, link: str) -> None:
    """Write an invite for others to read, in one step: whoever waits for the file never sees half of it.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        write_atomic(path.expanduser(), link.encode() + b"\n")
    except StateDirError:
        raise ConfigError(f"The invite cannot be written to {path}: name another --invite-file.") from None
