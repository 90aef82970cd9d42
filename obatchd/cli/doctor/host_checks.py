"""The checks of ``obatchctl doctor`` on the host: driver, Ollama, ports, clock."""

from __future__ import annotations

import errno
import http.client
import json
import os
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import obatchd
from obatchd.burnin.report.diagnostics import run
from obatchd.cli.doctor.result import CheckResult, bad, ok, warn
from obatchd.cli.views.text import size
from obatchd.settings.settings import Settings
from obatchd.words import counted

_COMMAND_TIMEOUT_S = 15.0
_CONNECT_TIMEOUT_S = 1.0
_OLLAMA_PORT = 11434
_PCI = Path("/sys/bus/pci/devices")
_AMD = "0x1002"
_DISPLAYS, _ACCELERATORS = "0x03", "0x12"  # classes of pci.ids


def driver(settings: Settings) -> CheckResult:
    """The NVIDIA driver and its GPUs, by NVML."""
    use = settings.gpus.use
    if isinstance(use, str) and use != "all":
        return ok("gpus", f"gpus = {use}: the driver is not needed")
    output = _run([sys.executable, "-P", "-m", "obatchd.cli.doctor.nvml_report"])
    work = "joined hosts do the work" if settings.cluster.door is not None else ""
    if output is None:
        return bad("gpus", f"the driver does not answer within {_COMMAND_TIMEOUT_S:.0f} s", "sudo dmesg | grep -i nvrm")
    try:
        report = json.loads(output)
    except ValueError:
        said = (output.strip() or "without a word").splitlines()[-1]
        if re.match("(ModuleNotFound|Import)Error", said):
            text = f"obatchd's installation is incomplete, so the driver cannot be asked ({said}): install it again"
            return bad("gpus", text, f"{sys.executable} -P -m obatchd.cli.doctor.nvml_report")
        report = {"error": f"NVML cannot be asked: its process ended, {said}"}
    if "error" in report:
        found = f"no usable NVIDIA driver ({report['error']})"
        return ok("gpus", f"{found}: {work}") if work else _without_nvidia(found)
    if not report["gpus"]:
        return warn("gpus", f"driver {report['driver']}, but no GPU", "lspci | grep -i nvidia")
    names = ", ".join(sorted(set(report["gpus"])))
    return ok("gpus", f"driver {report['driver']}, {counted(len(report['gpus']), 'GPU')}: {names}")


def _without_nvidia(found: str) -> CheckResult:
    """Where the work goes; an AMD GPU is used through an Ollama that somebody else starts."""
    count = sum(map(_is_amd_gpu, _PCI.glob("*")))
    if not count:
        look = "nvidia-smi" if shutil.which("nvidia-smi") else "lspci | grep -i nvidia"
        return warn("gpus", f"{found}: work goes to the CPU or to remote servers", look)
    text = (
        f"{counted(count, 'AMD GPU')}, but {found}. obatchd starts servers on NVIDIA GPUs only, and "
        "would work on the CPU. Start an Ollama of your own on each AMD GPU, and name it in the configuration: "
        '[ollama_instances] "127.0.0.1:11501" = -1'
    )
    return warn("gpus", text, "ROCR_VISIBLE_DEVICES=0 OLLAMA_HOST=127.0.0.1:11501 ollama serve")


def _is_amd_gpu(device: Path) -> bool:
    with suppress(OSError):
        kind = (device / "class").read_text()
        return kind.startswith((_DISPLAYS, _ACCELERATORS)) and (device / "vendor").read_text().strip() == _AMD
    return False


def ollama(settings: Settings, status: dict[str, Any] | None = None) -> CheckResult:
    """The ollama binary and its version; of servers that others start, how many answer, by the daemon's ``status``."""
    remote = [server for server in (status or {}).get("servers", ()) if server["kind"] == "remote"]
    if status and remote:
        answer = sum(server["state"] in ("ready", "draining") for server in remote)
        text = f"{answer} of {counted(len(remote), 'remote server')} {'answers' if answer == 1 else 'answer'}"
        text += "; Ollama need not be installed on this host" if settings.gpus.use == "none" else ""
        if answer == len(remote):
            return ok("ollama", text)
        return warn("ollama", text, f"obatchctl --spool {status['spool']} status")
    if settings.ollama_instances:
        text = counted(len(settings.ollama_instances), "remote server")
        return ok("ollama", f"{text}; Ollama need not be installed on this host")
    if settings.servers.ollama == "simulator" or str(settings.gpus.use).startswith("simulated:"):
        return ok("ollama", "stand-ins answer: Ollama need not be installed on this host")
    binary = shutil.which(settings.servers.ollama)
    if binary is None and settings.cluster.door is not None:
        return ok("ollama", "not installed on this host: joined hosts have theirs")
    if binary is None:
        text = f"there is no program {settings.servers.ollama}; install Ollama (https://ollama.com/download/linux)"
        return bad("ollama", text + ", or set servers.ollama to its path", "which ollama")
    # It asks a running server first; port 1 makes sure that there is none, so it tells its own version.
    variables = {"OLLAMA_HOST": "127.0.0.1:1", "HOME": os.environ.get("HOME") or tempfile.gettempdir()}
    output = _run([binary, "--version"], variables) or ""
    version = re.search(r"\d+\.\d+\.\d+\S*", output)
    if version is None:
        return bad("ollama", f"{binary} does not tell its version", f"{binary} --version")
    return ok("ollama", f"{version[0]} at {binary}")


