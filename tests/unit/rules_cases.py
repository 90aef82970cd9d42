"""What Prometheus has seen when each alert of etc/prometheus fires, and when it stays silent.

Series are in the notation of ``promtool test rules``, one sample a minute; times are minutes.
"""

from __future__ import annotations

from typing import NamedTuple

Series = dict[str, str]
HOST = 'instance="h",job="obatchd"'
GPU = f'gpu="3",uuid="GPU-a",{HOST}'
SERVER = f'server="gpu3",{HOST}'


class Case(NamedTuple):
    """``fires`` at the minute ``at``; ``silent`` does not, until then or later."""

    at: int
    fires: Series
    silent: list[Series]


def _queue(queued: str, done: str, **more: str) -> Series:
    found = {
        f"obatch_requests_queued{{{HOST}}}": queued,
        f'obatch_jobs{{state="running",{HOST}}}': "1x200",
        f"obatch_server_requests_total{{{SERVER}}}": done,
        f'obatch_hold{{reason="paused",{HOST}}}': "0x200",
        f'obatch_server_state{{state="ready",{SERVER}}}': "1x200",
        f'obatch_server_state{{state="draining",{SERVER}}}': "0x200",
    }
    return found | more


# In hours that are not obatchd's.
_ALL_DRAIN = {
    f'obatch_server_state{{state="ready",{SERVER}}}': "0x200",
    f'obatch_server_state{{state="draining",{SERVER}}}': "1x200",
}


def _busy(queued: str, in_flight: str, kept: str = "0x200") -> Series:
    """One of two servers has failed."""
    failed = SERVER.replace("gpu3", "gpu4")
    return {
        f"obatch_requests_queued{{{HOST}}}": queued,
        f"obatch_server_requests_in_flight{{{SERVER}}}": in_flight,
        f"obatch_server_requests_in_flight{{{failed}}}": "0x200",
        f"obatch_server_slots{{{SERVER}}}": "8x200",
        f"obatch_server_slots{{{failed}}}": "8x200",
        f'obatch_server_state{{state="ready",{SERVER}}}': "1x200",
        f'obatch_server_state{{state="ready",{failed}}}': "0x200",
        f"obatch_interactive_reserved_slots{{{HOST}}}": kept,
    }


def _waiting(results: str, answers: str = "0+60x200") -> Series:
    return {
        f"obatch_results_waiting{{{HOST}}}": results,
        f"obatch_server_requests_total{{{SERVER}}}": answers,
        f"obatch_server_requests_total{{{SERVER.replace('gpu3', 'gpu4')}}}": "0+0x200",
    }


def _drained(count: str, draining: str) -> Series:
    return {
        f'obatch_server_state{{state="draining",{SERVER}}}': draining,
        f'obatch_server_watchdog_findings_total{{finding="drained",{SERVER}}}': count,
    }


def _failing(failed: str) -> Series:
    return {
        f'obatch_request_failures_total{{code="timeout",{HOST}}}': failed,
        f'obatch_requests_total{{outcome="failed",{HOST}}}': failed,
        f'obatch_requests_total{{outcome="succeeded",{HOST}}}': "0+100x200",
        f'obatch_requests_total{{outcome="cancelled",{HOST}}}': "0+900x200",
    }


def _burnin(verdict: str, finished: str) -> Series:
    return {
        f'obatch_burnin_verdict{{verdict="FAIL",{GPU}}}': verdict,
        f"obatch_burnin_finished_timestamp_seconds{{{HOST}}}": finished,
    }


def _hot(temp: str) -> Series:
    limits = {"max": "85x200", "slowdown": "92x200", "shutdown": "97x200"}
    found = {f'obatch_gpu_temperature_limit_celsius{{limit="{name}",{GPU}}}': text for name, text in limits.items()}
    return found | {f"obatch_gpu_temperature_celsius{{{GPU}}}": temp}


_FILE = 'node_textfile_mtime_seconds{file="/var/lib/node/obatch.prom",instance="h",job="node"}'
_UP = f"up{{{HOST}}}"
_STATES = ("ready", "failed", "starting", "backoff", "draining")


def _server(*at: str) -> Series:
    """A server whose state changes every minute among ``at``."""
    found = {}
    for state in _STATES:
        values = " ".join(str(int(at[minute % len(at)] == state)) for minute in range(60))
        found[f'obatch_server_state{{state="{state}",{SERVER}}}'] = values
    return found


def _on_host(server: str, up: str) -> Series:
    """A server of a joined host that is down; ``up`` says when its host is here."""
    found = {series.replace("gpu3", f"node07.{server}"): values for series, values in _server("backoff").items()}
    return found | {f'obatch_host_up{{{HOST},host="node07"}}': up}


