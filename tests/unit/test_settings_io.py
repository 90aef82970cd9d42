from __future__ import annotations

import tomllib
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from settings_support import DEFAULTS

from obatchd.errors import ConfigError
from obatchd.settings import job, reading
from obatchd.settings import text as settings_text
from obatchd.settings.base import Reload
from obatchd.settings.job import FrozenSettings
from obatchd.settings.settings import Settings

ROOT = Path(__file__).parents[2]


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "obatchd.toml"
    file.write_text(text)
    return file


def test_defaults_alone() -> None:
    assert reading.load(None, environ={}, flags={}) == Settings()


def test_order_is_defaults_file_environment_flags(tmp_path: Path) -> None:
    file = write(tmp_path, 'model = "from-file"\nlog_level = "debug"\n[servers]\nslots = 2\nremote_slots = 3\n')
    environ = {"OBATCHD_SERVERS_SLOTS": "4", "OBATCHD_LOG_LEVEL": "warning", "HOME": "/root"}
    settings, origin = reading.load_with_origin(file, environ=environ, flags={"log_level": "error", "spool": None})
    assert (settings.model, settings.log_level) == ("from-file", "error")
    assert (settings.servers.slots, settings.servers.remote_slots) == (4, 3)
    assert origin == {
        "model": str(file),
        "servers.remote_slots": str(file),
        "servers.slots": "OBATCHD_SERVERS_SLOTS",
        "log_level": "--log-level",
    }


def test_the_variable_of_obatchctl_names_the_daemons_spool_where_nothing_else_does(tmp_path: Path) -> None:
    environ = {"OBATCH_SPOOL": "/home/ann/batch"}
    settings, origin = reading.load_with_origin(None, environ=environ, flags={"spool": None})
    assert settings.spool_path == Path("/home/ann/batch")
    assert origin == {"spool": "OBATCH_SPOOL"}
    file = write(tmp_path, 'spool = "/srv/of-file"\n')
    for source, more, flag, expected in (
        (file, {}, None, "/srv/of-file"),
        (None, {"OBATCHD_SPOOL": "/srv/own"}, None, "/srv/own"),
        (None, {}, "/srv/flag", "/srv/flag"),
        (None, {"OBATCH_SPOOL": ""}, None, "/var/spool/obatch"),
    ):
        assert reading.load(source, environ=environ | more, flags={"spool": flag}).spool == expected


def test_environment_takes_toml_values_and_plain_text() -> None:
    environ = {
        "OBATCHD_MODEL": "llama3.2:1b",
        "OBATCHD_GPUS": "[0, 'GPU-1']",
        "OBATCHD_GPUS_EXCLUDE": "[3]",
        "OBATCHD_SERVERS_SLOTS": "auto",
        "OBATCHD_OPTIONS": "{temperature = 0.5}",
        "OBATCHD_OLLAMA_INSTANCES": '{"10.0.0.5:11434" = 0}',
    }
    settings = reading.load(None, environ=environ, flags={})
    assert settings.model == "llama3.2:1b"
    assert settings.gpus.use == [0, "GPU-1"]
    assert settings.gpus.exclude == [3]
    assert settings.options == {"temperature": 0.5}
    assert settings.ollama_instances == {"10.0.0.5:11434": 0}


def test_a_value_in_a_variable_cannot_bring_further_keys() -> None:
    settings = reading.load(None, environ={"OBATCHD_SERVERS_SLOTS": "4 # four"}, flags={})
    assert settings.servers.slots == 4
    with pytest.raises(ConfigError):
        reading.load(None, environ={"OBATCHD_SERVERS_SLOTS": "4\nmodel = 'x'"}, flags={})


def test_variables_of_other_parts_are_left_alone() -> None:
    environ = {"OBATCHD_SIMULATOR_SPEED": "1", "OBATCHD_TEST_X": "1", "OBATCHD_CRASH_AT": "a", "OBATCHD_CACHE": "b"}
    assert reading.load(None, environ=environ, flags={}) == Settings()


