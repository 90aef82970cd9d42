"""Which machine this is, for the report and the vendor: facts from firmware and kernel, nothing about people."""

from __future__ import annotations

import contextlib
import platform
import socket
from pathlib import Path

from obatchd.documents.burnin.plan import Host

_DMI = Path("/sys/class/dmi/id")
_DRIVER = Path("/proc/driver/nvidia/version")
_FIELDS = {
    "vendor": "sys_vendor",
    "product": "product_name",
    "serial": "product_serial",
    "asset_tag": "chassis_asset_tag",
    "chassis_serial": "chassis_serial",
    "bios": "bios_version",
    "bios_date": "bios_date",
    "board": "board_name",
}
_PLACEHOLDERS = frozenset(
    {"", "none", "default string", "to be filled by o.e.m.", "not specified", "system serial number"}
)


def describe(dmi: Path = _DMI) -> Host:
    """Host name, machine, BIOS, kernel and driver, as far as they are told; serial numbers only root may read."""
    told = {name: text for name, file in _FIELDS.items() if (text := _text(dmi / file)).lower() not in _PLACEHOLDERS}
    system = ""
    with contextlib.suppress(OSError):
        system = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    return Host(
        hostname=socket.gethostname(),
        machine=" ".join(told[name] for name in ("vendor", "product") if name in told),
        dmi=told,
        kernel=platform.release(),
        system=system,
        driver_module=_text(_DRIVER).partition("\n")[0],
    )


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return ""
