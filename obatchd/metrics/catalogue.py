"""Every metric: its name, what it is, its labels. docs/monitoring.md has the same table for people."""

from __future__ import annotations

from typing import Literal, NamedTuple

Type = Literal["gauge", "counter", "histogram"]
_GPU = ("gpu", "uuid")


class Kind(NamedTuple):
    """One metric. A counter's name ends with ``_total``."""

    name: str
    type: Type
    labels: tuple[str, ...]
    help: str


def _gauge(name: str, help_: str, *labels: str) -> Kind:
    return Kind(f"obatch_{name}", "gauge", labels, help_)


def _counter(name: str, help_: str, *labels: str) -> Kind:
    return Kind(f"obatch_{name}_total", "counter", labels, help_)


def _histogram(name: str, help_: str, *labels: str) -> Kind:
    return Kind(f"obatch_{name}", "histogram", labels, help_)


_HOST = (
    _gauge("build_info", "1; the version of obatchd", "version"),
    _gauge("start_time_seconds", "When this daemon began, seconds since the epoch"),
    _gauge("state", "1 for the state of the daemon, 0 for the others", "state"),
    _gauge("hold", "1 for each reason for which nothing new is offered to servers", "reason"),
    _gauge("disk_free_bytes", "Free space of the file system of the spool"),
    _gauge("disk_free_inodes", "Free inodes there, where it counts them"),
    _gauge("disk_low", "1 while dispatch and inbox wait for free space"),
    _gauge("drops", "Drops in the inbox that are not taken", "state"),
    _counter("drops_refused", "Drops that were refused"),
    _counter("http_requests", "Calls over HTTP, by the pattern of their route", "method", "route", "status"),
)
_JOBS = (
    _gauge("jobs", "Jobs in work", "state"),
    _counter("jobs_finished", "Jobs that are over, with summary.json", "result"),
    _gauge("jobs_held_up", "Jobs with requests that wait because of a bad answer of a server"),
    _gauge("job_oldest_seconds", "Time since the acceptance of the oldest job that is not over"),
    _gauge("jobs_late", "Jobs that at their speed of the last half minute will not be over before their deadline"),
    _gauge("requests_queued", "Requests that wait for a server, those of paused jobs included"),
    _gauge("results_waiting", "Results that are not durable yet"),
    _counter("requests", "Requests of jobs that are over, by outcome; the sum is that of all summary.json", "outcome"),
    _counter("request_failures", "Failed requests of jobs, by code", "code"),
    _histogram("commit_seconds", "Time until a group of results is durable"),
    _gauge("owner_jobs", "Jobs in work of an owner; with metrics.owners alone", "uid"),
    _gauge("owner_requests_unfinished", "Requests without a result of an owner; with metrics.owners alone", "uid"),
)
_WORK = (
    _counter("attempts_failed", "Attempts that ended without an answer", "server", "kind", "code"),
    _counter("prompt_tokens", "Tokens of prompts that servers told", "server", "model"),
    _counter("response_tokens", "Tokens of answers that servers told", "server", "model"),
    _histogram("request_seconds", "Time of an answer in its slot", "model"),
    _histogram("first_token_seconds", "Time in a slot until an answer begins, as the server tells it", "model"),
    _histogram("queue_seconds", "From the acceptance of the job to the first slot of a request", "model"),
    _histogram("load_seconds", "Time to load a model", "model"),
    _gauge("interactive_requests_waiting", "Requests of people that wait for a slot"),
    _gauge("interactive_requests_in_flight", "Requests of people in a slot"),
    _gauge("interactive_reserved_slots", "Slots that batches leave free for people"),
    _counter("interactive_requests", "Requests of people that are over", "outcome"),
    _histogram("interactive_first_token_seconds", "From the question to the first token of the answer", "model"),
)
_SERVERS = (
    _gauge("server_state", "1 for the state of the server, 0 for the others", "server", "state"),
    _gauge("server_slots", "Requests that the server answers at once", "server"),
    _gauge("server_requests_in_flight", "Requests in a slot", "server"),
    _gauge("server_families_in_flight", "Different long beginnings that offered requests share", "server"),
    _counter("server_requests", "Requests that the server answered", "server"),
    _counter("server_restarts", "Runs of the server that ended unasked", "server"),
    _counter("server_watchdog_findings", "Findings of the watchdog", "server", "finding"),
    _gauge("server_model_info", "1; the model that is loaded", "server", "model", "context_length"),
)
_HOSTS = (
    _gauge("hosts", "Joined hosts", "state"),
    _gauge("host_up", "1 while the joined host is here", "host"),
    _gauge("host_clock_ahead_seconds", "How far the clock of the joined host is ahead of ours", "host"),
)
_GPUS = (
    _gauge("gpu_info", "1; what the card is", *_GPU, "name", "serial", "slot", "driver"),
    _gauge("gpu_up", "1 where the driver lists the card and answers for it", *_GPU),
    _gauge("gpu_asleep", "1 where nobody uses the card, and it is not asked, so that it can sleep", *_GPU),
    _gauge("gpu_utilization_ratio", "Share of the time in which the card computed", *_GPU),
    _gauge("gpu_memory_used_bytes", "Memory in use", *_GPU),
    _gauge("gpu_memory_total_bytes", "Memory of the card", *_GPU),
    _gauge("gpu_temperature_celsius", "Temperature of the chip", *_GPU),
    _gauge("gpu_temperature_limit_celsius", "At which the card slows down, or ends its work", *_GPU, "limit"),
    _gauge("gpu_memory_temperature_celsius", "Temperature of the memory", *_GPU),
    _gauge("gpu_power_watts", "Power that the card takes", *_GPU),
    _gauge("gpu_power_limit_watts", "Most power that it may take", *_GPU),
    _gauge("gpu_clock_hertz", "Clock of the multiprocessors", *_GPU),
    _gauge("gpu_fan_ratio", "Speed of the fan, of its highest", *_GPU),
    _gauge("gpu_reading_timestamp_seconds", "When these values were read, seconds since the epoch", *_GPU),
    _counter("gpu_energy_joules", "Energy since the driver was loaded", *_GPU),
    _counter("gpu_slowdown_seconds", "Time in which the card was slowed, since the driver was loaded", *_GPU, "cause"),
    _counter("gpu_ecc_errors", "Errors of the memory since the driver was loaded", *_GPU, "type"),
    _counter("gpu_pcie_replays", "Packets that were sent again over PCIe", *_GPU),
    _counter("gpu_nvlink_errors", "Errors of all NVLinks of the card", *_GPU, "type"),
    _gauge("gpu_remapped_rows", "Rows of memory that spare ones replace", *_GPU, "type"),
    _gauge("gpu_remap_failed", "1 where a row could not be replaced", *_GPU),
    _gauge("gpu_remap_pending", "1 where a row is replaced at the next reset", *_GPU),
    _gauge("gpu_pcie_link_width", "Lanes of the link", *_GPU),
    _gauge("gpu_pcie_link_generation", "Generation of PCIe that the link uses now", *_GPU),
    _counter("gpu_xids", "Errors (XID) that the driver reported, since the daemon began", *_GPU, "xid"),
    _gauge("gpu_health", "1 for the level of the card, 0 for the others", *_GPU, "level"),
    _gauge("gpu_finding", "1 for each fault that is found", *_GPU, "signal", "level"),
    _gauge("gpu_lent", "1 while the card is lent to somebody", *_GPU),
    _gauge("probe_up", "1 where the driver answers; absent where none is missed"),
    _gauge("kernel_log_up", "1 where errors of GPUs are read from the kernel's log"),
)
_BURNIN = (
    _gauge("burnin_running", "1 while a burn-in runs"),
    _gauge("burnin_elapsed_seconds", "Time of load of the run in progress"),
    _gauge("burnin_verdict", "1 for the verdict of the latest run that ended", *_GPU, "verdict"),
    _gauge("burnin_finished_timestamp_seconds", "When that run ended, seconds since the epoch"),
)
KINDS: tuple[Kind, ...] = (*_HOST, *_JOBS, *_WORK, *_SERVERS, *_HOSTS, *_GPUS, *_BURNIN)