def test_the_original_projects_configuration_works_unchanged(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        'model = "llama3"\nsystem_message = "Be brief."\n[ollama_instances]\n"127.0.0.1:11434" = 0\n"h:2" = 1\n',
    )
    settings = reading.load(file, environ={}, flags={})
    assert settings.model == "llama3"
    assert settings.system_message == "Be brief."
    assert settings.ollama_instances == {"127.0.0.1:11434": 0, "h:2": 1}
    assert settings.gpus.use == "none"


def test_every_problem_is_listed_with_source_key_reason_and_nearest_name(tmp_path: Path) -> None:
    file = write(tmp_path, 'settle_s = 3\npriority = "hi"\n[servers]\nslots = "many"\nslotz = 3\n')
    environ = {"OBATCHD_SERVERS_SLOT": "4", "OBATCHD_SERVERS_REMOTE_SLOTS": "999"}
    with pytest.raises(ConfigError) as caught:
        reading.load(file, environ=environ, flags={"log_level": "loud"})
    lines = caught.value.message.splitlines()
    assert sorted(lines) == sorted(
        [
            f"{file}: settle_s: no such setting; did you mean inbox.settle_s?",
            f'{file}: priority: must be "low" or "normal" or "high"',
            f'{file}: servers.slots: must be "auto" or a whole number from 1 to 64',
            f"{file}: servers.slotz: no such setting; did you mean servers.slots?",
            "OBATCHD_SERVERS_SLOT: no such setting; did you mean OBATCHD_SERVERS_SLOTS?",
            "OBATCHD_SERVERS_REMOTE_SLOTS: servers.remote_slots: must be a whole number from 1 to 256",
            '--log-level: log_level: must be "debug" or "info" or "warning" or "error"',
        ]
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("inbox = 3", "inbox: must be a table, written as [inbox]"),
        ('gpus = "some"', 'gpus.use: must be "all", "none"'),
        ('gpus = 3\n[ollama_instances]\n"a:1" = 0', "gpus: must be a table, written as [gpus]"),
        (
            "[[servers.group]]\ngpus = [1]",
            "servers.group.0.gpus: must be a list of (text or a whole number) with 2 or more",
        ),
        ("[[servers.group]]", "servers.group.0.gpus: is missing"),
        ("[servers]\ngroup = [3]", "servers.group.0: must be a table"),
        ("[gpus]\nexclude = [1.5]", "gpus.exclude.0: must be text or a whole number"),
        ('[gpu_health]\nxids = {"63" = "bad"}', 'gpu_health.xids.63: must be "fatal" or "reset" or'),
        ("[servers.environment]\nA = 1", "servers.environment.A: must be text"),
        (
            "[[servers.group]]\ngpus = [1, 2]\ngpu = 1",
            "servers.group.0.gpu: no such setting; did you mean servers.group.0.gpus?",
        ),
        ('[ollama_instances]\n"a b" = 1', "ollama_instances: "),
        *(
            (f'[ollama_instances]\n"{wrong}" = 0', f'"{wrong}" is not host:port (nor http(s)://host:port){hint}')
            for wrong, hint in {
                "127.0.0.15.11500": '; did you mean "127.0.0.15:11500"?',
                "127.0.0.155;11500": '; did you mean "127.0.0.155:11500"?',
                "http://gpu-1.lab,11500": '; did you mean "http://gpu-1.lab:11500"?',
                "127.0.0.300:11500": "",
                "10.1:11500": "",
                "gpu$1:11500": "",
                "[1::2::3]:11500": "",
                "gpu1:99999": ": 99999 is no port",
                "gpu1:1150O": ": 1150O is no port",
                "gpu1:": ": nothing is no port",
                "htp://127.0.0.11:11500": ': htp:// is unknown; did you mean "http://127.0.0.11:11500"?',
                "https:/gpu1:443": ': https:/ is unknown; did you mean "https://gpu1:443"?',
                "::1:11500": '; did you mean "[::1]:11500"?',
                "fe80::1": '; did you mean "[fe80::1]"?',
                "gpu1:11500/": ': leave out /; did you mean "gpu1:11500"?',
                "http://gpu1:11500/api": ': leave out /api; did you mean "http://gpu1:11500"?',
            }.items()
        ),
        ('[ollama_instances]\n"h" = 0\n"h:11434" = 1', '"h:11434" and "h" name one server; remove one'),
        ('[ollama_instances]\n"h:1" = 0\n"h:1" = 1\n', '"h:1" is named twice (line 3, column '),
        ("[ollama_instances]\n10.0.0.5:11500 = 0\n", 'put the address in quotes: "10.0.0.5:11500" (line 2, column '),
        ("[ollama_instances]\n[::1]:11500 = 0\n", 'put the address in quotes: "[::1]:11500" (line 2, '),
        ("[ollama_instances]\n10.0.0.5 = 0\n10.0.0.6 = 0\n", 'put the address in quotes: "10.0.0.5"'),
        (
            '[ollama_instances]\n"me:secret@gpu1:11500" = 0',
            '"…@gpu1:11500" is not host:port (nor http(s)://host:port): leave out the user '
            '(a token belongs in servers.remote_token); did you mean "gpu1:11500"?',
        ),
        (
            '[ollama_instances]\n"a/" = 0\n"b" = 0\n"b:0" = 0\n"b:11434" = 0',
            ': leave out /; did you mean "a"?; "b:0" is not host:port (nor http(s)://host:port): 0 is no port; '
            '"b:11434" and "b" name one server',
        ),
        ('[ollama_instances]\nmodel = "tiny"', "model belongs above the first [table]; "),
        ('[ollama_instances]\n"a:1" = -1\nremote_slots = 4', "remote_slots belongs below [servers]; "),
        (
            '[ollama_instances]\n"a:1" = {slots = 4}',
            'behind "a:1" stands one number, -1; servers.remote_slots is',
        ),
        ("[inbox]\n[inbox]\n", "the table [inbox] is there twice (line 2, "),
        ("drain_s = 1\ndrain_s = 2", "drain_s is named twice (at the end)"),
        ('log_level = "secret', "Unterminated string"),
        ("model = ", "is not valid TOML"),
    ],
)
def test_problems_of_other_shapes(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        reading.load(write(tmp_path, text), environ={}, flags={})
    assert expected in caught.value.message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml cannot be read"):
        reading.load(tmp_path / "nowhere.toml", environ={}, flags={})


def test_a_section_of_the_wrong_type_is_reported_in_spite_of_a_variable(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="servers: must be a table"):
        reading.load(write(tmp_path, "servers = 3"), environ={"OBATCHD_SERVERS_SLOTS": "4"}, flags={})


def test_no_message_or_page_repeats_a_secret(tmp_path: Path) -> None:
    file = write(tmp_path, '[servers]\nremote_token = ["hunter2"]\nenvironment = {HTTPS_PROXY = 2}\n')
    with pytest.raises(ConfigError) as caught:
        reading.load(file, environ={}, flags={})
    assert "hunter2" not in caught.value.message
    file = write(tmp_path, '[servers]\nremote_token = "hunter2"\nenvironment = {HTTPS_PROXY = "http://me:hunter2@p"}\n')
    shown = settings_text.show(*reading.load_with_origin(file, environ={}, flags={}))
    assert "hunter2" not in shown
    assert "hunter2" not in repr(reading.load(file, environ={}, flags={}).servers).replace("http://me:hunter2@p", "")


def test_changed_keys_and_what_a_reload_applies(tmp_path: Path) -> None:
    old = Settings()
    new = reading.load(
        write(tmp_path, 'model = "x"\n[servers]\nslots = 2\n[inbox]\nsettle_s = 9\n'), environ={}, flags={}
    )
    changes = reading.changes(old, new)
    assert [leaf.key for leaf in changes] == ["model", "servers.slots", "inbox.settle_s"]
    assert [leaf.reload for leaf in changes] == [Reload.NEXT_JOB, Reload.RESTART, Reload.LIVE]
    mark = {leaf.key: leaf.reload for leaf in reading.leaves()}
    assert {mark[key] for key in ("spool", "gpus.use", "servers.drain_s", "ollama_instances")} == {Reload.RESTART}
    in_force = reading.reloaded(old, new)
    assert (in_force.model, in_force.servers, in_force.inbox) == ("x", old.servers, new.inbox)


def test_of_one_table_a_reload_applies_what_it_can() -> None:
    old = Settings.model_validate({"spool": "/a", "drain_s": 1, "servers": {"slots": 1, "drain_s": 1}})
    new = Settings.model_validate({"spool": "/b", "drain_s": 2, "servers": {"slots": 2, "drain_s": 2}})
    in_force = reading.reloaded(old, new)
    assert (in_force.spool, in_force.drain_s, in_force.servers) == ("/a", 2, old.servers)


def test_job_settings_of_every_kind() -> None:
    given = {
        "model": "m",
        "system_message": "s",
        "options": {"temperature": 0},
        "context_length": 9000,
        "max_response_tokens": 5,
        "priority": "high",
        "deadline": 3600,
        "text_column": "note",
        "id_column": "mrn",
        "encoding": "cp1252",
        "lines": True,
        "sample": 20,
        "skip_done": True,
        "repeat": 5,
        "format": {"type": "object"},
        "in_source": ["mrn"],
        "think": "high",
        "notify": ["mail:ann@example.org"],
        "label": "study 1",
    }
    settings, notes = job.parse_job_settings(given, "job.toml")
    assert not notes
    assert {key: getattr(settings, key) for key in job.JOB_KEYS} == {**given, "template": None}


def test_what_is_found_in_a_drop_cannot_be_given() -> None:
    with pytest.raises(ConfigError, match="sample_of: no such job setting"):
        job.parse_job_settings({"sample_of": 5}, "job.toml")


def test_a_deadline_is_seconds_or_any_way_to_write_a_time() -> None:
    at = datetime(2026, 12, 31, 18, 0, tzinfo=timezone(timedelta(hours=1)))
    for given in (at, at.isoformat(), "2026-12-31T17:00:00Z", at.astimezone().replace(tzinfo=None)):
        settings, _ = job.parse_job_settings({"deadline": given}, "job.toml")
        assert DEFAULTS.under(settings).expires_s(5.0) == at.timestamp()
    for given in (60, 60.0, "60"):
        settings, _ = job.parse_job_settings({"deadline": given}, "job.toml")
        assert DEFAULTS.under(settings).expires_s(5.0) == 65.0
    later = FrozenSettings.of(Settings.model_validate({"deadline": 10}))
    assert later.under(job.parse_job_settings({}, "job.toml")[0]).expires_s(5.0) == 15.0
    for never in (0, 1e12, 9e99):  # no date can be written for the last two
        assert later.under(job.parse_job_settings({"deadline": never}, "job.toml")[0]).expires_s(5.0) is None
    for wrong in (-1, "soon", [1]):
        with pytest.raises(ConfigError, match="deadline"):
            job.parse_job_settings({"deadline": wrong}, "job.toml")


@pytest.mark.parametrize(
    "given",
    [
        {"max_response_tokens": 2**64},
        {"options": {"seed": -(2**63) - 1}},
        {"options": {"stop": ["\ud800"]}},
        {"format": {"type": "object", "properties": {"a": {"const": 2**64}}}},
    ],
)
def test_a_value_that_no_message_to_a_worker_can_hold_is_refused(given: dict[str, Any]) -> None:
    [key] = given
    with pytest.raises(ConfigError, match=f"job.toml: {key}: must have no whole number of more than 64 bits"):
        job.parse_job_settings(given, "job.toml")


@pytest.mark.parametrize(
    "line",
    [
        "options = {seed = 2026-01-01}",
        "options = {stop = [[12:30:00]]}",
        "options = {a = {b = 2026-01-01T12:30:00Z}}",
        "options = {temperature = nan}",
        "options = {temperature = -inf}",
        'format = {type = "string", const = 2026-01-01}',
    ],
)
def test_a_value_of_toml_that_json_does_not_have_is_refused_by_its_name(line: str) -> None:
    given = tomllib.loads(line)
    [key] = given
    [name] = given["options"] if key == "options" else ["const"]
    with pytest.raises(ConfigError, match=rf"^job\.toml: {key}: {name} must (have no date or time|be a finite number)"):
        job.parse_job_settings(given, "job.toml")


def test_job_settings_not_given_stay_open() -> None:
    settings, _ = job.parse_job_settings({}, "job.toml")
    assert settings.model is None
    assert settings.context_length is None


def test_no_job_chooses_where_prompts_are_sent() -> None:
    settings, notes = job.parse_job_settings({"model": "m", "ollama_instances": {"evil:1": 0}}, "job.toml")
    assert settings.model == "m"
    assert len(notes) == 1
    assert "[ollama_instances] is ignored" in notes[0]


def test_load_time_options_leave_a_job() -> None:
    options = {"num_ctx": 9000, "num_gpu": 1, "num_thread": 2, "temperature": 0.1}
    settings, notes = job.parse_job_settings({"options": options}, "job.toml")
    assert settings.options == {"temperature": 0.1}
    assert settings.context_length == 9000
    assert len(notes) == 3


def test_wrong_job_settings_are_all_listed() -> None:
    with pytest.raises(ConfigError) as caught:
        job.parse_job_settings({"modle": "a", "priority": 3, "context_length": "x", "spool": "/"}, "job.toml")
    assert caught.value.message.splitlines()[0] == "job.toml: modle: no such job setting; did you mean model?"
    assert len(caught.value.message.splitlines()) == 4


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"label": "x" * 101}, "label: must be text that is not empty, 100 characters at most"),
        ({"notify": ["mail:a@b"] * 6}, "notify: must be a list of text with 5 or fewer"),
    ],
)
def test_a_value_that_is_too_long_is_refused_with_how_long_it_may_be(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError) as error:
        job.parse_job_settings(given, "job.toml")
    assert error.value.message == f"job.toml: {reason}"