CASES: dict[str, Case] = {
    "ObatchDown": Case(3, {_UP: "1 0x100"}, [{_UP: "1x100"}, {_UP: "1 0 1 0 1x100"}, {'up{job="other"}': "0x100"}]),
    "ObatchAbsent": Case(6, {}, [{f'obatch_build_info{{version="1",{HOST}}}': "1x100"}]),
    "ObatchFileOld": Case(
        4, {_FILE: "0x100"}, [{_FILE: "0+60x100"}, {_FILE.replace("obatch.prom", "other.prom"): "0x100"}]
    ),
    "ObatchDegraded": Case(
        31,
        {f'obatch_state{{state="degraded",{HOST}}}': "1x100"},
        [
            {f'obatch_state{{state="degraded",{HOST}}}': "1x20 0 1x100"},
            {f'obatch_state{{state="paused",{HOST}}}': "1x100", f'obatch_state{{state="degraded",{HOST}}}': "0x100"},
        ],
    ),
    "ObatchHeld": Case(
        6,
        {f'obatch_hold{{reason="store",{HOST}}}': "1x100"},
        [
            {f'obatch_hold{{reason="store",{HOST}}}': "0x100"},
            {f'obatch_hold{{reason="paused",{HOST}}}': "1x100"},
            {f'obatch_hold{{reason="backlog",{HOST}}}': "1 1 1 0 1 1 0x100"},
            {f'obatch_hold{{reason="disk",{HOST}}}': "1x100"},
        ],
    ),
    "ObatchDiskLow": Case(2, {f"obatch_disk_low{{{HOST}}}": "1x100"}, [{f"obatch_disk_low{{{HOST}}}": "0x100"}]),
    "ObatchDiskFillsUp": Case(
        70,
        {f"obatch_disk_free_bytes{{{HOST}}}": "20000-150x120"},
        [{f"obatch_disk_free_bytes{{{HOST}}}": "20000-10x120"}, {f"obatch_disk_free_bytes{{{HOST}}}": "5000x120"}],
    ),
    "ObatchStuck": Case(
        35,
        _queue("10x200", "5x200"),
        [
            _queue("10x200", "0+1x200"),
            _queue("0x200", "5x200"),
            _queue("10x200", "5x200", **{f'obatch_hold{{reason="paused",{HOST}}}': "1x200"}),
            _queue("10x200", "5x200", **{f'obatch_jobs{{state="running",{HOST}}}': "0x200"}),
            _queue("10x200", "5x200", **_ALL_DRAIN),
            _queue("10x200", "5x200", **{f'obatch_hold{{reason="disk",{HOST}}}': "1x200"}),
        ],
    ),
    "ObatchQueueGrows": Case(
        125,
        _busy("100+1x200", "8 7 8 7 8 8 7" + " 8 7" * 80),  # a slot is empty between two answers
        [_busy("1000-1x200", "8x200"), _busy("100+1x200", "4x200"), _busy("0x200", "8x200")],
    ),
    "ObatchFailures": Case(65, _failing("0+10x200"), [_failing("0+1x200"), _failing("500x200")]),
    "ObatchResultsWait": Case(
        25,
        _waiting("100+10x200"),
        [
            _waiting("0+1x60"),
            _waiting("2000-1x200"),
            _waiting("100+10x200", answers="0+60000x200"),  # 28 GPUs with short answers: those of a few commits
        ],
    ),
    "ObatchDropsBlocked": Case(
        11,
        {f'obatch_drops{{state="blocked",{HOST}}}': "2x100"},
        [
            {f'obatch_drops{{state="blocked",{HOST}}}': "2x5 0x100"},
            {f'obatch_drops{{state="settling",{HOST}}}': "2x100"},
        ],
    ),
    "ObatchJobsLate": Case(
        11, {f"obatch_jobs_late{{{HOST}}}": "1x100"}, [{f"obatch_jobs_late{{{HOST}}}": "1x5 0x100"}]
    ),
    "ObatchJobsHeldUp": Case(
        16, {f"obatch_jobs_held_up{{{HOST}}}": "1x100"}, [{f"obatch_jobs_held_up{{{HOST}}}": "1x10 0x100"}]
    ),
    "ObatchServerDown": Case(
        12,
        _server("failed", "starting", "backoff"),
        [
            _server("ready"),
            _server("draining"),
            _server("starting", "starting", "ready"),
            *(_on_host(server, "0x100") for server in ("gpu3", "gpu3.mig1", "group0", "cpu0")),
        ],
    ),
    "ObatchServerDrained": Case(
        16,
        _drained("_x10 1x100", "0x10 1x100"),
        [
            _drained("_x10 1x100", "0x10 1 0x100"),  # resumed
            _drained("0x100", "1x100"),
            _drained("_x100", "1x100"),  # by an administrator
        ],
    ),
    "ObatchServerRestarts": Case(
        62,
        {f"obatch_server_restarts_total{{{SERVER}}}": "0x5 1 2 3 4 5x100"},
        [{f"obatch_server_restarts_total{{{SERVER}}}": "0x5 1 2 3x100"}],
    ),
    "ObatchHostAway": Case(
        6,
        {f'obatch_host_up{{{HOST},host="node07"}}': "0x100"},
        [{f'obatch_host_up{{{HOST},host="node07"}}': values} for values in ("0x3 1x100", "1x100")],
    ),
    "ObatchBlind": Case(3, {f"obatch_probe_up{{{HOST}}}": "0x100"}, [{f"obatch_probe_up{{{HOST}}}": "1x100"}, {}]),
    "ObatchReadingsOld": Case(
        5,
        {f"obatch_gpu_reading_timestamp_seconds{{{GPU}}}": "0x100"},
        [{f"obatch_gpu_reading_timestamp_seconds{{{GPU}}}": "0+60x100"}],
    ),
    "ObatchKernelLogUnread": Case(
        16, {f"obatch_kernel_log_up{{{HOST}}}": "0x100"}, [{f"obatch_kernel_log_up{{{HOST}}}": "1x100"}]
    ),
    "ObatchGpuGone": Case(2, {f"obatch_gpu_up{{{GPU}}}": "0x100"}, [{f"obatch_gpu_up{{{GPU}}}": "1x100"}]),
    "ObatchGpuQuarantined": Case(
        2,
        {f'obatch_gpu_health{{level="quarantine",{GPU}}}': "1x100"},
        [
            {
                f'obatch_gpu_health{{level="quarantine",{GPU}}}': "0x100",
                f'obatch_gpu_health{{level="ok",{GPU}}}': "1x100",
            }
        ],
    ),
    "ObatchGpuWarns": Case(
        16,
        {f'obatch_gpu_health{{level="warn",{GPU}}}': "1x100"},
        [{f'obatch_gpu_health{{level="warn",{GPU}}}': "1x10 0x100"}],
    ),
    "ObatchGpuXid": Case(
        21,
        {f'obatch_gpu_xids_total{{xid="79",{GPU}}}': "_x20 1x100"},  # the first error that the daemon has seen
        [{}, {f'obatch_gpu_xids_total{{xid="79",{GPU}}}': "_x3 1x100"}],  # which is some time ago
    ),
    "ObatchGpuMemoryErrors": Case(
        12,
        {f'obatch_gpu_ecc_errors_total{{type="uncorrected",{GPU}}}': "4x10 5x100"},
        [
            {f'obatch_gpu_ecc_errors_total{{type="uncorrected",{GPU}}}': "4x100"},
            {f'obatch_gpu_ecc_errors_total{{type="corrected",{GPU}}}': "0+5x100"},
        ],
    ),
    "ObatchGpuRemapFailed": Case(
        2, {f"obatch_gpu_remap_failed{{{GPU}}}": "1x100"}, [{f"obatch_gpu_remap_failed{{{GPU}}}": "0x100"}]
    ),
    "ObatchGpuSlowed": Case(
        20,
        {f'obatch_gpu_slowdown_seconds_total{{cause="hw_thermal",{GPU}}}': "0+5x100"},
        [
            {f'obatch_gpu_slowdown_seconds_total{{cause="hw_thermal",{GPU}}}': "7x100"},
            {f'obatch_gpu_slowdown_seconds_total{{cause="sw_power_cap",{GPU}}}': "0+60x100"},
        ],
    ),
    "ObatchGpuHot": Case(6, _hot("88x100"), [_hot("80x100"), _hot("88 88 80 88x100")]),
    "ObatchBurninFailed": Case(
        1, _burnin("1x100", "0x100"), [_burnin("0x100", "0x100"), _burnin("1x100", "-800000x100")]
    ),
}
MORE = [
    # The second error of a kind.
    ("ObatchGpuXid", Case(25, {f'obatch_gpu_xids_total{{xid="79",{GPU}}}': "1x20 2x100"}, [])),
    # Twenty minutes after the latest answer, and not a quarter of an hour.
    ("ObatchStuck", Case(32, _queue("10x200", "0+1x10 10x200"), [_queue("10x200", "0+1x15 15x200")])),
    ("ObatchQueueGrows", Case(125, _busy("100+1x200", "6x200", kept="2x200"), [_busy("100+1x200", "6x200")])),
    # Its host is here, and came back ten minutes ago; another one is away.
    ("ObatchServerDown", Case(12, _on_host("gpu3", "1x100"), [])),
    ("ObatchServerDown", Case(22, _on_host("gpu3", "0x10 1x100"), [_on_host("gpu3", "0x15 1x100")])),
    ("ObatchServerDown", Case(12, _server("failed") | {f'obatch_host_up{{{HOST},host="node07"}}': "0x100"}, [])),
    ("ObatchServerDrained", Case(2000, _drained("1x1500 2x600", "0x1500 1x600"), [_drained("1x2100", "1x2100")])),
]
