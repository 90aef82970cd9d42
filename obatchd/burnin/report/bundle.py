"""The file for the vendor: everything a return needs about one GPU, in one archive, with checksums.

No prompt, answer, user or job name is in it: the report has none, and the output of tools is looked through.
"""

from __future__ import annotations

import hashlib
import io
import socket
import tarfile
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from obatchd.burnin.report import diagnostics
from obatchd.burnin.report.diagnostics import Ran, Scrubber
from obatchd.burnin.report.figures import called, host_of
from obatchd.burnin.report.html import render
from obatchd.burnin.report.terminal import summary
from obatchd.documents import excerpt
from obatchd.documents.burnin.loads import StressLoads
from obatchd.documents.burnin.report import BurninGpuPages, BurninReason, BurninReport, ToolOutcome
from obatchd.errors import NotFoundError
from obatchd.times import duration, epoch_s
from obatchd.words import counted

_HOUR_S = 3600.0
_SMI_S, _BUG_REPORT_S, _DIAGNOSTICS_S = 60.0, 900.0, 3600.0
_REMAPPING = ("remapped_", "remap_", "retired_", "banks_without_spares")


def find_gpu(report: BurninReport, name: str) -> BurninGpuPages:
    """A GPU of a report by index, UUID (or its beginning) or serial number; of a joined host ``node07/0``.

    Raises NotFoundError where there is none, or an index is that of GPUs of several hosts.
    """
    found = [
        gpu for gpu in report.gpus if name in (called(gpu), gpu.uuid, gpu.identity.serial, gpu.host and gpu.server)
    ]
    found = found or [gpu for gpu in report.gpus if len(name) > 7 and gpu.uuid.startswith(name)]
    if found := found or [gpu for gpu in report.gpus if name == str(gpu.index)]:
        if len(found) == 1 or not found[0].host:
            return found[0]
        hosts = ", ".join(called(gpu) for gpu in found)
        raise NotFoundError(f"several hosts of burn-in {report.run} have a GPU {name}: name one of {hosts}")
    present = ", ".join(f"{called(gpu)} = {gpu.uuid}" for gpu in report.gpus)
    raise NotFoundError(f"GPU {name} is not in the report of burn-in {report.run}; there are: {present}")


def write(
    report: BurninReport,
    gpu: BurninGpuPages,
    target: Path,
    *,
    diagnose: bool,
    free: Callable[[], AbstractContextManager[object]],
    say: Callable[[str], None] = lambda text: None,
) -> list[ToolOutcome]:
    """Write the archive; returns the outcome of each tool.

    Args:
        diagnose: also run tools that take minutes and need the GPU for themselves.
        free: while its context lasts, nobody works on the GPU.
        say: hears of each step.

    Raises:
        OSError: the archive cannot be written.
    """
    files = _of_the_report(report, gpu)
    if (away := _elsewhere(report, gpu)) is not None:
        ran, diagnose = [away], False
    else:
        say("asking nvidia-smi and the kernel log")
        ran = _tools(report, files)
    if diagnose:
        with tempfile.TemporaryDirectory(prefix="obatchd-bundle-") as directory, free():
            ran += _diagnose(gpu, Path(directory), files, say)
    tools = [excerpt(ToolOutcome, one) for one in ran]
    files["tools.json"] = _json(tools)
    files["README.txt"] = readme(report, gpu, tools).encode()
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items()))
    files["SHA256SUMS"] = sums.encode()
    folder = f"burnin-{report.run}-gpu{called(gpu).replace('/', '-')}"
    temporary = target.with_name(f".{target.name}.tmp")
    with tarfile.open(temporary, "w:gz") as archive:
        for name, data in sorted(files.items()):
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size, entry.mtime, entry.mode = len(data), int(time.time()), 0o644
            archive.addfile(entry, io.BytesIO(data))
    temporary.replace(target)
    return tools


def _elsewhere(report: BurninReport, gpu: BurninGpuPages) -> Ran | None:
    """Why no tool is run here: it would tell of the GPUs of another machine."""
    there = host_of(report, gpu).hostname
    if not gpu.host or there == socket.gethostname():
        return None
    command = f"obatchctl burnin bundle {gpu.uuid} --run burnin-{report.run}.json"
    return Ran("all tools", command, f"not run: the GPU is in {gpu.host} ({there}). Copy the report there (report.json "
               "of this archive) and run the command there, as root")  # fmt: skip


def _of_the_report(report: BurninReport, gpu: BurninGpuPages) -> dict[str, bytes]:
    xids = [event for event in gpu.events if event.signal.startswith("xid_") and event.verbatim]
    counters = gpu.counters
    return {
        "report.json": _json(report),
        "report.html": render(report).encode(),
        "gpu.json": _json({key: value for key, value in msgspec.to_builtins(gpu).items() if key != "series"}),
        "host.json": _json(host_of(report, gpu)),
        "xids.txt": "".join(f"{event.at}  {event.verbatim}\n" for event in xids).encode(),
        "counters.json": _json(counters),
        "memory-repair.json": _json({k: v for k, v in counters.items() if k.startswith(_REMAPPING)}),
        **({"wrong.json": _json(gpu.stress_loads.wrong)} if gpu.stress_loads.wrong else {}),
        "pcie.json": _json({k: v for k, v in counters.items() if k.startswith("pcie_")}),
    }


