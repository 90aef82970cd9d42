"""The load ``links``: how fast the device exchanges data with the host, and with other devices."""

from __future__ import annotations

from collections.abc import Iterator

from obatchd.burnin.stress.device import Device
from obatchd.burnin.stress.protocol import Bandwidth, LinkKind
from obatchd.burnin.stress.telling import Meter, Teller

REPEATS = 5


def measure(device: Device, teller: Teller, meter: Meter) -> Iterator[None]:
    """Each link in turn, some times over: what else happens on the host slows single measurements down."""
    ways: list[tuple[LinkKind, str]] = [("to_host", ""), ("from_host", "")]
    ways += [("to_peer", peer) for peer in device.peers()]
    for _ in range(REPEATS):
        for kind, peer in ways:
            bytes_per_s = device.copy_bytes_per_s(kind, device.facts.copy_bytes, peer)
            teller.tell(Bandwidth(teller.at_s, kind, peer, bytes_per_s))
            meter.tell_in_time()
            yield
