"""``python -m obatchd.cli.port_guard close|open USER [host]``: shut servers' ports to other users of the host, as root.

Ollama has no authentication: whoever reaches a server's port can use and delete its models, and fill its queue. The
system service's unit runs this with privilege before the daemon starts and after it has ended.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

from obatchd.cli.commands.config import file_or_system
from obatchd.client.runtime import PORT_GUARD
from obatchd.errors import ConfigError
from obatchd.settings import reading
from obatchd.settings.tables.servers import SERVICE_PORTS

_TABLE = "obatchd"
_HOST = "host"  # of a head elsewhere: obatchd-host.service, which may run beside a head that has no servers here
_HOST_FILE = Path("/etc/obatch/host.toml")
_PORTS_OF_HOST = PORT_GUARD.with_name("obatchd-host.ports")


def main(arguments: list[str]) -> int:
    """Returns the exit code; 1 says that the ports stay open, and why on stderr."""
    action, *rest = arguments
    if action not in ("close", "open") or len(rest) not in (1, 2) or rest[1:] not in ([], [_HOST]):
        print(f"usage: python -m obatchd.cli.port_guard close|open USER [{_HOST}]", file=sys.stderr)
        return 2
    of_host = rest[1:] == [_HOST]
    table, told = (f"{_TABLE}_{_HOST}", _PORTS_OF_HOST) if of_host else (_TABLE, PORT_GUARD)
    told.unlink(missing_ok=True)
    if shutil.which("nft") is None:
        print("nft is missing: every user of this host can reach the servers' ports; install nftables", file=sys.stderr)
        return 1
    _nft(f"add table inet {table}\ndelete table inet {table}\n")
    if action == "open":
        return 0
    try:
        settings = reading.load(_HOST_FILE if of_host else file_or_system(None), environ=os.environ, flags={})
        uid = pwd.getpwnam(rest[0]).pw_uid
    except KeyError:
        print(f"there is no user {rest[0]}, so the servers' ports stay open", file=sys.stderr)
        return 1
    except ConfigError as error:
        print(f"the configuration cannot be used, so the servers' ports stay open:\n{error.message}", file=sys.stderr)
        return 1
    first = settings.servers.base_port
    last = first + SERVICE_PORTS - 1
    if problem := _nft(rules(uid, first, last, table)):
        print(f"nft refused ({problem}): the servers' ports stay open to every user of this host", file=sys.stderr)
        return 1
    told.write_text(json.dumps({"first": first, "last": last}) + "\n")
    told.chmod(0o644)
    return 0


def rules(uid: int, first: int, last: int, table: str = _TABLE) -> str:
    """A ruleset that refuses connections of any uid but ``uid`` and root to these ports of this host.

    A packet from this host to one of its own addresses leaves through ``lo``, whatever the address.
    """
    return (
        f"table inet {table} {{\n"
        "  chain output {\n"
        "    type filter hook output priority filter; policy accept;\n"
        f'    oif "lo" tcp dport {first}-{last} meta skuid != {{ 0, {uid} }} reject with tcp reset\n'
        "  }\n}\n"
    )


def _nft(script: str) -> str:
    """Run a script; empty when it went well, else the words of nft."""
    done = subprocess.run(["nft", "-f", "-"], input=script, capture_output=True, text=True, check=False)
    return done.stderr.strip().splitlines()[0] if done.returncode and done.stderr.strip() else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
