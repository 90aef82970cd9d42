"""``[metrics]``: numbers for Prometheus."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from obatchd.settings.base import Live, Positive, Section, setting


def _prom_file(path: str) -> str:
    if path and not (Path(path).is_absolute() and path.endswith(".prom")):
        raise ValueError("must be a path that begins with / and ends with .prom, because node_exporter reads no other")
    return path


class MetricsSettings(Section):
    """Numbers for Prometheus: GET /metrics of the API over HTTP, obatchctl metrics, and a file for node_exporter."""

    open: Live[bool] = setting(
        False,
        "Programs on this host read /metrics without a key. Every user of the host is then told what the GPUs, servers "
        "and queue do; no prompt, name or job is in it.",
    )
    textfile: Live[Annotated[str, AfterValidator(_prom_file)]] = setting(
        "",
        "The file to which obatchd writes the metrics again and again, for the textfile collector of node_exporter; "
        "its name ends with .prom. Empty: none.",
    )
    textfile_s: Live[Positive] = setting(15, "How often obatchd writes the file.")
    owners: Live[bool] = setting(
        False, "The metrics have the jobs and requests in work of each owner, by uid, of 100 owners at most."
    )
