"""``[http]``: the API over HTTP, for programs that speak to OpenAI's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, model_validator

from obatchd.settings.addresses import Address, listening
from obatchd.settings.base import Live, Natural, NotNegative, Section, setting

_OWN_LISTEN = "127.0.0.1:8434"  # of a daemon that is not a system service
_WANTED = '"auto", "" or an address with a port, such as "127.0.0.1:8434" or "[::1]:8434"'
_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9])?")


def _place(text: str) -> str:
    if text not in ("", "auto"):
        listening(text, _WANTED)
    return text


def _host_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a host; write it without port and https://")
    return name.lower()


def _file(path: str) -> str:
    if path and not Path(path).is_absolute():
        raise ValueError("must be a path that begins with /")
    return path


class HttpSettings(Section):
    """The API over HTTP, for programs that speak to OpenAI's. It is on a Unix socket in any case."""

    listen: Annotated[str, AfterValidator(_place)] = setting(
        "auto",
        'Where programs reach the API over TCP, such as "127.0.0.1:8434"; "": nowhere; "auto": 127.0.0.1:8434, and '
        "nowhere in a system service.",
    )
    names: Live[list[Annotated[str, AfterValidator(_host_name)]]] = setting(
        [], "Names of this host by which clients may call it, beside localhost and its IP addresses."
    )
    tls_certificate: Annotated[str, AfterValidator(_file)] = setting(
        "",
        "The certificate for https, with those that signed it behind it (PEM); it is read again when it changes.",
    )
    tls_key: Annotated[str, AfterValidator(_file)] = setting("", "The private key of the certificate (PEM).")
    insecure: bool = setting(
        False,
        "Listen on an address that other hosts can reach without TLS: keys, prompts and answers can then be read on "
        "the way.",
    )
    max_file_bytes: Live[Natural] = setting(
        2 * 1024**3, "How large an uploaded file may be. 0: as large as max_unpacked_bytes of [inbox]."
    )
    file_days: Live[NotNegative] = setting(
        30, "How long obatchd keeps an uploaded file whose client does not say it; 0: until it is deleted."
    )
    window: Live[Literal["label", "enforce"]] = setting(
        "label",
        'What the completion_window "24h" of a batch does: "label": nothing, "enforce": requests without an answer '
        "expire then. Any other window, such as 7d, is a deadline.",
    )
    lines: Live[Literal["each", "all"]] = setting(
        "each",
        'A bad line of a batch fails alone ("each"), or the whole batch fails before it runs ("all"), as in OpenAI\'s '
        "API.",
    )
    keyless_owner: str = setting(
        "",
        "The user for whom calls without a key are done, by name or uid; empty: they are refused. Every user of this "
        "host can then act for that one. Not in a system service, and not where other hosts can reach the API.",
    )

    @model_validator(mode="after")
    def _is_guarded(self) -> HttpSettings:
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise ValueError("tls_certificate and tls_key go together; give both")
        where = self.address(service=False)
        if where is None or where.is_loopback:
            return self
        if not self.tls_certificate and not self.insecure:
            raise ValueError(
                f"other hosts can reach {where}, and there is no TLS: give tls_certificate and tls_key, or listen on "
                "127.0.0.1 behind a proxy that has TLS (docs/api.md), or set insecure = true where nobody listens on "
                "the way"
            )
        if self.keyless_owner:
            raise ValueError(f"keyless_owner would let every host that reaches {where} in; listen on 127.0.0.1")
        return self

    def address(self, *, service: bool) -> Address | None:
        """The address over TCP; None: there is none."""
        if self.listen == "auto":
            return None if service else listening(_OWN_LISTEN, _WANTED)
        return listening(self.listen, _WANTED) if self.listen else None
