"""``obatchctl hosts``: the hosts that joined, and what lets others join."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import click

from obatchd.cli.command import Document, Group, Invocation, Span, clean
from obatchd.cli.views.text import NOTHING, table, wrapped
from obatchd.cli.views.waiting import watch as show_again
from obatchd.errors import ClusterError
from obatchd.times import clock, duration, epoch_s, skew
from obatchd.words import counted

_WATCH: dict[str, Any] = {"is_flag": True, "help": "Show them again and again, until Ctrl-C."}
_PAUSE_S = 2.0  # between two looks
hosts_command = Group(
    "hosts",
    "List the hosts that joined, and let others join.",
    lists=True,
    options=[click.Option(["--watch"], **_WATCH)],
)
_FILE = click.Path(dir_okay=False, path_type=Path)
_HEAD = click.option(
    "--head", default="", metavar="HOST:PORT", help="Where hosts reach this one, if not where it listens."
)


@hosts_command.command("list")
@click.option("--watch", **_WATCH)
def list_command(invocation: Invocation, watch: bool) -> None:
    """List the hosts: state, GPUs, versions.

    Behind each stands why it is not here, or gets no work."""
    look = partial(invocation.client().get, "hosts")
    if watch:
        show_again(invocation, _PAUSE_S, look, _list)
    invocation.answer(look(), view=_list)


def _list(document: Document) -> list[str]:
    door, hosts = document["door"], document["hosts"]
    if door is None:
        return ["Hosts cannot join: [cluster] listen is empty. Set it to an IP address of this host with a port."]
    lines = [clean(door["problem"])] if door["problem"] else []
    if not hosts and not lines:
        lines.append(f"No hosts yet. They join at {door['address']}: obatchctl hosts code makes a link for one.")
    elif hosts:
        rows = [
            (
                host["name"], host["state"], str(host["gpus"] or NOTHING), f"{host['ready']}/{host['servers']}",
                host["version"] or NOTHING, _since(host["since"]), clean(_why(host)) or None,
            )
            for host in hosts
        ]  # fmt: skip
        shown = table(("=HOST", "STATE", ">GPUS", ">READY", "?VERSION", "SINCE", "~~"), rows)
        lines += shown
        for host, line in zip(hosts, shown[1:], strict=True):
            if (why := clean(_why(host))) not in line:  # the terminal is too narrow for it
                lines += wrapped(why, f"  {host['name']}: ")
    lines += _engine(document["engine"])
    for enrolment in document["enrolments"]:
        joined = counted(len(enrolment["hosts"]), "host")
        lines.append(f"enrolment {enrolment['id']}: good until {enrolment['until'][:16]}Z, {joined} by it")
    return lines


def _engine(engine: Document | None) -> list[str]:
    """What there is to say of the engine that starts hosts, and of each of its machines without one."""
    if engine is None:
        return []
    if engine["state"] == "gone":
        return [clean(engine["reason"])]
    running = sum(node["state"] == "running" for node in engine["nodes"])
    state = f"Ray {engine['version']}" if engine["state"] == "here" else "obatchd is about to connect to Ray"
    lines = [f"{state} ({engine['address']}): a host runs on {running} of {counted(len(engine['nodes']), 'node')}"]
    lines += [clean(engine["reason"])] if engine["reason"] else []
    return lines + [
        clean(f"  {node['name']}, {counted(node['gpus'], 'GPU')}: {node['reason'] or node['state']}")
        for node in engine["nodes"]
        if node["reason"] or node["state"] != "running"
    ]


def _why(host: Document) -> str:
    """What there is to say of a host beside its state."""
    differs = skew(host["clock_ahead_s"] or 0.0)
    parts = [host["reason"], host["drained"] and f"drained {host['drained']}", host["allocation"], differs]
    return "; ".join(filter(None, parts))


def _since(instant: str) -> str:
    return duration(max(time.time() - epoch_s(instant), 0.0)) if instant else NOTHING


@hosts_command.command("code")
@_HEAD
def code_command(invocation: Invocation, head: str) -> None:
    """Make a link by which one host joins, once.

    It is good for ten minutes."""
    made = invocation.client().post("hosts/codes", body={"head": head})
    invocation.answer(
        made,
        "On the new host, as root:",
        f"  sudo obatchd-join '{made['link']}'",
        f"The link is good for one host, until {clock(epoch_s(made['until']), '%H:%M')}. "
        "Where other users see its processes, give obatchd-join - and type the link there.",
    )


@hosts_command.command("enrol")
@click.option(
    "--out", "--output", "file", required=True, type=_FILE, help="The new file for the link; only you can read it."
)
@click.option(
    "--valid", "valid_s", type=Span(60, with_unit=True), default="7d", show_default=True, metavar="TIME",
    help="How long hosts may join by it.",
)  # fmt: skip
@_HEAD
def enrol_command(invocation: Invocation, file: Path, valid_s: float, head: str) -> None:
    """Make a file by which many hosts join.

    It is for an engine that starts them, such as Slurm. Only you can read it."""
    made = write_enrolment(invocation, file, valid_s, head)
    document = {"file": str(file), "id": made["id"], "until": made["until"]}
    invocation.answer(
        document,
        f"{file}: enrolment {made['id']}, good until {made['until'][:16]}Z; only you can read it",
        "On each host:  obatchd-join FILE   or  obatchd host --enrol FILE",
        f"To end it, with all hosts that joined by it:  obatchctl hosts forget --enrolment {made['id']}",
    )


def write_enrolment(invocation: Invocation, file: Path, valid_s: float, head: str = "") -> Document:
    """Have the head make an enrolment, and write its link to a new file of mode 0600; the head's answer.

    ``head`` is where hosts reach it, empty: where it listens. Raises ClusterError where the file cannot be made.
    """
    # First, so that nothing is made that nobody gets; O_EXCL follows no link that somebody laid there.
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        words = f"{clean(str(file))} cannot be made: {error.strerror}. Name a file that is not there yet"
        raise ClusterError(words, code="file_exists" if isinstance(error, FileExistsError) else None) from None
    try:
        made = invocation.client().post("hosts/enrolments", body={"valid_s": valid_s, "head": head})
        with os.fdopen(descriptor, "w", encoding="utf-8") as target:
            target.write(f"{made['link']}\n")
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    return made


@hosts_command.command("drain")
@click.argument("name", metavar="HOST")
def drain_command(invocation: Invocation, name: str) -> None:
    """Give a host no new work; what it has in hand ends."""
    host = invocation.client().post("hosts", name, "drain")
    invocation.answer(host, f"{host['name']} gets no new work. Back with:  obatchctl hosts resume {host['name']}")


@hosts_command.command("resume")
@click.argument("name", metavar="HOST")
def resume_command(invocation: Invocation, name: str) -> None:
    """Give a host work again."""
    host = invocation.client().post("hosts", name, "resume")
    invocation.answer(host, f"{host['name']} gets work again; it is {host['state']}.")


@hosts_command.command("forget")
@click.argument("name", metavar="[HOST]", required=False)
@click.option("--enrolment", metavar="ID", help="An enrolment, and all hosts that joined by it.")
def forget_command(invocation: Invocation, name: str | None, enrolment: str | None) -> None:
    """Let a host in no more.

    Its credential is revoked, and its session ends; with --enrolment, of all hosts that joined by that one."""
    if (name is None) == (enrolment is None):
        raise click.UsageError("name a host, or an enrolment with --enrolment")
    client = invocation.client()
    if name is not None:
        gone = client.delete("hosts", name)
        invocation.answer(gone, f"{name} is forgotten. Its requests go to others; on it, stop obatchd-host.service.")
        return
    gone = client.delete("hosts/enrolments", enrolment or "")
    hosts = ", ".join(gone["hosts"]) or "no host had joined by it"
    invocation.answer(gone, f"{enrolment} is revoked: {hosts}.")
