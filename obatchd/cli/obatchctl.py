"""``obatchctl``: the operator's command line. Each command's module is imported only when it is used."""

from __future__ import annotations

import difflib
import io
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from obatchd import __version__, terminal
from obatchd.cli import exit_codes
from obatchd.cli.command import Invocation, clean, print_json
from obatchd.client.runtime import default_spool
from obatchd.errors import ConfigError, DaemonDownError, ForbiddenError, ObatchError

# In the order of the help. The module's attribute has the command's name, with _command behind it.
_COMMANDS = (
    "status", "jobs", "job", "submit", "results", "compare", "cancel", "retry", "rm", "pause", "resume", "usage",
    "servers", "gpus", "drain", "undrain", "reload", "models", "key", "audit", "metrics", "web", "burnin", "alarms",
    "hosts", "cluster", "backup", "restore", "config", "doctor", "start", "stop", "logs", "completion", "version",
    "help",
)  # fmt: skip
# Modules that do not have their command's name.
_ELSEWHERE = {
    **dict.fromkeys(("job", "cancel", "pause", "resume", "usage"), "commands.jobs"),
    **dict.fromkeys(("status", "metrics", "drain", "undrain", "reload"), "commands.host"),
    **dict.fromkeys(("start", "stop", "logs", "version", "help"), "commands.service"),
    "restore": "commands.backup",
    "doctor": "doctor.doctor",
    "hosts": "hosts",
    "key": "keys",
    "audit": "audit",
    "cluster": "cluster",
    "web": "web",
}


class _Commands(click.Group):
    """Reports obatchd's errors of every command below it in plain words, or as JSON, with their exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            close = difflib.get_close_matches(args[0], _COMMANDS, 1)
            raise click.UsageError(f"{error.message} Did you mean '{close[0]}'?", ctx) if close else error from None

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f"obatchd.cli.{_ELSEWHERE.get(cmd_name, f'commands.{cmd_name}')}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # Wrong usage ends the parsing before --json is reached.
        ctx.meta[__name__] = "--json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            if not ctx.meta[__name__]:
                raise
            print_json({"error": {"code": "usage", "message": error.format_message()}})
            sys.exit(exit_codes.USAGE)
        except ObatchError as error:
            if ctx.obj.json:
                print_json({"error": {"code": error.code, "message": error.message}})
            else:
                click.echo(clean(error.message, keep="\n"), err=True)
            if isinstance(error, DaemonDownError) and error.code != "permission":
                sys.exit(exit_codes.NOT_RUNNING)
            if isinstance(error, DaemonDownError | ForbiddenError):
                sys.exit(exit_codes.UNKNOWN)
            sys.exit(exit_codes.CONFIG if error.code == ConfigError.code else ctx.obj.failure)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--spool",
    envvar=["OBATCH_SPOOL", "OBATCHD_SPOOL"],
    default=default_spool,
    show_default="your own daemon's, else /var/spool/obatch",
    type=click.Path(file_okay=False, path_type=Path),
    help="The spool of the daemon to talk to; or set OBATCH_SPOOL.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Answer with one JSON document; it may also stand behind a command."
)
@click.version_option(__version__, prog_name="obatchctl")
@click.pass_context
def main(ctx: click.Context, spool: Path, as_json: bool) -> None:
    """Talk to obatchd: see what it does, give it work, take servers out and back.

    Exit codes: 0 good, 1 failed or degraded, 2 usage, 3 the daemon is not running, 4 no permission, 78 configuration.
    """
    if sys.stdin is None:  # it is closed, as in  obatchctl rm JOB <&-
        sys.stdin = io.StringIO()
    ctx.color = terminal.colours()
    ctx.obj = Invocation(Path(os.path.expanduser(spool)).absolute(), as_json)
