"""The checks of ``obatchctl doctor`` on hosts that joined, by what the daemon and they themselves tell."""

from __future__ import annotations

from collections.abc import Iterator

from obatchd.cli.command import Document
from obatchd.cli.doctor.result import CheckResult, bad, ok, warn
from obatchd.client.control import ControlClient
from obatchd.errors import ForbiddenError, ObatchError
from obatchd.words import counted


def is_of_hosts(words: str, status: Document) -> bool:
    """Whether a reason or notice of the status is about a joined host: :func:`joined` tells it."""
    names = [host["name"] for host in status.get("hosts") or ()]
    return any(words.startswith((f"host {name}: ", f"host {name} ")) for name in names)


def joined(status: Document) -> Iterator[CheckResult]:
    """Hosts that are away, get no work, are of another version, or say what is wrong with them; ``status`` is the
    daemon's."""
    hosts = status.get("hosts") or []
    if not hosts:
        yield warn("hosts", "no host has joined yet", "obatchctl hosts code")
        return
    here = [host for host in hosts if host["state"] != "away"]
    servers = sum(bool(server.get("host")) for server in status["servers"])
    if here:
        yield ok("hosts", f"{len(here)} of {len(hosts)} here, {counted(servers, 'server')}")
    else:
        yield bad("hosts", f"none of {len(hosts)} is here: nothing is answered there", "obatchctl hosts")
    for host in hosts:
        yield from _one(host, status)


def machines(client: ControlClient) -> Iterator[CheckResult]:
    """What each host that is here finds on its own machine, by the same checks as here."""
    try:
        examined = client.get("hosts/findings")["hosts"]
    except ForbiddenError:
        yield ok("hosts", "what each finds on its own machine is shown to administrators")
        return
    except ObatchError as error:
        yield warn("hosts", f"what each finds on its own machine is not known: {error.message}", "obatchctl hosts")
        return
    for host in examined:
        yield from (CheckResult(**finding, host=host["host"]) for finding in host["findings"])


def engine(status: Document) -> Iterator[CheckResult]:
    """The engine that starts hosts: whether it is here, who may come to it, and machines on which no host runs."""
    told = status.get("engine")
    if not told:
        return
    if told["state"] == "gone":
        yield bad("ray", told["reason"], "ray status")
        return
    if told["state"] == "starting":
        yield warn("ray", f"obatchd is about to connect to the Ray at {told['address']}", "obatchctl doctor")
        return
    running = sum(node["state"] == "running" for node in told["nodes"])
    text = f"Ray {told['version']}: a host runs on {running} of {counted(len(told['nodes']), 'node')} with GPUs"
    yield ok("ray", text) if told["nodes"] else warn("ray", f"{text}: no node has any", "ray status")
    if told["reason"]:
        yield warn("ray", told["reason"], "obatchctl doctor")
    for node in told["nodes"]:
        if node["reason"]:
            yield warn("ray", f"{node['name']}: {node['reason']}", "ray status")
    if not told["authenticated"]:
        text = "Ray asks nobody for a token: whoever reaches its ports can run programs on all of its machines"
        yield warn("ray", text, "ray get-auth-token --generate, and RAY_AUTH_MODE=token for ray start and obatchd")


def _one(host: Document, status: Document) -> Iterator[CheckResult]:
    name = host["name"]
    if host["state"] == "away":
        yield warn("hosts", f"{name} is away: {host['reason']}", f"ssh {name} systemctl status obatchd-host")
        return
    if host["version"] not in ("", status["version"]):
        text = f"{name} runs obatchd {host['version']}, the head {status['version']}: install the same on both"
        yield warn("hosts", text, f"ssh {name} obatchd --version")
    for words in (*status["reasons"], *status["notices"]):
        if words.startswith(f"host {name}: "):
            yield warn("hosts", words.removeprefix("host "), _next(name, words))


def _next(name: str, words: str) -> str:
    if "its clock is" in words:
        return f"ssh {name} timedatectl set-ntp true"
    if "gets no work" in words:
        return f"obatchctl hosts resume {name}"
    return "obatchctl status"
