"""The certificate of the API: read when the daemon starts, and again when its files change."""

from __future__ import annotations

import os
import ssl

from obatchd import log

_log = log.get(__name__)
_Stamp = tuple[tuple[int, int, int], ...]


class Certificate:
    """A certificate and its key. ``problem`` says why there is none of use; empty: there is one.

    Both files are rarely replaced in one instant: until they fit, the pair that was read before goes on.
    """

    def __init__(self, certificate: str, key: str) -> None:
        self._files = (certificate, key)
        self._stamp: _Stamp = ()
        self._context: ssl.SSLContext | None = None
        self.problem = ""

    def context(self) -> ssl.SSLContext | None:
        """For a connection that begins now; None where no pair was readable yet."""
        stamp: _Stamp = ()
        try:
            stamp = tuple((s.st_ino, s.st_mtime_ns, s.st_size) for s in map(os.stat, self._files))
            if stamp == self._stamp:
                return self._context
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self._files, password=_no_password)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            reason = f"tls_certificate and tls_key cannot be used: {log.reason(error)}"
            if self.problem != reason:
                _log.error("certificate_not_read", reason=reason)
            self.problem, self._stamp = reason, stamp
            return self._context
        if self._context is not None:
            _log.info("certificate_renewed")
        self.problem, self._stamp, self._context = "", stamp, context
        return context


def _no_password() -> str:
    """Asked for by a key that is encrypted: OpenSSL would ask at the terminal."""
    raise ValueError("the key is encrypted; give one without a password")
