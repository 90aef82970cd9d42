"""``obatchctl gpus``."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator
from typing import Any

import click

from obatchd.cli import exit_codes
from obatchd.cli.command import Document, Group, Invocation, Span, clean
from obatchd.cli.commands.completion import gpus
from obatchd.cli.views.history import VALUES, history, steps_shown
from obatchd.cli.views.text import NOTHING, gpu_name, number, size, table, wrapped

_HEADINGS = (
    ">#", "HEALTH", "?~NAME", "?=SERVER", ">TEMP", ">POWER", ">UTIL", ">MEMORY GiB", "?SERIAL", "?SLOT", "~~REASON",
)  # fmt: skip
# Facts that a card tells about itself: label, field, unit.
_IDENTITY = (
    ("index", "index", ""), ("bus address", "pci_bus_id", ""), ("slot", "slot", ""), ("serial number", "serial", ""),
    ("board part number", "board_part_number", ""), ("VBIOS", "vbios", ""), ("InfoROM", "inforom", ""),
    ("driver", "driver", ""), ("CUDA", "cuda", ""), ("GSP firmware", "gsp_firmware", ""),
    ("memory", "memory_bytes", "bytes"), ("ECC", "ecc", ""), ("ECC after a reset", "ecc_pending", ""),
    ("MIG", "mig", ""), ("persistence mode", "persistence", ""), ("default power limit", "power_default_w", "W"),
    ("temperature limit", "temp_max_c", "°C"), ("slows down at", "temp_slowdown_c", "°C"),
    ("turns itself off at", "temp_shutdown_c", "°C"), ("memory temperature limit", "memory_temp_max_c", "°C"),
    ("highest clock", "clock_max_mhz", "MHz"), ("PCIe generation", "pcie_gen_max", ""),
    ("PCIe lanes", "pcie_width_max", ""),
)  # fmt: skip
_BY = {"rules": "obatchd", "administrator": "an administrator"}  # who puts a GPU into quarantine
gpus_command = Group("gpus", "See the health of the GPUs, take one out of use, lend one.", lists=True)
_one_gpu = click.argument("gpu", metavar="GPU", shell_complete=gpus)


@gpus_command.command("list")
def list_command(invocation: Invocation) -> None:
    """List the GPUs with their health. Exit code 1 when one needs somebody's attention."""
    document = invocation.client().get("gpus")
    invocation.answer(document, view=_overview)
    if any(gpu["health"] in ("quarantine", "unknown") for gpu in document["gpus"]) or _has_trouble(document):
        raise click.exceptions.Exit(exit_codes.FAILED)


def _has_trouble(document: Document) -> bool:
    """Whether the driver of a whole machine has."""
    return any(probe["host"] for probe in (document, *(document.get("hosts") or ())))


def _overview(document: Document) -> list[str]:
    hosts = document.get("hosts") or []
    headings = ("=GPU" if hosts else _HEADINGS[0], *_HEADINGS[1:])
    lines = table(headings, map(_row, document["gpus"])) if document["gpus"] else ["obatchd knows no GPU here"]
    own = [gpu for gpu in document["gpus"] if not gpu.get("host")]
    if own or document["state"] == "unknown" or not hosts:  # else nobody misses a GPU on this machine
        lines += _trouble(document, bool(own), "")
    for host in hosts:
        if host["here"]:
            lines += _trouble(host, any(gpu.get("host") == host["name"] for gpu in document["gpus"]), host["name"])
        else:
            lines += ["", click.style(clean(f"host {host['name']} is away: {host['reason']}"), fg="red")]
    for gpu in document["gpus"]:
        name = gpu_name(gpu)
        if gpu["action"] and gpu["health"] != "ok":
            lines += ["", f"What to do about GPU {name}:", *_wrapped(gpu["action"])]
        if gpu["quarantine"]:
            lines += ["", f"When GPU {name} is well again:  obatchctl gpus release {name}"]
    return lines


def _trouble(probe: Document, has_gpus: bool, host: str) -> Iterator[str]:
    """What is wrong with the GPUs of a whole machine; ``host``: its name, empty for this one."""
    of = f"host {host}: " if host else ""
    if probe["state"] != "ok":
        yield from ["", click.style(clean(of + probe["message"]), fg="red")]
    if probe["host"]:
        yield from ["", click.style(clean(of + probe["host"]["message"]), fg="red")]
    if has_gpus and not probe["kernel_log"]["source"]:
        problem = clean(probe["kernel_log"]["problem"])
        yield from ["", f"{of}The kernel log cannot be read, so some XIDs go unseen: {problem}"]


