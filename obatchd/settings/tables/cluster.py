"""``[cluster]``: many hosts as one. Some keys are of the head, the others of a host that has joined one."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, model_validator

from obatchd.settings.addresses import Address, listening, reachable
from obatchd.settings.base import Positive, Section, setting

_WANTED = '"" or an IP address of this host with a port, such as "10.0.0.1:7700" or "[fd00::1]:7700"'
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")
_FINGERPRINT = re.compile(r"sha256:[0-9a-f]{64}")
_OF_THE_HEAD = {"listen": "", "engine": "none", "address": "auto"}  # with their defaults


def host_name(text: str) -> str:
    """``text`` where it may be the name of a host; raises ValueError."""
    if not _NAME.fullmatch(text):
        raise ValueError("must be of small letters, digits and hyphens, 40 at most, such as node07")
    return text


def _place(text: str) -> str:
    if text:
        listening(text, _WANTED)
    return text


def _head(text: str) -> str:
    if text:
        reachable(text)
    return text


def _fingerprint(text: str) -> str:
    if text and not _FINGERPRINT.fullmatch(text):
        raise ValueError('must be "sha256:" and 64 digits and letters from a to f, as obatchd-join writes it')
    return text


def _name(text: str) -> str:
    return host_name(text) if text else text


class ClusterSettings(Section):
    """Many hosts as one: the head has listen and engine; head, fingerprint and name stand in the file of each host."""

    listen: Annotated[str, AfterValidator(_place)] = setting(
        "", 'Head: where hosts reach it over TLS, such as "10.0.0.1:7700". Empty: hosts cannot join.'
    )
    engine: Literal["none", "ray", "slurm"] = setting(
        "none",
        'Head: what starts obatchd on the hosts: "none": systemd, on each; "ray": an actor on each node of Ray; '
        '"slurm": a job of Slurm.',
    )
    address: str = setting("auto", 'Head: the address of Ray, such as "10.0.0.1:6379"; "auto": the Ray of this host.')
    lease_s: Positive = setting(
        3600, "Head: how long hosts keep models loaded while they cannot reach it; under an engine they end then."
    )
    head: Annotated[str, AfterValidator(_head)] = setting(
        "", "Host: where it reaches the head; obatchd-join writes this, and the next two."
    )
    fingerprint: Annotated[str, AfterValidator(_fingerprint)] = setting(
        "", "Host: the fingerprint of the head's certificate; it talks to no other."
    )
    name: Annotated[str, AfterValidator(_name)] = setting(
        "", "Host: its name in lists, and in front of the names of its servers: node07.gpu0."
    )

    @model_validator(mode="after")
    def _is_one_of_both(self) -> ClusterSettings:
        of_host = [key for key in ("head", "fingerprint", "name") if getattr(self, key)]
        of_head = [key for key, default in _OF_THE_HEAD.items() if getattr(self, key) != default]
        if of_host and of_head:
            raise ValueError(
                f"{' and '.join(of_head)} make this the head, {' and '.join(of_host)} a host of another one: remove "
                "those that do not belong here"
            )
        if bool(self.head) != bool(self.fingerprint):
            raise ValueError("head and fingerprint go together; obatchd-join writes both")
        if self.engine != "none" and not self.listen:
            raise ValueError(f'engine = "{self.engine}" needs listen, where its hosts reach this one')
        return self

    @property
    def door(self) -> Address | None:
        """Where the head listens for hosts; None: nowhere."""
        return listening(self.listen, _WANTED) if self.listen else None

    @property
    def head_address(self) -> Address | None:
        """Where a host reaches its head; None: this is none."""
        return reachable(self.head) if self.head else None
