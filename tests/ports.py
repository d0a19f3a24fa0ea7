"""Ports for what listens on this machine: below those that the kernel gives to outgoing connections, one of which may take a
port between its being found free and its being listened on."""

import random
import socket

FIRST, LAST = 15_000, 32_700  # Linux gives out those from 32,768 on


def free_ports(count: int = 1) -> int:
    """The first of `count` ports in a row that nobody listens on; another each time, so that neighbours hardly meet."""
    for _ in range(1000):
        first = random.SystemRandom().randrange(FIRST, LAST - count)
        probes = [socket.socket() for _ in range(count)]
        try:
            for offset, probe in enumerate(probes):
                probe.bind(("127.0.0.1", first + offset))
            return first
        except OSError:
            continue
        finally:
            for probe in probes:
                probe.close()
    raise RuntimeError("no free ports")
