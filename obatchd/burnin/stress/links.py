"""The load ``links``: how fast the device exchanges data with the host, and with other devices."""

from __future__ import annotations

from collections.abc import Iterator

from obatchd.burnin.stress.device import Device
from obatchd.burnin.stress.protocol import Bandwidth, LinkKind
from obatchd.burnin.stress.telling import Meter, Teller

REPEATS = 5
_WARM_UP_S = 1.0


def measure(device: Device, teller: Teller, meter: Meter) -> Iterator[None]:
    """Each link in turn, some times over: what else happens on the host slows single measurements down.

    Before that it is used for a second, because the link of a card that was idle runs slowly, to save power.
    """
    ways: list[tuple[LinkKind, str]] = [("to_host", ""), ("from_host", "")]
    ways += [("to_peer", peer) for peer in device.peers()]
    warm_s = teller.clock.monotonic() + _WARM_UP_S
    while teller.clock.monotonic() < warm_s:
        for kind, _ in ways[:2]:
            device.copy_bytes_per_s(kind, device.facts.copy_bytes)
        meter.tell_in_time()
        yield
    for _ in range(REPEATS):
        for kind, peer in ways:
            bytes_per_s = device.copy_bytes_per_s(kind, device.facts.copy_bytes, peer)
            teller.tell(Bandwidth(teller.at_s, kind, peer, bytes_per_s))
            meter.tell_in_time()
            yield
