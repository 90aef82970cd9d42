"""``obatchctl burnin``: test GPUs under load, and report what was found."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Never

import click
import msgspec

from obatchd.burnin.report import bundle
from obatchd.burnin.report.compare import compare
from obatchd.burnin.report.figures import called
from obatchd.burnin.report.html import render
from obatchd.burnin.report.reading import read_file, typed
from obatchd.burnin.report.terminal import comparison, summary
from obatchd.cli.command import Document, Group, Invocation, clean
from obatchd.cli.commands import completion
from obatchd.cli.views.history import RUN_VALUES, run_series, steps_shown
from obatchd.cli.views.text import table
from obatchd.cli.views.waiting import line_anew, over_restarts
from obatchd.documents.burnin.report import BurninReport, BurninStatus
from obatchd.errors import ConfigError, DaemonDownError, NotFoundError
from obatchd.times import duration
from obatchd.words import not_written

burnin_command = Group(
    "burnin",
    "Test GPUs under load for hours, with a verdict for each.\n\n"
    "Exit codes of start --wait, report, compare: 0 every GPU passed, 1 one failed, 2 one cannot be judged, or no run "
    "or report can be had.",
)
_LOOK_S = 2.0
_LENT_S = 2 * 3600.0  # longest time that the tools of a bundle have the GPU
_FREE_S = 120.0
_NOT_JUDGED = 2  # never 1, which says that a GPU failed


@burnin_command.command("start")
@click.option(
    "--gpus",
    default="",
    shell_complete=completion.listed(completion.gpus),
    help="Indices or UUIDs of GPUs, with commas between, or as node07/0 of joined hosts; default: all with a server.",
)
@click.option(
    "--hosts",
    default="",
    metavar="HOSTS",
    shell_complete=completion.listed(completion.hosts),
    help="Names of hosts that joined, with commas between, or all, with this machine; each carries out its own part, "
    "and there is one report.",
)
@click.option(
    "--duration", default="", metavar="TIME", help="How long, such as 90m, 12h or 1d; default: the profile's."
)
@click.option(
    "--model",
    default="",
    shell_complete=completion.models,
    help="The model of the load; default: burnin.model or model of the configuration.",
)
@click.option(
    "--profile",
    type=click.Choice(["quick", "overnight", "acceptance"]),
    default="overnight",
    show_default=True,
    help="quick: 30 minutes. overnight: 12 hours. acceptance: 24 hours at 90 % utilisation or more.",
)
@click.option(
    "--load",
    default="",
    metavar="LOADS",
    help="What loads the GPUs, with commas between: model, compute (matrix products), memory (patterns), dcgm, "
    "gpu-burn; default: the profile's.",
)
@click.option("--exclusive", is_flag=True, help="Give no jobs to the other GPUs of the host either.")
@click.option("--with-jobs", is_flag=True, help="Take jobs as the load; without any, nothing is tested.")
@click.option("--no-canary", is_flag=True, help="Make no output check, for which a GPU is emptied every ten minutes.")
@click.option("--wait", is_flag=True, help="Wait for the end, show the report, and exit with its exit code.")
def start_command(
    invocation: Invocation, /, gpus: str, hosts: str, load: str, wait: bool, no_canary: bool, **asked: Any
) -> None:
    """Begin a burn-in. The other GPUs go on with jobs."""
    if wait:
        invocation.failure = _NOT_JUDGED
    asked |= {"gpus": _listed(gpus), "load": _listed(load), "canary": not no_canary}
    asked |= {"hosts": _listed(hosts)} if hosts else {}
    document = invocation.client().post("burnin", body=asked)
    run = document["run"]
    if wait:
        _wait(invocation, run)
        _show_report(invocation, _report(invocation, run))
    without = [host["reason"] for host in document.get("hosts", ()) if host["reason"]]
    begun = f"Burn-in {run} has begun. To see how far it is:  obatchctl burnin status"
    invocation.answer(document, *map(clean, without), begun)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _wait(invocation: Invocation, run: str) -> None:
    """Until the run is over; over a restart of the daemon, too."""
    shown = ""
    while True:
        status = over_restarts(partial(invocation.client().get, "burnin/status"))
        if status["run"] != run or not status["active"]:
            line_anew("")
            return
        line = _progress(status)
        if line != shown:
            line_anew(line)
            shown = line
        time.sleep(_LOOK_S)


def _progress(status: Document) -> str:
    share = min(100, int(100 * status["elapsed_s"] / status["asked_s"]))
    left = duration(max(0.0, status["asked_s"] - status["elapsed_s"]))
    phases = status.get("phases") or [{}]
    loads = " and ".join(phases[-1].get("loads", ())) if status["state"] == "loading" else ""
    return f"{status['run']}: {status['state']}{f' ({loads})' if loads else ''}, {share} %, {left} left"


@burnin_command.command("status")
def status_command(invocation: Invocation) -> None:
    """Show how far the burn-in is and what it has found. When none is running, show the latest one."""
    invocation.answer(invocation.client().get("burnin/status"), view=_status)


def _status(document: Document) -> list[str]:
    status, lines = typed(document, BurninStatus), []
    if status.active:
        # What is missing because it is not over is no reason yet, and nothing to do something about.
        lines.append(clean(_progress(document)))
        if status.verdict in ("PASS", "INCONCLUSIVE"):
            status.verdict = "nothing found yet"
        status.meaning = "It is not over: this is how it looks until now."
        for gpu in status.gpus:
            if gpu.verdict == "INCONCLUSIVE":
                gpu.verdict, gpu.action = "not yet", ""
                gpu.reasons = [reason for reason in gpu.reasons if reason.consequence != "inconclusive"]
    return [*lines, clean(summary(status), keep="\n")]


@burnin_command.command("series")
@click.argument("run", default="latest", shell_complete=completion.burnin_runs)
@click.option("--value", type=click.Choice([*RUN_VALUES]), help="Only this; default: of many GPUs tokens, of one all.")
def series_command(invocation: Invocation, run: str, value: str | None) -> None:
    """Show how a burn-in went over time, also the one in progress. RUN is an id or its beginning, or latest."""
    document = invocation.client().get("burnin/series", run=run, points=steps_shown(invocation))
    shown = [value] if value else [*RUN_VALUES] if len(document["gpus"]) == 1 else ["tokens"]
    invocation.answer(document, view=lambda _: [*run_series(document, shown)])


@burnin_command.command("stop")
def stop_command(invocation: Invocation) -> None:
    """End the burn-in now. Its report says what was done until then."""
    document = invocation.client().post("burnin/stop")
    invocation.answer(document, f"Burn-in {document['run']} is being stopped.")


@burnin_command.command("list")
def list_command(invocation: Invocation) -> None:
    """List all burn-ins of this spool, newest first."""
    document = invocation.client().get("burnin")
    rows = [
        (
            run["run"],
            run["state"],
            run.get("profile"),
            len(run.get("hosts", [])) or 1,
            len(run.get("gpus", [])) or None,
            run.get("verdict") or None,
        )
        for run in document["runs"]
    ]
    columns = ("RUN", "STATE", "PROFILE", ">HOSTS", ">GPUS", "VERDICT")
    lines = table(columns, rows) if rows else ["No burn-in has been run."]
    invocation.answer(document, view=lambda _: lines)


@burnin_command.command("report")
@click.argument("run", default="latest", shell_complete=completion.burnin_runs)
@click.option(
    "--html", "page", type=click.Path(dir_okay=False, path_type=Path), help="Write the report to this file, as a page."
)
def report_command(invocation: Invocation, run: str, page: Path | None) -> None:
    """Show the report of a burn-in, with --json all of it. RUN is an id or its beginning, a file, or latest."""
    document = _report(invocation, run)
    if page is not None:
        with _writing(page):
            page.write_text(render(typed(document, BurninReport)), "utf-8")
        if not invocation.json:
            click.echo(f"written: {page}")
            sys.exit(document["exit_code"])
    _show_report(invocation, document)


def _report(invocation: Invocation, run: str) -> Document:
    """A report of the daemon, or one in a file."""
    invocation.failure = _NOT_JUDGED
    path = Path(run)
    if path.suffix == ".json" or path.is_file():
        return read_file(path)
    return invocation.client().get("burnin/reports", run)


def _show_report(invocation: Invocation, document: Document) -> Never:
    invocation.answer(document, view=lambda _: [clean(summary(typed(document, BurninReport)), keep="\n")])
    sys.exit(document["exit_code"])


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        os.stat(os.path.join(path.parent, ""))  # a bundle is written at the end of its tools, which take minutes
        yield
    except OSError as error:
        raise ConfigError(not_written(path, error), code="unwritable") from None


@burnin_command.command("compare")
@click.argument("reports", metavar="REPORT…", nargs=-1, required=True)
def compare_command(invocation: Invocation, reports: tuple[str, ...]) -> None:
    """Compare GPUs of one kind over several reports. REPORT is a file of another host, or a run of this one.

    GPUs in one hot chassis are all slow together; only other hosts and earlier runs show it.
    """
    compared = compare([typed(_report(invocation, name), BurninReport) for name in reports])
    invocation.answer(msgspec.to_builtins(compared), view=lambda _: [clean(comparison(compared), keep="\n")])
    sys.exit(compared.exit_code)


@burnin_command.command("bundle")
@click.argument("gpu", metavar="GPU", shell_complete=completion.gpus)
@click.option("--run", default="latest", show_default=True, help="The id of the burn-in, or the file of a report.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The archive; default: a name made of run and GPU.",
)
@click.option("--no-diagnostics", is_flag=True, help="Leave out nvidia-bug-report.sh and dcgmi, which take minutes.")
def bundle_command(invocation: Invocation, gpu: str, run: str, output: Path | None, no_diagnostics: bool) -> None:
    """Make one archive about a GPU for its vendor. GPU is an index, a UUID or a serial number.

    Only root can gather everything for it. Meanwhile the GPU is freed. No prompt, user or job name is in it.
    """
    report = typed(_report(invocation, run), BurninReport)
    found = bundle.find_gpu(report, gpu)
    target = output or Path(f"burnin-{report.run}-gpu{called(found).replace('/', '-')}.tar.gz")
    say = (lambda text: None) if invocation.json else (lambda text: click.echo(f"{text} …", err=True))
    free = partial(_freed, invocation, found.uuid)
    with _writing(target):
        tools = bundle.write(report, found, target, diagnose=not no_diagnostics, free=free, say=say)
    archive = str(target.absolute())
    document = {"archive": archive, "gpu": found.uuid, "run": report.run, "tools": msgspec.to_builtins(tools)}
    invocation.answer(document, *(f"{tool.tool}: {tool.outcome}" for tool in tools), f"written: {archive}")


@contextlib.contextmanager
def _freed(invocation: Invocation, uuid: str) -> Iterator[None]:
    """Nobody works on a GPU and no model is on it; without a daemon, or on another host, it is taken as it is."""
    client = invocation.client()
    try:
        client.post("gpus", uuid, "lend", for_s=_LENT_S)
    except (DaemonDownError, NotFoundError):
        yield
        return
    try:
        deadline_s = time.monotonic() + _FREE_S
        while time.monotonic() < deadline_s:
            servers = [s for s in client.get("servers")["servers"] if s["gpu"] and s["gpu"]["uuid"] == uuid]
            if not any(server["in_flight"] or server["loaded"] for server in servers):
                break
            time.sleep(_LOOK_S / 4)
        yield
    finally:
        client.post("gpus", uuid, "take-back")
