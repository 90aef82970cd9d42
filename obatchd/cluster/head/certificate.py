"""The certificate of the head, made at its first start with a door. Hosts know the head by it, and by nothing else.

It is signed by itself: a host compares its fingerprint, which came with the link, and trusts no authority. So it never
has to be renewed.
"""

from __future__ import annotations

import hashlib
import ssl
from datetime import UTC, datetime
from pathlib import Path

from obatchd.cluster.host.files import read_file, write_file
from obatchd.errors import ClusterError, ConfigError
from obatchd.installation import lacks

_NAME = "certificate.pem"  # with its key: one file is whole or is not there
_BEGIN, _END = datetime(2020, 1, 1, tzinfo=UTC), datetime(2120, 1, 1, tzinfo=UTC)


class HeadCertificate:
    """Implements :class:`obatchd.doors.reception.Security`."""

    def __init__(self, context: ssl.SSLContext, fingerprint: str, *, is_new: bool) -> None:
        self._context = context
        self.fingerprint = fingerprint  # sha256:…
        self.is_new = is_new  # no host can know it yet

    def context(self) -> ssl.SSLContext:
        return self._context


def of_head(directory: Path) -> HeadCertificate:
    """The certificate in ``directory``, made where there is none.

    Raises ConfigError (``no_cryptography``) where the library for that is missing, ClusterError where the file cannot
    be read or written: it is never replaced, because every host would have to join again.
    """
    path = directory / _NAME
    try:
        is_new = not path.exists()
        if is_new:
            directory.mkdir(mode=0o700, exist_ok=True)
            write_file(path, _made())
        certificate = read_file(path).decode("ascii")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(path)
        body = certificate[certificate.index("-----BEGIN CERTIFICATE-----") :]
        der = ssl.PEM_cert_to_DER_cert(body)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        words = f"the certificate in {path} cannot be used ({error}). Bring it back from a backup (one with "
        words += "--secrets), or remove the file and restart obatchd: every host then has to join again"
        raise ClusterError(words, code="no_certificate") from None
    return HeadCertificate(context, f"sha256:{hashlib.sha256(der).hexdigest()}", is_new=is_new)


def _made() -> bytes:
    """A new key, and a certificate of it, as PEM."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError:
        words = lacks("cryptography", "listen in [cluster], for the certificate by which hosts know the head,")
        raise ConfigError(f"{words}   or leave listen empty", code="no_cryptography") from None
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "obatchd head")])
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_BEGIN)
        .not_valid_after(_END)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ) + signed.public_bytes(serialization.Encoding.PEM)
