"""Reads the whole daemon at one moment, for the registry of ``prometheus_client``.

Imported at the first scrape, and with it the library: most daemons are never asked.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Metric, ProcessCollector, generate_latest
from prometheus_client.registry import Collector as LibraryCollector

from obatchd.metrics.gpus import of_card, read_gpus
from obatchd.metrics.host import read_host, read_jobs
from obatchd.metrics.joined import read_joined
from obatchd.metrics.servers import read_people, read_servers
from obatchd.metrics.sheet import NONE, Sheet
from obatchd.metrics.sources import Sources

_VERDICTS = ("PASS", "PASS_LOW_STRESS", "FAIL", "INCONCLUSIVE")


class Collector(LibraryCollector):
    """Reads ``sources`` whenever it is asked; keeps nothing."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def collect(self) -> Iterable[Metric]:
        return self.look().metrics()

    def look(self) -> Sheet:
        """All samples of this moment."""
        sources, sheet = self._sources, Sheet()
        engine = sources.engine
        held_up = read_jobs(sheet, engine, owners=engine.settings.value.metrics.owners)
        read_host(sheet, engine, sources.host.state(held_up=bool(held_up)), sources.host.started_s)
        for (method, route, status), count in sources.http_calls.items():
            labels = NONE.and_("method", method).and_("route", route).and_("status", str(status))
            sheet.put("obatch_http_requests_total", count, labels)
        read_servers(sheet, sources.policy.fleet.all.values(), engine.dispatcher)
        read_people(sheet, engine.dispatcher.desk)
        read_gpus(sheet, sources.policy, sources.xids)
        read_joined(sheet, sources.joined.values())
        self._read_burnin(sheet)
        return sheet

    def _read_burnin(self, sheet: Sheet) -> None:
        run, ended = self._sources.burnin.brief(), self._sources.burnin.ended
        sheet.put("obatch_burnin_running", float(run is not None))
        sheet.put("obatch_burnin_elapsed_seconds", run.elapsed_s if run is not None else None)
        if ended is None:
            return
        sheet.put("obatch_burnin_finished_timestamp_seconds", ended.at_s)
        tracks = self._sources.policy.monitor.tracks
        for uuid, verdict in ended.verdicts.items():
            index = tracks[uuid].identity.index if uuid in tracks else None
            labels = of_card(uuid, index)
            sheet.one_of("obatch_burnin_verdict", verdict, _VERDICTS, "verdict", labels)


class Registry:
    """What a scrape is made of."""

    def __init__(self, sources: Sources) -> None:
        self._collector = Collector(sources)
        self._process = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._process)

    def text(self, *, process: bool) -> bytes:
        """All in Prometheus' text format; ``process``: also those of any process, such as its memory."""
        return self._collector.look().written() + (generate_latest(self._process) if process else b"")
