"""``obatchctl status`` for people: the status document as a page of tables."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import click

from obatchd.cli.command import Document, clean
from obatchd.cli.views.fleet import host_table, not_ready
from obatchd.cli.views.text import NOTHING, Painted, age_s, bar, duration, number, size, styled, table, wrapped
from obatchd.naming import user_name
from obatchd.words import counted, energy, job_ending, server_state

OUTCOMES = ("succeeded", "failed", "cancelled", "expired")
_READINGS = ("~GPU", ">UTIL", ">MEMORY GiB", "?>TEMP", "?>POWER")
_SERVER_HEADINGS = ("=SERVER", "STATE", "~MODEL", *_READINGS, ">BUSY", ">TOKENS/S", "?>RESTARTS")
_MOST_ILL = 4  # lines about servers that are not ready, where there is a line for each host
_LEAST_HOSTS = 5  # lines about hosts
_JOB_HEADINGS = (
    "JOB", "STATE", "~~NAME", "?PROGRESS", ">DONE", ">FAILED", "?>BUSY", "?>REQUESTS/S", "?>TOKENS/S", ">LEFT/TOOK",
)  # fmt: skip


def render(status: Document, room: int | None = None) -> list[str]:
    """The whole page, as lines.

    Where it has more than ``room``, and servers of joined hosts are among them, there is a line for each host in place
    of one for each server.
    """
    lines = _page(status, server_table(status["servers"], told=status["reasons"]))
    if room is None or len(lines) <= room or not (hosts := status.get("hosts")):
        return lines
    told, around = status["reasons"], len(_page(status, []))
    ill = not_ready(status["servers"], told, _MOST_ILL)
    fewer = host_table(status["servers"], hosts, max(room - around - len(ill), _LEAST_HOSTS))
    return _page(status, [*fewer, *ill])


def _page(status: Document, servers: list[str]) -> list[str]:
    up = duration(age_s(status["started_at"]))
    rest = f"obatchd {status['version']} · up {up} · pid {status['pid']} · {status['spool']}"
    lines = [f"{styled(clean(status['state']))} · {clean(rest)}"]
    lines += [click.style(line, fg="red") for reason in status["reasons"] for line in wrapped(reason, "  ! ")]
    lines += ["", *servers]
    here = [server for server in status["servers"] if server["kind"] != "remote" and not server.get("host")]
    untold = status["gpus"]["state"] != "ok" and status["gpus"]["message"] not in status["reasons"]
    if untold and (here or not (status["servers"] or status.get("hosts"))):  # else nobody needs GPUs of this host
        lines.append(clean(f"GPUs {status['gpus']['state']}: {status['gpus']['message']}"))
    lines += [clean(f"note: {notice}") for notice in status["notices"]]
    if waiting := status.get("waiting_for_restart"):
        lines.append(clean(f"note: changed in the configuration, and waiting for a restart: {', '.join(waiting)}"))
    if run := status["burnin"]:
        done = min(100, round(100 * run["elapsed_s"] / run["asked_s"]))
        lines.append(clean(f"burn-in {run['run']}: {run['state']}, {done} %, on {counted(len(run['gpus']), 'GPU')}"))
    queue, inbox, disk = status["queue"], status["inbox"], status["disk"]
    waiting = f"{inbox['settling']} still being written, {len(inbox['blocked'])} blocked, {inbox['refused']} refused"
    waiting += " (failed/ has them and the reasons)" if inbox["refused"] else ""
    if held_back := inbox.get("waiting"):
        waiting += f", {held_back} {'waits' if held_back == 1 else 'wait'}: see above"
    asked = f"queue  {counted(queue['requests'], 'request')} in {counted(queue['jobs'], 'job')}"
    if families := sum(server.get("families", 0) for server in status["servers"]):
        asked += f"; {counted(families, 'family', 'families')} of requests that begin alike in flight"
    told = [asked, f"inbox  {waiting}"]
    if people := status.get("interactive"):
        told.insert(1, f"people {people_line(people)}")
    told += [f"       ! {inbox['problem']}"] if inbox["problem"] else []
    told += [f"       blocked: {drop['name']}: {drop['reason']}" for drop in inbox["blocked"]]
    told.append(f"disk   {size(disk['free_bytes'])} free{'  ! dispatch pauses: see above' if disk['low'] else ''}")
    for pull in status["pulls"]:
        done, total = pull["completed_bytes"], pull["total_bytes"]
        amount = f"{bar(done or 0, total)}  {size(done)} / {size(total)}"
        told.append(f"pull   {pull['model']}  {amount}  {pull['status']}")
    lines += ["", *map(clean, told)]
    if status["jobs"]:
        lines += ["", *job_table(status["jobs"])]
    return lines


def people_line(state: Document) -> str:
    """The requests of people who wait for the answer."""
    words = (
        f"{counted(state['waiting'], 'request')} waiting, {state['in_flight']} in a slot, {state['answered']} answered"
    )
    if (p95_s := state["first_token_p95_s"]) is not None:
        words += f", 95 % began within {p95_s:.2g} s"
    kept = state["reserved_slots"]
    return words + (f", {counted(kept, 'slot')} kept free" if kept else "")


def server_table(servers: list[Document], told: Sequence[str] = ()) -> list[str]:
    """The servers of the status document as a table, and below it why a server is as it is, unless that was told."""
    if not servers:
        return ["no servers"]
    notes = [
        f"  {server['id']}: {server['reason']}"
        for server in servers
        if server["reason"] and server["state"] != "ready" and not any(server["reason"] in reason for reason in told)
    ]
    notes += [
        f"  ! {server['id']} cannot serve {refused['model']}: {refused['reason']}"
        for server in servers
        for refused in server.get("cannot_have") or ()
        if not any(refused["reason"] in reason for reason in told)
    ]
    headings, rows = list(_SERVER_HEADINGS), list(map(_server_row, servers))
    if not any(server["gpus"] for server in servers):
        shown = [column for column, heading in enumerate(headings) if heading not in _READINGS]
        headings, rows = [headings[column] for column in shown], [[row[column] for column in shown] for row in rows]
    return [*table(headings, rows), *map(clean, notes)]


def _server_row(server: Document) -> list[object]:
    loading, loaded = server["loading"], server["loaded"]
    model = f"{loaded['model']} ({loaded['context_length']})" if loaded else NOTHING
    if not loaded and (lacking := server.get("cannot_have")):
        model = f"cannot serve {lacking[-1]['model']}"
    if loading:
        model = f"loading {loading.get('model', '')}".rstrip()
    readings = _readings(server["gpus"]) if server["gpus"] else [NOTHING] * len(_READINGS)
    busy = f"{server['in_flight']}/{server['slots'] if server['slots'] is not None else '?'}"
    speed = number(server["tokens_per_s"], digits=1)
    # Others start one that is elsewhere: obatchd restarts nothing there.
    restarts = NOTHING if server.get("kind") == "remote" else server["restarts"]
    return [server["id"], state_of_server(server), model, *readings, busy, speed, restarts]


def state_of_server(server: Document) -> str:
    """The state of a server in a word for people."""
    idle = not server.get("in_flight") and not server.get("offered")
    return "drained" if server["state"] == "draining" and idle else server_state(server["state"])


def _readings(gpus: list[Document]) -> list[str]:
    """Of one GPU, or of a group: its memory and power in all, its mean utilisation, its hottest GPU."""

    def known(name: str, combine: Callable[[list[Any]], Any]) -> Any:
        values = [gpu[name] for gpu in gpus]
        return None if None in values else combine(values)

    memory = [known(name, sum) for name in ("memory_used_bytes", "memory_total_bytes")]
    busy = known("utilisation_percent", sum)
    names = dict.fromkeys(str(gpu["name"]).removeprefix("NVIDIA ") for gpu in gpus)
    return [
        f"{','.join(str(gpu['index']) for gpu in gpus)} {', '.join(names)}",
        "asleep"
        if all(gpu.get("asleep") for gpu in gpus)
        else number(None if busy is None else busy / len(gpus), " %"),
        "/".join(NOTHING if value is None else f"{value / 1024**3:.1f}" for value in memory),
        number(known("temp_c", max), " °C"),
        number(known("power_w", sum), " W"),
    ]


def finished(job: Document) -> int:
    """How many requests of a job have their result."""
    return sum(job[outcome] or 0 for outcome in OUTCOMES)


def job_table(jobs: list[Document]) -> list[str]:
    """Jobs as a table, with owners where others' are among them, and labels and energy where any job has them."""
    headings, rows = list(_JOB_HEADINGS), list(map(_job_row, jobs))
    energies = [(job.get("totals") or job).get("energy_j") for job in jobs]
    if any(energies):  # where no GPU tells it, there is no room for it
        headings.insert(-1, "?>ENERGY")
        for row, energy_j in zip(rows, energies, strict=True):
            row.insert(-1, "" if energy_j is None else energy(energy_j))
    if any(job.get("label") for job in jobs):
        behind = headings.index("~~NAME") + 1
        headings.insert(behind, "?~LABEL")
        for job, row in zip(jobs, rows, strict=True):
            row.insert(behind, job.get("label") or "")
    if {job["owner"] for job in jobs} <= {os.getuid()}:
        return table(headings, rows)
    name = lru_cache(user_name)
    return table(("~OWNER", *headings), ([name(job["owner"]), *row] for job, row in zip(jobs, rows, strict=True)))


def job_state(job: Document) -> str:
    """The state of a job in a word; of one that is over, how it ended."""
    if job["state"] != "done":
        waits = job["state"] == "running" and job.get("held_up") and not job["in_flight"]
        return "paused" if job["paused"] else "waiting" if waits else str(job["state"])
    return job_ending(job["requests"], job["failed"], job["cancelled"], job["expired"])


def _job_row(job: Document) -> list[object]:
    total, failed, totals = job["requests"], job["failed"], job.get("totals")
    of = total if total is not None else f"{job['indexed']}+"
    speed = totals or job
    rate, tokens = (number(speed[name], digits=1) for name in ("requests_per_s", "tokens_per_s"))
    took = duration(totals["wall_s"] if totals else job["eta_s"])
    progress = bar(job["succeeded"] + failed, total)
    done, bad = f"{job['succeeded']}/{of}", Painted(failed, "red") if failed else ""
    return [job["job"], job_state(job), job["name"], progress, done, bad, job["in_flight"], rate, tokens, took]
