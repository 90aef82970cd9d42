"""``python -m obatchd.cli.port_guard close|open``: shut the servers' ports to other users of this host, as root.

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

from obatchd.cli.commands.config import file_or_system
from obatchd.client.runtime import PORT_GUARD
from obatchd.errors import ConfigError
from obatchd.settings import reading
from obatchd.settings.tables.servers import SERVICE_PORTS

_TABLE = "obatchd"


def main(arguments: list[str]) -> int:
    """Returns the exit code; 1 says that the ports stay open, and why on stderr."""
    if len(arguments) != 2 or arguments[0] not in ("close", "open"):
        print("usage: python -m obatchd.cli.port_guard close|open USER", file=sys.stderr)
        return 2
    PORT_GUARD.unlink(missing_ok=True)
    if shutil.which("nft") is None:
        print("nft is missing: every user of this host can reach the servers' ports; install nftables", file=sys.stderr)
        return 1
    _nft(f"add table inet {_TABLE}\ndelete table inet {_TABLE}\n")
    if arguments[0] == "open":
        return 0
    try:
        settings = reading.load(file_or_system(None), environ=os.environ, flags={})
        uid = pwd.getpwnam(arguments[1]).pw_uid
    except KeyError:
        print(f"there is no user {arguments[1]}, so the servers' ports stay open", file=sys.stderr)
        return 1
    except ConfigError as error:
        print(f"the configuration cannot be used, so the servers' ports stay open:\n{error.message}", file=sys.stderr)
        return 1
    first = settings.servers.base_port
    last = first + SERVICE_PORTS - 1
    if problem := _nft(rules(uid, first, last)):
        print(f"nft refused ({problem}): the servers' ports stay open to every user of this host", file=sys.stderr)
        return 1
    PORT_GUARD.write_text(json.dumps({"first": first, "last": last}) + "\n")
    PORT_GUARD.chmod(0o644)
    return 0


def rules(uid: int, first: int, last: int) -> str:
    """A ruleset that refuses connections of any uid but ``uid`` and root to these ports of this host.

    A packet from this host to one of its own addresses leaves through ``lo``, whatever the address.
    """
    return (
        f"table inet {_TABLE} {{\n"
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
