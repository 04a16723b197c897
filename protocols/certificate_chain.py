"""A member's certificates as bytes: PEM for TLS libraries and files, DER in a compact form for envelopes. Nothing is verified here."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass

from protocols.canonical import pack_fields, unpack_fields

MAX_CERTIFICATE_BYTES = 4096
MAX_CHAIN = 2
"""Leaf, and the delegate that issued it."""

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----\s*")


@dataclass(frozen=True, slots=True)
class CertificateChain:
    """A leaf, then the delegate that issued it if one did.

    Args:
        certificates: one or two DER certificates.

    Raises:
        ValueError: none, too many, or one too large.
    """

    certificates: tuple[bytes, ...]

    def __post_init__(self) -> None:
        if not 0 < len(self.certificates) <= MAX_CHAIN:
            raise ValueError(f"a chain of {len(self.certificates)} certificates")
        if any(not 0 < len(der) <= MAX_CERTIFICATE_BYTES for der in self.certificates):
            raise ValueError("a certificate that is empty or too large")

    @property
    def leaf_pem(self) -> bytes:
        """The member's own certificate, as a dialler pins it."""
        return pem_from_der(self.certificates[0])

    @property
    def pem(self) -> bytes:
        """All of it, leaf first, as a TLS server or client presents it."""
        return b"".join(map(pem_from_der, self.certificates))

    def to_bytes(self) -> bytes:
        """Compact form for envelopes."""
        return pack_fields(*self.certificates)

    @classmethod
    def from_bytes(cls, data: bytes) -> CertificateChain:
        """Undo `to_bytes`.

        Raises:
            ValueError: not a chain.
        """
        return cls(unpack_fields(data, MAX_CHAIN))

    @classmethod
    def from_pem(cls, pem: bytes) -> CertificateChain:
        """Read PEM text that holds nothing else.

        Raises:
            ValueError: not a chain.
        """
        return cls(ders_from_pem(pem))


def pem_from_der(der: bytes) -> bytes:
    """One certificate as PEM text."""
    text = base64.b64encode(der)
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    return b"\n".join([b"-----BEGIN CERTIFICATE-----", *lines, b"-----END CERTIFICATE-----", b""])


def ders_from_pem(pem: bytes) -> tuple[bytes, ...]:
    """Certificates in PEM text that holds nothing else.

    Raises:
        ValueError: something else is in it, or it is too large.
    """
    if len(pem) > MAX_CHAIN * 2 * MAX_CERTIFICATE_BYTES or not re.fullmatch(rb"\s*(?:" + _PEM.pattern + rb")+", pem):
        raise ValueError("this is not a PEM certificate chain")
    try:
        return tuple(base64.b64decode(b"".join(body.split()), validate=True) for body in _PEM.findall(pem))
    except binascii.Error as error:
        raise ValueError(f"this is not a PEM certificate chain: {error}") from error
