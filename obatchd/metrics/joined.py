"""Reads joined hosts and their GPUs, as far as these tell of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from msgspec import UNSET

from obatchd.cluster.head.gpus import cards_of
from obatchd.cluster.head.joined import JoinedHost
from obatchd.documents.gpus import GpuEntry, Reading
from obatchd.metrics.gpus import LEVELS, read_reading
from obatchd.metrics.sheet import NONE, Labels, Sheet

_STATES = ("here", "away", "draining", "leaving")


def read_joined(sheet: Sheet, hosts: Iterable[JoinedHost]) -> None:
    states: Counter[str] = Counter()
    for host in hosts:
        states[host.state] += 1
        labels, here = NONE.and_("host", host.name), host.session is not None
        sheet.put("obatch_host_up", float(here), labels)
        sheet.put("obatch_host_clock_ahead_seconds", host.skew_s if here else None, labels)
        readings = {reading.uuid: reading for reading in host.news.readings} if host.news is not None and here else {}
        for card in cards_of(host):
            _read_card(sheet, card, readings.get(card.uuid), here=here)
    if states:
        sheet.counts("obatch_hosts", {state: states[state] for state in _STATES}, "state")


def _read_card(sheet: Sheet, card: GpuEntry, reading: Reading | None, *, here: bool) -> None:
    labels = _labels(card)
    told = labels.and_("name", card.name).and_("serial", card.serial).and_("slot", card.slot)
    sheet.put("obatch_gpu_info", 1, told.and_("driver", ""))
    sheet.one_of("obatch_gpu_health", card.health, LEVELS, "level", labels)
    sheet.put("obatch_gpu_lent", float(card.lent_until is not None), labels)
    if not here:
        return
    sheet.put("obatch_gpu_asleep", float(card.asleep is True), labels)
    if reading is not None and card.asleep is UNSET:
        sheet.put("obatch_gpu_up", float(reading.trouble != "lost"), labels)
        read_reading(sheet, reading, labels)
        sheet.put("obatch_gpu_energy_joules_total", reading.energy_j, labels)


def _labels(card: GpuEntry) -> Labels:
    return NONE.and_("gpu", f"{card.host}/{card.index}").and_("uuid", card.uuid)
