"""The events of the log in words, for a person who has started obatchd in a terminal.

The journal and pipes get each event as it is (:mod:`obatchd.log`); here it is one short line with the time of day. What
only helps to find a defect has no words and is left out, as is a step on the way to what is told anyway.
"""

from __future__ import annotations

import logging
import string
import time
from collections.abc import Mapping
from typing import Any, TextIO

import click

from obatchd import terminal, times
from obatchd.words import ENDED, counted, server_state

# Words of each event. {name} is a field of it, {name:request} counts requests, {name:duration} are seconds,
# {name:ending} is how a job ended, {name:state} the state of a server. A reason and a remedy that the words do not name
# come behind them.
WORDS: Mapping[str, str] = {
    # the daemon
    "starting": "obatchd {version} starts on {spool}",
    "spool_not_of_obatchctl": "obatchctl in this terminal looks for a daemon on {other}, which OBATCH_SPOOL or "
    "OBATCHD_SPOOL names; this one works on {spool}",
    "ready": "Ready. Move files of prompts into {inbox}, or type in another terminal:  {command}",
    "stranded": "No prompt can be answered yet",
    "stop_asked": "Stopping: running answers have {drain_s:duration} to finish; Ctrl-C again stops at once",
    "drain_skipped": "Stopping at once; answers that were running are asked for again at the next start",
    "drain_ended": "{in_flight:answer} did not finish in time",
    "stopped": "Stopped; unfinished jobs go on at the next start",
    "reloaded": "The configuration was read again; changed: {changed}; for new jobs: {next_job}; at the next start: "
    "{needs_restart}",
    "reload_refused": "The configuration was read again and cannot be used; the old one stays",
    "reload_failed": "The configuration could not be read again, because of a defect of obatchd; the old one stays",
    "group_missing": "There is no group {group}",
    "defect": "A part of obatchd failed ({task}) because of a defect of obatchd; it stops. Please report this",
    "child_not_started": "obatchd could not start a process of its own ({child})",
    "child_failed": "A process of obatchd failed ({child}) because of a defect of obatchd; please report this",
    "control_listening": "",
    "http_listening": "Programs reach the API of OpenAI's kind at {address}; obatchctl key add makes a key for them, "
    "and obatchctl web opens the page in a browser",
    "http_not_listening": "Programs cannot reach the API at {address}",
    "http_connection_not_accepted": "A program could not be answered over HTTP",
    "nobody_told": "A call over HTTP failed after its client had gone",
    "http_call_failed": "obatchd failed at a call over HTTP, because of a defect; please report this",
    "certificate_not_read": "The certificate of the API over HTTP cannot be used",
    "certificate_renewed": "The certificate of the API over HTTP was read again",
    "wrong_keys": "Calls over HTTP came with a wrong key: {calls}",
    "wrong_sessions": "Calls over HTTP came with a code or session of the page that is not good (any more): {calls}",
    "page_session_opened": "",
    "host_door_open": "Hosts reach this head at {address}; obatchctl hosts code makes a link by which one joins",
    "host_door_not_open": "Hosts cannot reach this head at {address}",
    "host_door_shut": "Hosts cannot reach this head",
    "host_joined": "Host {host} joined",
    "host_call_failed": "obatchd failed at a call of a host, because of a defect; please report this",
    "host_certificate_new": "The certificate of this head is a new one: all hosts have to join again ({hosts})",
    "wrong_host_secrets": "Hosts, or others, came with a secret that is not good (any more): {calls}; the last "
    "from {address}",
    "roster_not_read": "Which hosts joined cannot be read in {path}; none can come",
    "host_forgotten": "Host {host} was forgotten; it comes in no more",
    "host_code_made": "",
    "host_enrolment_made": "",
    "host_enrolment_revoked": "The enrolment {enrolment} was revoked",
    "audit_not_written": "The audit log cannot be written; what is done meanwhile is kept in memory until it can",
    "audit_written_again": "The audit log is written again",
    "audit_entries_lost": "The audit log lacks what the disk did not take before obatchd ended ({entries})",
    "metrics_file_not_written": "The metrics cannot be written to {path}; obatchd tries again",
    "metrics_file_written_again": "The metrics are written to {path} again",
    "key_added": "",
    "key_removed": "",
    "key_use_not_written": "It cannot be written down when keys were used last; obatchd tries again",
    "file_uploaded": "",
    "file_removed": "",
    "file_expired": "",
    "files_not_read": "Uploaded files cannot be looked through; the next start does it",
    "files_not_removed": "Expired files cannot be deleted; obatchd tries again",
    "output_removed": "",
    "batch_created": "",
    "batch_call_failed": "A call about a batch failed",
    "control_request_failed": "obatchd failed at a command of obatchctl, because of a defect; please report this",
    "connection_not_accepted": "obatchctl could not be answered",
    "submit_accept_failed": "A submission could not be received: {error}",
    "submission_refused": "A submission was refused ({code}); its sender was told why",
    "submission_failed": "A submission failed because of a defect of obatchd; please report this",
    "submitter_gone": "",
    # drops
    "inbox_problem": "The inbox has a problem",
    "inbox_polled": "obatchd gets no events of the inbox on a file system of kind {filesystem}",
    "inbox_events_lost": "Too much happened in the inbox at once, so obatchd looks through all of it",
    "inbox_not_watched": "The kernel gives obatchd no events of the inbox, so obatchd looks into it now and then",
    "drop_not_complete": "A drop in the inbox is not complete yet; obatchctl status says why",
    "drop_still_growing": "A drop in the inbox is still growing; it is taken when it is complete",
    "drop_blocked": "A drop in the inbox cannot be taken",
    "drop_refused": "A drop was refused ({code}); it is in failed/ with the reason",
    "drop_not_deleted": "The drop of job {job} was copied and cannot be deleted from where it lay",
    "drop_adopted": "A drop whose acceptance was cut short became job {job}",
    "drop_copied": "",
    "drop_unpacked": "",
    "drop_changed_late": "The drop of job {job} was changed after it was taken; the change is not run",
    "drop_not_readable": "The drop of job {job} cannot be read, because of a defect of obatchd; please report this",
    "input_is_another_file": "Job {job}: its file was replaced by another one as it was taken; the other one is run",
    "intake_failed": "obatchd cannot take drops; it tries again",
    "index_failed": "obatchd cannot read a drop; it tries again",
    "unpack_failed": "obatchd cannot unpack the drop of job {job}; it tries again",
    "unpacker_lost": "The process that unpacks the drop of job {job} ended; it is tried again",
    "input_unreadable": "obatchd cannot read the drop of a job; it tries again",
    "submission_not_renamed": "A submission cannot be put into its place",
    "preparer_lost": "The process that fetches sources ended; it is started again",
    # jobs
    "job_accepted": "",
    "job_indexed": "Job {job}: {requests:request}",
    "job_done": "Job {job} {ending:ending}: {succeeded} answered, {failed} failed, in {wall_s:duration}",
    "job_cancelled": "Job {job} was cancelled",
    "job_expired": "Job {job} has passed its deadline; {finished} of {requests:request} were finished",
    "job_defective": "Job {job} cannot go on because of a defect of obatchd",
    "job_erased": "Job {job} was erased",
    "job_not_erased": "Job {job} cannot be erased",
    "job_released": "",
    "job_published_again": "The results of job {job} were written again",
    "job_not_published": "The results of job {job} cannot be written, because of a defect of obatchd",
    "job_not_offered": "A job cannot go on because of a defect of obatchd; please report this",
    "jobs_resumed": "Going on with {jobs:unfinished job} of an earlier run",
    "index_rebuilt": "The list of jobs was lost and was made again from the inputs: {jobs:job}",
    "earlier_answers_copied": "Job {job}: {requests:answer} copied from earlier jobs",
    "earlier_answers_not_read": "Job {job}: earlier answers cannot be read, so all its requests are asked",
    "requests_unservable": "Job {job}: requests for {model} cannot be answered",
    "cause_condemned": "Job {job}: its requests for {model} crash every server, so the rest of them fail",
    "attempt_failed": "",
    "publish_failed": "The results of {jobs:job} cannot be written; obatchd tries again",
    "commit_failed": "{results:answer} cannot be written; obatchd tries again",
    "results_not_committed": "The disk did not take {results:answer}; they are asked for again at the next start",
    "responses_not_written": "Job {job}: files of {responses:answer} cannot be written; results.jsonl has them",
    "response_writer_lost": "The process that writes answer files ended; it is started again",
    "end_failed": "The end of job {job} cannot be written; obatchd tries again",
    "resumption_failed": "Jobs of an earlier run cannot be taken up; obatchd tries again",
    "housekeeping_failed": "Old files cannot be deleted; obatchd tries again",
    "deleted": "",
    "trouble": "All work waits",
    "trouble_over": "Work goes on",
    "dispatch_held": "",
    "dispatch_resumed": "",
    # the store
    "store_damaged": "A file of the store is damaged",
    "store_set_aside": "A damaged file of the store was set aside as {kept_as}",
    "store_migrated": "The tables of {file} were brought from version {from_version} to {to_version}",
    "store_backed_up": "A copy of the tables as they were is in {file}",
    "session_not_recorded": "obatchd cannot write {path}",
    "fact_not_kept": "obatchd cannot write {key} into the store",
    # servers
    "server_planned": "",
    "server_state": "Server {server} is {new:state}",
    "server_log": "Server {server} says: {line}",
    "server_strike": "Server {server} has a fault ({strikes} lately)",
    "server_killed": "Server {server} did not end in {grace_s:duration} and was killed",
    "server_stuck": "Server {server} cannot be killed",
    "server_defect": "Server {server} is not looked after because of a defect of obatchd; please report this",
    "server_not_closed": "Server {server} was not closed because of a defect of obatchd; please report this",
    "servers_exposed": "Everybody who reaches {listen} can use the servers",
    "health_missed": "Server {server} does not answer",
    # joined hosts
    "hosts_awaited": "Hosts that join do the work",
    "host_starts": "Host {host} is about to start its servers",
    "host_came": "Host {host} is here",
    "host_away": "Host {host} is away; others do its work until it is back",
    "host_untrue": "Host {host} said what cannot be ({code}), and was cut off",
    "host_refused": "Host {host} may not come in ({code})",
    "host_replaced": "Host {host} has come a second time; its first session has ended",
    "host_clock": "The clock of host {host} differs from this one's by {skew_s} s",
    "ray_here": "Ray {version} is here; {nodes:node} of it have GPUs",
    "ray_gone": "Ray is gone; hosts that run go on, and the others come back with it",
    "ray_host_invited": "",
    "ray_host_not_invited": "Host {host} could not get a code to join by",
    "ray_host_forgotten": "Host {host} was forgotten; its node in Ray is let go",
    "ray_cleared": "Nothing of obatchd is left in the Ray at {address}",
    "ray_file_not_written": "{path} cannot be written, where obatchd notes the Ray that it uses",
    "host_leaves": "Host {host} is about to go; others get its work",
    "alarm_not_passed_on": "",
    "resume_failed": "Server {server} could not be told to go on",
    "slots_halved": "Server {server}: {slots:slot} for {model}, because more do not fit",
    "tuning_ended": "Slots are tuned no more until obatchd starts again, because of a defect of it; please report this",
    "slots_measured": "Server {server}: {model} with {slots:slot} gives {tokens_per_s} tokens/s",
    "slots_change": "Server {server} gets {new:slot} for {model} instead of {old}, to see whether that is faster",
    "slots_chosen": "{model} is fastest with {slots:slot} on {device}: {tokens_per_s} tokens/s",
    "slots_do_not_serve": "Server {server} cannot have {slots:slot} for {model}; it goes back to {good}",
    "slots_not_believed": "What was kept of slots cannot be right, so they are measured again: {key}: {reason}",
    "slots_searched_again": "The best slots for {model} on {device} are measured again: a version changed",
    "ollama_version": "{warning}",
    "foreign_ollama": "{reason}",
    "orphans_swept": "",
    "orphan_killed": "An Ollama process of an earlier run was ended (pid {pid})",
    "orphan_stuck": "{count:Ollama process} of an earlier run cannot be killed",
    "worker_started": "",
    "worker_lost": "The process that works with server {server} ended; it is started again",
    "channel_simulated": "STAND-IN: messages to and from workers are dropped, doubled and delayed, with seed {seed}",
    "worker_out_of_step": "The process that works with server {server} holds {held:request}, and obatchd expected "
    "{expected}: it is ended, another one is started, and they are asked again",
    "server_detached": "Server {server} is not used any more; others answer what it had ({requests:request})",
    "worker_hung": "The process that works with server {server} hangs; it is killed and started again",
    "requests_moved": "Server {server}: {requests:request} moved to others",
    "interactive_poison": "A question to {model} crashed {crashes:server}; it is refused for ten minutes",
    "control_passed": "",
    "control_failed": "Server {server} does not answer a test after a crash",
    "watchdog_stalled": "Server {server} gives no more tokens",
    "watchdog_gpu_idle": "Server {server} has requests and does not work on them",
    "watchdog_slots_leaking": "Server {server} works on fewer requests than it has slots",
    "watchdog_slow": "Server {server} is slow",
    "watchdog_cpu_fallback": "Server {server} computes on the CPU although it has a GPU",
    "watchdog_passed": "",
    "watchdog_restart": "Server {server} is restarted",
    "watchdog_drained": "Server {server} gets no more work",
    "watchdog_hindered": "The watchdog cannot look at server {server}",
    "watchdog_failed": "The watchdog failed at server {server} because of a defect of obatchd; please report this",
    # models
    "profile_switch": "",
    "profile_loaded": "Server {server} has loaded {model} in {load_s:duration}: {slots:slot}, context {context_length}",
    "profile_refused": "Server {server} cannot serve {model}",
    "load_failed": "Server {server} could not load {model}",
    "model_unloaded": "Server {server} has unloaded {model}, which nobody used for {idle_s:duration}",
    "model_removed": "Model {model} was removed",
    "model_not_had": "",
    "model_not_everywhere": "Not every server can serve {model}",
    "model_differs": "{reason}",
    "models_not_listed": "The models in {store} cannot be listed",
    "pull_started": "Pulling model {model}",
    "pull_done": "Pulled model {model}",
    # hosts of many, on both sides
    "session_defect": "The connection with {peer} ends because of a defect of obatchd; please report this",
    "call_failed": "obatchd failed at {method}, asked by {peer}, because of a defect; please report this",
    # on the host
    "host_starting": "obatchd host {version} starts as {host}, for the head at {head}",
    "host_ready": "Ready: {servers:server} for the head",
    "host_stop_asked": "Stopping: running answers have {drain_s:duration} to finish; Ctrl-C again stops at once",
    "host_drain_skipped": "Stopping at once; the head has others answer what was running",
    "host_drain_ended": "Answers of {servers:server} did not finish in time; the head has others give them",
    "host_stopped": "Stopped",
    "host_settings_changed": "Settings changed: {changed}; at the next start: {needs_restart}",
    "terms_refused": "What the head decided cannot be used here; what counted before stays",
    "host_file_damaged": "{path} is damaged and was set aside as {kept_as}",
    "host_file_not_written": "{path} cannot be written",
    "host_enrolled": "This host has joined the head at {head} as {host}",
    "enrolment_not_used": "The enrolment cannot be used; the host goes on as {host}, which it was before",
    "head_reached": "The head has accepted this host, {host}",
    "head_away": "The head at {head} is away; obatchd tries again and again",
    "head_refuses": "The head at {head} refuses this host",
    "lease_over": "The head has been away for {lease_s:duration}: the models are unloaded",
    "lease_unload_failed": "Server {server} cannot unload its model",
    "vacate_failed": "The head could not take the work of server {server} away",
    "server_command": "",
    # GPUs
    "cpu_only": "{reason}",
    "gpus_awaited": "{reason}",
    "gpus_limited": "{reason}",
    "gpus_came": "{gpus:GPU} found",
    "gpu_unusable": "{problem}",
    "probe_state": "{message}",
    "gpu_host_trouble": "GPUs of this host: {message}",
    "gpu_shared": "Other processes hold memory on the GPU of server {server}: {processes}; {reason}",
    "gpu_shared_unload_failed": "Server {server} cannot unload its model",
    "gpu_usable_again": "Server {server} goes on: its GPU is free again",
    "gpu_xid": "{gpu}: XID {xid}",
    "gpu_finding": "{gpu}",
    "gpu_finding_cleared": "{gpu}: a finding is over",
    "gpu_quarantined": "{gpu} is out of use",
    "gpu_released": "{gpu} was released",
    "gpu_command": "",
    "host_not_asked": "Host {host} did not tell about its GPUs",
    "gpu_command_failed": "The head's command {command} to {gpu} was not carried out",
    "gpu_record_unreadable": "A record of a GPU cannot be read",
    "gpu_records_unreadable": "The records of the GPUs cannot be read",
    "gpu_records_not_kept": "The records of the GPUs cannot be written",
    "gpu_events_absent": "",
    "gpu_events_failed": "The driver gives no events of GPUs",
    "gpu_history_damaged": "The history of the GPUs is damaged and was set aside as {set_aside}",
    "gpu_history_not_opened": "The history of the GPUs cannot be opened",
    "gpu_history_not_written": "The history of the GPUs cannot be written",
    "kernel_log_blind": "obatchd cannot read the kernel log, so it does not see every fault of a GPU",
    # alarms and burn-ins
    "alarm_dropped": "An alarm was not sent ({kind})",
    "alarm_failed": "The alarm {kind} did not arrive: the {way} failed",
    "alarm_told": "",
    "notification_failed": "Nobody could be told through {way} that job {job} is over; obatchd tries again",
    "notification_given_up": "Nobody could be told through {way} that job {job} is over; obatchd gave up",
    "notification_store_failed": "obatchd cannot write down whether somebody was told that a job is over",
    "notification_told": "",
    "burnin_started": "Burn-in {run} has begun: {profile}, {duration_s:duration}",
    "hosts_burnin_started": "Burn-in {run} has begun on {hosts}: {profile}, {duration_s:duration}",
    "hosts_burnin_part": "Burn-in {run} on {host}: {state}",
    "crash_not_told": "A crash of server {server} could not be told to its host",
    "burnin_preparing": "",
    "burnin_prepared": "",
    "burnin_context_refused": "",
    "burnin_loading": "Burn-in {run} loads the GPUs",
    "burnin_ended": "Burn-in {run} is over: {verdict}",
    "burnin_resumed": "Burn-in {run} goes on after a pause of {gap_s:duration}",
    "burnin_failed": "Burn-in {run} failed because of a defect of obatchd; please report this",
    "burnin_not_written": "Burn-in {run} cannot be written",
    "burnin_phase": "Burn-in {run}: the load is {loads} now",
    "burnin_not_unloaded": "The burn-in cannot free the memory of the GPU of server {server}",
    "burnin_program_ended": "",
    "burnin_wrong_result": "GPU {gpu} gave a wrong result in the burn-in: {place}",
    "burnin_stress_ended": "The burn-in ends the products and patterns on GPU {gpu}: {reason}",
    "burnin_stress_left_behind": "A process of the burn-in on GPU {gpu} hangs in the kernel and is left behind",
    "burnin_not_calibrated": "The burn-in makes no output check on server {server}",
    "burnin_load_failed": "The burn-in cannot load server {server}",
    "burnin_request_failed": "A request of the burn-in failed on server {server}",
    "burnin_output_differs": "Server {server} gives another output than before in the burn-in",
    "burnin_canary_failed": "The output check of the burn-in failed on server {server}",
    "burnin_journals_deleted": "",
    "burnin_journals_not_deleted": "Journals of old burn-ins cannot be deleted",
}

