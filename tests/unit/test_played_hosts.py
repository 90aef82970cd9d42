"""Hosts that are played say what a head believes, and answer all that they are offered."""

from __future__ import annotations

import asyncio

from hosts_support import heads, until
from played_support import PlayedHost
from session_support import pair


async def test_a_played_host_answers_a_job() -> None:
    async with heads() as head:
        await head.rig.add(1, 40)
        host = PlayedHost("node01", 2, slots=4, service_s=lambda prompt: 0.01)
        one, other = pair()
        tasks = [asyncio.create_task(head.hosts.attend(one, "node01")), asyncio.create_task(host.serve(other))]
        await until(lambda: len(head.rig.finished) == 40)
        assert sorted(head.rig.lines()) == [(line, True) for line in range(1, 41)]
        assert {finished.server for finished in head.rig.finished} == {"node01.gpu0", "node01.gpu1"}
        assert sum(len(server.spans) for server in host.servers.values()) == 40
        host.session.end("the test is over")
        await asyncio.gather(*tasks)