def test_committed_pages_are_the_generators_output() -> None:
    remedy = "generate it again from obatchd.settings.text"
    assert (ROOT / "etc/obatchd.toml").read_text() == settings_text.commented_toml(), remedy
    assert (ROOT / "docs/settings.md").read_text() == settings_text.reference_page(), remedy


def test_the_commented_file_names_every_setting_with_its_default(tmp_path: Path) -> None:
    lines = settings_text.commented_toml().splitlines()
    used = "\n".join(line[1:] if line.startswith("#") and not line.startswith("# ") else line for line in lines)
    assert len([line for line in used.splitlines() if " = " in line and line[0] != "#"]) == len(list(reading.leaves()))
    assert reading.load(write(tmp_path, used), environ={}, flags={}) == Settings()
    assert reading.load(write(tmp_path, "\n".join(lines)), environ={}, flags={}) == Settings()


def test_the_settings_shown_can_be_read_again(tmp_path: Path) -> None:
    text = 'system_message = "a\\\\x41\\u007F \\"quoted\\"\\nline \U0001f600"\n[[servers.group]]\ngpus = [0, "GPU-1"]\n'
    settings, origin = reading.load_with_origin(write(tmp_path, text), environ={}, flags={})
    shown = settings_text.show(settings, origin)
    assert tomllib.loads(shown)["system_message"] == settings.system_message
    assert reading.load(write(tmp_path, shown), environ={}, flags={}) == settings


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"template": 5}, "template: must be text"),
        ({"sample": "x"}, "sample: must be a whole number from 1 to 10000"),
        ({"skip_done": [1]}, "skip_done: must be true or false or text"),
    ],
)
def test_a_wrong_job_setting_is_not_said_to_be_possible_as_a_table(given: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        job.parse_job_settings(given, "job.toml")
    assert caught.value.message == f"job.toml: {reason}"