# Values of a field with which an event says nothing that is not told elsewhere.
_ON_THE_WAY = {
    "server_state": ("new", ("starting", "draining", "stopping", "stopped")),
    "probe_state": ("state", ("ok", "absent")),
}
_HELD = "Server {server} is back and stays drained: {held}"
_GOOD = ("ready", "pull_done", "trouble_over", "gpu_usable_again", "gpu_finding_cleared")


class _Counting(string.Formatter):
    """``{name:duration}``, ``{name:ending}`` of a job and ``{name:noun}`` beside plain fields."""

    def format_field(self, value: Any, format_spec: str) -> str:
        if value is None:
            return "–"
        if format_spec == "state":
            return server_state(str(value))
        if format_spec == "duration":
            return times.duration(float(value))
        if format_spec == "ending":
            return ENDED[str(value)]
        return counted(int(value), format_spec) if format_spec else str(value)


_words = _Counting()


def told(event: str, fields: Mapping[str, object]) -> str:
    """The words of an event; empty where nobody in front of a terminal needs it."""
    template = WORDS.get(event, event)
    template = _HELD if fields.get("held") else template
    field, values = _ON_THE_WAY.get(event, ("", ()))
    if not template or fields.get(field) in values:
        return ""
    line = _words.vformat(template, (), fields)
    if (reason := fields.get("reason")) and "{reason}" not in template and fields.get("new") != "ready":
        line += f": {reason}"
    if remedy := fields.get("remedy") or fields.get("action"):
        line += f"  → {remedy}"
    return "".join(c if c.isprintable() else " " for c in line)


def _colour(level: int, event: str, fields: Mapping[str, object]) -> str | None:
    if level >= logging.ERROR:
        return "red"
    if level >= logging.WARNING:
        return "yellow"
    if event == "job_done" and fields["failed"]:
        return "yellow" if fields["succeeded"] else "red"
    return "green" if event in (*_GOOD, "job_done") or fields.get("new") == "ready" else None


class Handler(logging.StreamHandler[TextIO]):
    """Writes events as lines for a person."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._coloured = terminal.coloured(stream)

    def filter(self, record: logging.LogRecord) -> bool:
        return bool(self._line(record))

    def format(self, record: logging.LogRecord) -> str:
        event, fields = getattr(record, "event", ""), getattr(record, "fields", {})
        stamp = click.style(time.strftime("%H:%M:%S", time.localtime(record.created)), dim=True)
        line = f"{stamp}  {click.style(self._line(record), fg=_colour(record.levelno, event, fields))}"
        if record.exc_info:
            line += "\n" + logging.Formatter().formatException(record.exc_info)
        return line if self._coloured else click.unstyle(line)

    def _line(self, record: logging.LogRecord) -> str:
        event = getattr(record, "event", "")
        return told(event, getattr(record, "fields", {})) if event else record.getMessage()