def ports(settings: Settings, status: dict[str, Any] | None, *, runs: bool = False) -> CheckResult:
    """Whether the servers' ports are free, or in use by those of the running daemon, which has this ``status``.

    A daemon that ``runs`` and has none does not talk to the caller.
    """
    listen, base = settings.servers.listen, settings.servers.base_port
    if settings.ollama_instances and settings.gpus.use == "none":
        return ok("ports", "no server is started here")
    if _port_fault(listen, 0) == errno.EADDRNOTAVAIL:
        text = f"servers.listen = {listen} is no address of this host: no server can start"
        return bad("ports", text, "ip -brief address")
    if status is not None:
        servers = [each for each in status["servers"] if each["kind"] == "managed" and not each.get("host")]
        held = [port for server in servers if (port := urlsplit(server["url"]).port) and _port_fault(listen, port)]
        used = (
            f"the daemon's servers use {', '.join(map(str, sorted(held)))}"
            if held
            else "no server of the daemon uses one now"
        )
        return ok("ports", used)
    if not base:
        return ok("ports", "free ones are picked")
    wanted = range(base, base + 8)
    taken = [port for port in wanted if _port_fault(listen, port)]
    if taken and runs:
        return ok("ports", f"used by obatchd, which runs: {', '.join(map(str, taken))}")
    if taken:
        text = f"in use already: {', '.join(map(str, taken))}; set servers.base_port to others"
        return warn("ports", text, f"ss -ltnp sport = :{taken[0]}")
    return ok("ports", f"{wanted.start} to {wanted.stop - 1} are free")


def http_door(settings: Settings, status: dict[str, Any] | None, *, runs: bool = False) -> CheckResult:
    """Whether programs reach the API over HTTP where the settings say; arguments as of :func:`ports`."""
    address = settings.http.address(service=settings.access.mode == "service")
    if address is None:
        return ok("http", "programs reach the API on a socket only (listen in [http])")
    if status is not None and (door := status.get("http")) is not None:
        if door["problem"]:
            return warn("http", door["problem"], f"ss -ltnp sport = :{address.port}")
    elif not runs and (fault := _port_fault(address.host, address.port)):
        text = f"programs could not reach the API over HTTP: {address}: {os.strerror(fault)}"
        return warn("http", text, f"ss -ltnp sport = :{address.port}")
    if not address.is_loopback and not settings.http.tls_certificate:
        text = f"other hosts reach {address} without TLS (insecure = true): keys and prompts can be read on the way"
        return warn("http", text, "obatchctl config show http")
    if owner := settings.http.keyless_owner:
        text = f"every user and program of this host acts as {owner} at {address} (keyless_owner in [http])"
        return warn("http", text, "obatchctl config show http")
    return ok("http", f"programs reach the API at {address}{', with TLS' if settings.http.tls_certificate else ''}")


def foreign_ollama() -> CheckResult:
    """An Ollama of somebody else on the usual port, which shares the GPUs with ours."""
    version = _get_json(_OLLAMA_PORT, "/api/version")
    if version is None:
        return ok("others", f"no other Ollama on port {_OLLAMA_PORT}")
    loaded = (_get_json(_OLLAMA_PORT, "/api/ps") or {}).get("models") or []
    used_bytes = sum(model.get("size_vram", 0) for model in loaded)
    text = f"another Ollama {version.get('version', '')} runs on port {_OLLAMA_PORT}"
    if used_bytes:
        return warn("others", f"{text} and holds {size(used_bytes)} of GPU memory", "sudo systemctl stop ollama")
    return warn("others", f"{text}; a model it loads takes memory from our servers", "systemctl status ollama")


def clock() -> CheckResult:
    """Whether the clock can be right: job ids and results carry its time."""
    installed_s = Path(obatchd.__file__).stat().st_mtime
    if time.time() < installed_s:
        return bad("clock", "it is earlier than when obatchd was installed", "timedatectl")
    if (_run(["timedatectl", "show", "--property=NTPSynchronized", "--value"]) or "").strip() == "no":
        return warn("clock", "plausible, but not synchronised", "timedatectl set-ntp true")
    return ok("clock", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))


def _run(command: list[str], environment: Mapping[str, str] | None = None) -> str | None:
    """The output of a command, empty where it cannot be started; ``None`` when it does not end in time."""
    ran = run(command[0], command, _COMMAND_TIMEOUT_S, environment=environment)
    return None if ran.overdue else ran.output.decode("utf-8", "replace")


def _port_fault(address: str, port: int) -> int:
    """The ``errno`` with which the kernel refuses a port to a server; 0 where it is free."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: TIME_WAIT does not count
        try:
            probe.bind((address, port))
        except OSError as error:
            return error.errno or errno.EADDRNOTAVAIL  # a name that nobody knows has none
    return 0


def _get_json(port: int, path: str) -> dict[str, Any] | None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_CONNECT_TIMEOUT_S)
    with suppress(OSError, http.client.HTTPException, ValueError), closing(connection):
        connection.request("GET", path)
        document = json.loads(connection.getresponse().read(1024**2))
        return document if isinstance(document, dict) else None
    return None