def _row(gpu: Document) -> list[object]:
    used, total = gpu["memory_used_bytes"], gpu["memory_total_bytes"]
    reason = gpu["reason"] or gpu["shared_with"]
    if gpu["lent_until"]:
        reason = f"lent until {_time(gpu['lent_until'])}"
    memory = "/".join(NOTHING if value is None else f"{value / 1024**3:.1f}" for value in (used, total))
    return [
        gpu_name(gpu), gpu["health"], gpu["name"].removeprefix("NVIDIA "), " ".join(gpu["servers"]) or NOTHING,
        number(gpu["temp_c"], " °C"), number(gpu["power_w"], " W"),
        "asleep" if gpu.get("asleep") else number(gpu["utilisation_percent"], " %"),
        memory, gpu["serial"] or NOTHING, gpu["slot"], reason,
    ]  # fmt: skip


@gpus_command.command("show")
@_one_gpu
def show_command(invocation: Invocation, gpu: str) -> None:
    """Show identity, findings and last events of one GPU.

    GPU is an index, a UUID or a serial number; on a joined host node07/0.
    """
    invocation.answer(invocation.client().get("gpus", gpu), view=_page)


def _page(gpu: Document) -> list[str]:
    lines = [click.style(f"{clean(gpu['name'])}  {gpu['uuid']}", bold=True), f"health: {gpu['health']}"]
    if (quarantine := gpu["quarantine"]) is not None:
        since = _time(quarantine["since"])
        lines.append(
            f"in quarantine since {since}, by {_BY.get(quarantine['by'], quarantine['by'])}: {clean(gpu['reason'])}"
        )
    if gpu["lent_until"]:
        lines.append(f"lent until {_time(gpu['lent_until'])}")
    if gpu.get("shares_unknown"):
        back = f"obatchctl gpus share {gpu_name(gpu)} --back ends that"
        lines.append(f"models are loaded beside processes of others whose memory is unknown; {back}")
    if gpu["shared_with"]:
        lines.append(clean(gpu["shared_with"]))
    identity = [(label, gpu["identity"][key], unit) for label, key, unit in _IDENTITY]
    told = [f"  {label:<26}{_fact(value, unit)}" for label, value, unit in identity if value not in ("", None)]
    lines += ["", "Identity", *told]
    lines += ["", f"Findings since {_time(gpu['watched_since'])}"]
    for finding in gpu["findings"]:
        lines += _finding_lines(finding)
    if not gpu["findings"]:
        lines.append("  none")
    if gpu["action"]:
        lines += ["", "What to do", *_wrapped(gpu["action"])]
    events = [line for event in gpu["events"] for line in _event_lines(event)]
    return [*lines, "", "Last events", *(events or ["  none"])]


def _called(gpu: Document) -> str:
    """A GPU as people name it; one without an index, as an older daemon may tell it, by its UUID."""
    return f"GPU {gpu['uuid'] if gpu.get('index') is None else gpu_name(gpu)}"


def _fact(value: Any, unit: str) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if unit == "bytes":
        return size(value)
    return f"{value:g} {unit}" if unit else clean(value)


def _finding_lines(finding: Document) -> list[str]:
    since = f", since {_time(finding['since'])}" if finding["since"] else ""
    return wrapped(f"{finding['text']} ({finding['signal']}{since})", f"  {finding['level']:<11}")


def _event_lines(event: Document) -> list[str]:
    on = f" of {event['host']}" if event.get("host") else ""
    where = f"{event['serial'] or event['uuid']} in slot {event['slot'] or '?'}{on}"
    return wrapped(f"{where}  {event['text']}", f"  {_time(event['at'])}  {event['kind']:<11}")


def _time(instant: str) -> str:
    """A time without fractions of a second."""
    return instant.partition(".")[0].rstrip("Z") + "Z"


def _wrapped(text: str) -> list[str]:
    width = min(shutil.get_terminal_size().columns, 120)
    return textwrap.wrap(clean(text), width, initial_indent="  ", subsequent_indent="  ", break_long_words=False)


