"""Reads servers, their work, and requests of people."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import UNSET

from obatchd.counters import Histogram, ModelWork
from obatchd.dispatch.dispatcher import Dispatcher
from obatchd.dispatch.interactive.desk import Desk
from obatchd.dispatch.link import Link
from obatchd.metrics.sheet import NONE, Labels, Sheet
from obatchd.servers.server import ServerFace
from obatchd.servers.states import ServerState

_STATES = tuple(state.value for state in ServerState)
_OUTCOMES = ("succeeded", "failed", "abandoned")
_TIMES = ("request", "first_token", "queue", "load")


def read_servers(sheet: Sheet, servers: Iterable[ServerFace], dispatcher: Dispatcher) -> None:
    times: dict[tuple[str, str], Histogram] = {}  # by what was measured and model
    for server in servers:
        labels = NONE.and_("server", server.id)
        sheet.one_of("obatch_server_state", server.state.value, _STATES, "state", labels)
        sheet.put("obatch_server_slots", server.slots, labels)
        sheet.put("obatch_server_restarts_total", server.restarts, labels)
        if (loaded := server.loaded) is not None:
            known = labels.and_("model", loaded.model).and_("context_length", str(loaded.context_length))
            sheet.put("obatch_server_model_info", 1, known)
        if (link := dispatcher.links.get(server.id)) is not None:
            _read_link(sheet, link, labels, times)
    for (what, model), found in times.items():
        sheet.histogram(f"obatch_{what}_seconds", found, NONE.and_("model", model))


def _read_link(sheet: Sheet, link: Link, labels: Labels, times: dict[tuple[str, str], Histogram]) -> None:
    sheet.put("obatch_server_requests_in_flight", link.started, labels)
    sheet.put("obatch_server_families_in_flight", link.families, labels)
    sheet.put("obatch_server_requests_total", link.requests_done, labels)
    sheet.counts("obatch_server_watchdog_findings_total", link.watchdog, "finding", labels)
    for (kind, code), count in link.faults.items():
        sheet.put("obatch_attempts_failed_total", count, labels.and_("kind", kind).and_("code", code))
    link.work.fold()
    for model, work in link.work.items():
        of_model = labels.and_("model", model)
        sheet.put("obatch_prompt_tokens_total", work.prompt_tokens, of_model)
        sheet.put("obatch_response_tokens_total", work.response_tokens, of_model)
        _add_times(times, model, work)


def _add_times(times: dict[tuple[str, str], Histogram], model: str, work: ModelWork) -> None:
    for what in _TIMES:
        found: Histogram = getattr(work, what)
        if (what, model) not in times:
            times[what, model] = Histogram(found.bounds)
        times[what, model].merge(found)


def read_people(sheet: Sheet, desk: Desk) -> None:
    state = desk.state()
    waiting, in_flight, reserved = (
        (0, 0, 0) if state is UNSET else (state.waiting, state.in_flight, state.reserved_slots)
    )
    sheet.put("obatch_interactive_requests_waiting", waiting)
    sheet.put("obatch_interactive_requests_in_flight", in_flight)
    sheet.put("obatch_interactive_reserved_slots", reserved)
    ended = {outcome: desk.figures.ended[outcome] for outcome in _OUTCOMES}
    sheet.counts("obatch_interactive_requests_total", ended, "outcome")
    for model, work in desk.figures.work.items():
        sheet.histogram("obatch_interactive_first_token_seconds", work.first_token, NONE.and_("model", model))