def _tools(report: BurninReport, files: dict[str, bytes]) -> list[Ran]:
    since_s = epoch_s(report.started_at) - _HOUR_S
    until_s = epoch_s(report.ended_at) + _HOUR_S if report.ended_at else time.time()
    ran = [diagnostics.run("nvidia-smi", ["nvidia-smi", "-q", "-x"], _SMI_S), diagnostics.kernel_log(since_s, until_s)]
    for name, one in zip(("nvidia-smi-q.xml", "kernel.log"), ran, strict=True):
        if one.output:
            files[name] = Scrubber().data(one.output)
    return ran


def _diagnose(gpu: BurninGpuPages, directory: Path, files: dict[str, bytes], say: Callable[[str], None]) -> list[Ran]:
    say("running nvidia-bug-report.sh, which may take minutes")
    # Without the slow and the dangerous parts: they are known to hang on a GPU that is in trouble.
    command = ["nvidia-bug-report.sh", "--safe-mode", "--extra-system-data"]
    bug = diagnostics.run("nvidia-bug-report", command, _BUG_REPORT_S, as_root=True, cwd=directory)
    for path in sorted(directory.glob("nvidia-bug-report.log*")):
        files[path.name] = Scrubber().data(path.read_bytes())
    say("running dcgmi diag -r 3, which takes about 15 minutes")
    command = ["dcgmi", "diag", "-r", "3", "-j", "-i", str(gpu.index)]
    diag = diagnostics.run("dcgmi diag", command, _DIAGNOSTICS_S)
    if diag.output:
        files["dcgmi-diag.json"] = Scrubber().data(diag.output)
    return [bug, diag]


def readme(report: BurninReport, gpu: BurninGpuPages, tools: list[ToolOutcome]) -> str:
    """The first page: who it is, what is wrong with it, and how to see that again."""
    identity, host = gpu.identity, host_of(report, gpu)
    failures = [reason for reason in gpu.reasons if reason.consequence == "fail"]
    lines = [
        f"Evidence about one GPU, gathered by obatchd {report.version}",
        "",
        f"GPU            {gpu.name}, UUID {gpu.uuid}",
        f"Serial number  {identity.serial or 'unknown'}",
        f"Board part     {identity.board_part_number or 'unknown'}",
        f"Bus id, slot   {identity.pci_bus_id or '?'}, {identity.slot or 'unknown'}",
        f"VBIOS, InfoROM {identity.vbios or '?'}, {identity.inforom or '?'}",
        f"Driver, CUDA   {identity.driver or '?'}, {identity.cuda or '?'}",
        f"Host           {host.machine or 'machine unknown'}, serial "
        f"{host.dmi.get('serial', 'unknown (root may read it)')}",
        f"Verdict        {gpu.verdict}",
        "",
        "Symptoms, with the criterion each meets:",
        *([f"  * {reason.text}" for reason in failures] or ["  none that fails the burn-in"]),
        "",
        *_wrong(gpu.stress_loads),
        *_reproduction(report, gpu, failures),
        "",
        "Tools:",
        *(f"  {tool.tool}: {tool.outcome}   ({tool.command})" for tool in tools),
        "",
        "The whole run:",
        "",
        summary(report),
        "",
    ]
    return "\n".join(lines)


def _wrong(loads: StressLoads) -> list[str]:
    """Wrong results with their places."""
    if not loads.wrong:
        return []
    lines = [
        f"Wrong results: {loads.wrong_tiles + loads.wrong_words:,}, computed by {loads.library}; "
        f"those told are in wrong.json, the first of them:"
    ]
    lines += [f"  {one.at}  {one.place} ({one.pattern}): {one.found}, not {one.expected}" for one in loads.wrong[:10]]
    return [*lines, ""]


def _reproduction(report: BurninReport, gpu: BurninGpuPages, failures: list[BurninReason]) -> list[str]:
    """How often, how soon, under which load, and the command."""
    command = f"obatchctl burnin start --gpus {gpu.server if gpu.host else gpu.index} --duration {int(report.asked_s)}s"
    if report.plan.phases and not report.plan.with_jobs:
        command += f" --load {','.join(report.plan.loads)}"
    if gpu.load.model:
        command += f" --model {gpu.load.model}"
    lines = ["Reproduction:"]
    moments = [epoch_s(reason.at) for reason in failures if reason.at]
    begin = report.loading_at
    if moments and begin:
        first_s = min(moments)
        count = sum(1 for event in gpu.events if event.consequence == "fail")
        lines.append(f"  seen {counted(count, 'time')} in one run of {duration(report.elapsed_s)}")
        lines.append(f"  first {duration(max(0.0, first_s - epoch_s(begin)))} after the load began")
        lines.append(f"  load then: {_load_at(report, gpu, first_s)}")
    return [*lines, f"  command: {command}"]


def _load_at(report: BurninReport, gpu: BurninGpuPages, at_s: float) -> str:
    place = next((n for n, at in enumerate(report.at) if epoch_s(at) >= at_s), len(report.at) - 1)
    if place < 0:
        return "not recorded"
    units = {"utilisation_percent": "% utilisation", "power_w": "W", "temp_c": "°C", "clock_mhz": "MHz"}
    told = ((getattr(gpu.series, name)[place], unit) for name, unit in units.items())
    known = [f"{value} {unit}" for value, unit in told if value]
    return ", ".join(known) or "not recorded"


def _json(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"