@gpus_command.command("events")
@click.argument("gpu", metavar="[GPU]", required=False, shell_complete=gpus)
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 10_000), help="How many at most.")
def events_command(invocation: Invocation, gpu: str | None, limit: int) -> None:
    """Show what happened to the GPUs, oldest first. Serial number and slot tell whether an error follows the card."""
    document = invocation.client().get("gpu-events", limit=limit, gpu=gpu or None)
    lines = [line for event in document["events"] for line in _event_lines(event)]
    invocation.answer(document, view=lambda _: lines or ["no events"])


@gpus_command.command("history")
@click.argument("gpu", metavar="[GPU]", required=False, shell_complete=gpus)
@click.option(
    "--span", default="24h", show_default=True, type=Span(600.0), metavar="TIME", help="How far back; to 90d."
)
@click.option("--value", type=click.Choice([*VALUES]), help="Only this; default: of many GPUs utilisation, of one all.")
def history_command(invocation: Invocation, gpu: str | None, span: float, value: str | None) -> None:
    """Show how the GPUs and their work were over time.

    Minutes are kept for two days, hours for 90 days; a gap is a time without readings.
    """
    wanted: dict[str, Any] = {"span": f"{span:.0f}s", "points": steps_shown(invocation)}
    client = invocation.client()
    document, work = client.get("gpu-history", gpu=gpu or None, **wanted), client.get("work-history", **wanted)
    shown = [value] if value else [*VALUES] if len(document["gpus"]) == 1 else ["utilisation"]
    told = {**document, "work": {name: work[name] for name in ("host", "servers")}}
    invocation.answer(told, view=lambda _: history(document, work, shown))


@gpus_command.command("quarantine")
@_one_gpu
@click.option("--reason", default="", help="The reason, which is shown with the GPU.")
def quarantine_command(invocation: Invocation, gpu: str, reason: str) -> None:
    """Take a GPU out of use: its requests move to others. Holds over restarts, until release."""
    document = invocation.client().post("gpus", gpu, "quarantine", reason=reason)
    invocation.answer(document, f"{_called(document)}: in quarantine")


@gpus_command.command("release")
@_one_gpu
def release_command(invocation: Invocation, gpu: str) -> None:
    """End a quarantine, or clear a warning that you know.

    Errors count from now on. obatchd forgets a GPU that is gone.
    """
    client = invocation.client()
    document = client.post("gpus", gpu, "release")
    lines = [f"{_called(document)}: {'forgotten' if document['forgotten'] else 'released'}"]
    if document["accepted"]:
        texts = {finding["signal"]: finding["text"] for finding in client.get("gpus", document["uuid"])["findings"]}
        known = ", ".join(clean(texts.get(signal, signal)) for signal in document["accepted"])
        lines.append(f"obatchd only warns about these from now on: {known}")
    invocation.answer(document, *lines)


@gpus_command.command("lend")
@_one_gpu
@click.option("--for", "for_s", type=Span(), metavar="TIME", help="How long, e.g. 90m, 3h, 2d.")
@click.option("--back", is_flag=True, help="Take the GPU back now.")
def lend_command(invocation: Invocation, gpu: str, for_s: float | None, back: bool) -> None:
    """Free a GPU for somebody else, for a time. Its work ends, its memory is freed, and it comes back by itself."""
    if back == (for_s is not None):
        raise click.UsageError("give --for TIME to lend it, or --back to take it back")
    document = invocation.client().post("gpus", gpu, "take-back" if back else "lend", for_s=for_s)
    words = "taken back" if back else f"lent until {_time(document['lent_until'])}"
    invocation.answer(document, f"{_called(document)}: {words}")


@gpus_command.command("share")
@_one_gpu
@click.option("--back", is_flag=True, help="End that.")
def share_command(invocation: Invocation, gpu: str, back: bool) -> None:
    """Load models beside others' processes whose memory is unknown.

    It is unknown where the driver does not tell it (WSL, vGPU, MIG). Processes whose memory it tells still count, see
    gpus.shared_bytes. Holds over restarts, until --back.
    """
    document = invocation.client().post("gpus", gpu, "unshare" if back else "share")
    words = "keep models away again" if back else "keep no model away any more"
    invocation.answer(document, f"{_called(document)}: processes of others whose memory is unknown {words}")
