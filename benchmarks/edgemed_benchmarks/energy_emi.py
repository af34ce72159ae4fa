"""Energy of the processor from Windows' Energy Meter Interface; grade A.

Windows 11 shows the counters of Intel's and AMD's processors there, and a few tablets a real meter. Written
after Microsoft's emi.h; tried on byte strings of that layout, on no Windows machine yet.
"""

import re
import struct
from collections.abc import Callable
from typing import NamedTuple

from edgemed import operating_system
from edgemed.records import EnergyGrade
from edgemed_benchmarks.energy_source import NoSource

ENERGY_METERS = "45bd8344-7ed6-49cf-a440-c276c933b053"
GET_VERSION, GET_METADATA_SIZE, GET_METADATA, GET_MEASUREMENT = 0x224000, 0x224004, 0x224008, 0x22400C
JOULES_PER_PICOWATT_HOUR = 3.6e-9
LEAST_JOULES = 0.1
LEAST_SECONDS = 1.0
"""How often drivers renew it is not documented; those seen do so some times a second."""
_NAMES_BYTES = 64
"""Maker and model, 16 wide characters each."""
_MOST_METADATA_BYTES = 2**16

Ask = Callable[[str, int, int], bytes | None]
"""Device, request, size of the reply."""


class _Channel(NamedTuple):
    device: str
    place: int
    """Among the device's channels."""
    channels: int
    name: str


class Emi:
    """The sum of the processors' packages and their memory, without channels that are part of these."""

    grade: EnergyGrade = "A"
    least_joules = LEAST_JOULES
    least_seconds = LEAST_SECONDS

    def __init__(self, channels: list[_Channel], ask: Ask) -> None:
        """Use `open_emi`."""
        self._channels = channels
        self._ask = ask
        self.name = f"emi: {' + '.join(channel.name for channel in channels)} (processor)"
        self._before = [self._picowatt_hours(channel) for channel in channels]

    def joules(self) -> float | None:
        """Return the energy since the source was opened."""
        now = [self._picowatt_hours(channel) for channel in self._channels]
        used = 0
        for before, after in zip(self._before, now, strict=True):
            if before is None or after is None or after < before:
                return None
            used += after - before
        return used * JOULES_PER_PICOWATT_HOUR

    def _picowatt_hours(self, channel: _Channel) -> int | None:
        # For each channel its energy and when it was taken, 8 bytes each.
        reply = self._ask(channel.device, GET_MEASUREMENT, 16 * channel.channels)
        if reply is None or len(reply) < 16 * (channel.place + 1):
            return None
        return int(struct.unpack_from("<Q", reply, 16 * channel.place)[0])


def open_emi(
    *,
    devices: Callable[[str], list[str]] = operating_system.windows_devices,
    ask: Ask = operating_system.windows_device_request,
) -> Emi | NoSource:
    """Return the counters, or why they cannot be used; the arguments are for tests."""
    way = "Windows' energy meter (EMI)"
    names = devices(ENERGY_METERS)
    if not names:
        return NoSource(way, "This system shows none.")
    channels = [channel for name in names for channel in _channels(name, ask)]
    chosen = [channel for channel in channels if _words(channel.name) & {"PKG", "PACKAGE", "SOCKET"}]
    if not chosen:
        return NoSource(way, "It has no counter for the whole processor.")
    # The memory of Intel's is beside its package; other rails are inside.
    chosen += [channel for channel in channels if {"RAPL", "DRAM"} <= _words(channel.name)]
    emi = Emi(chosen, ask)
    return emi if emi.joules() is not None else NoSource(way, "It is there, but cannot be read.")


def _channels(device: str, ask: Ask) -> list[_Channel]:
    version = ask(device, GET_VERSION, 2)
    size = ask(device, GET_METADATA_SIZE, 4)
    if version is None or size is None or len(version) < 2 or len(size) < 4:
        return []
    metadata_bytes = int.from_bytes(size[:4], "little")
    if not 0 < metadata_bytes <= _MOST_METADATA_BYTES:
        return []
    metadata = ask(device, GET_METADATA, metadata_bytes)
    if metadata is None:
        return []
    try:
        names = _names_1(metadata) if int.from_bytes(version, "little") == 1 else _names_2(metadata)
    except (struct.error, UnicodeDecodeError):
        return []
    return [_Channel(device, place, len(names), name) for place, name in enumerate(names)]


def _names_1(metadata: bytes) -> list[str]:
    """EMI_METADATA_V1: unit, maker, model, revision, bytes of the name, name."""
    _unit, _names, _revision, name_bytes = struct.unpack_from(f"<I{_NAMES_BYTES}sHH", metadata)
    return [_text(metadata, 8 + _NAMES_BYTES, name_bytes)]


def _names_2(metadata: bytes) -> list[str]:
    """EMI_METADATA_V2: maker, model, revision, number of channels; of each: unit, bytes of the name, name."""
    _names, _revision, count = struct.unpack_from(f"<{_NAMES_BYTES}sHH", metadata)
    names, at = [], _NAMES_BYTES + 4
    for _channel in range(count):
        _unit, name_bytes = struct.unpack_from("<IH", metadata, at)
        names.append(_text(metadata, at + 6, name_bytes))
        at += 6 + name_bytes
    return names


def _text(data: bytes, start: int, size: int) -> str:
    if start + size > len(data):
        raise struct.error("the name ends behind the data")
    return data[start : start + size].decode("utf-16-le").split("\0")[0]


def _words(name: str) -> set[str]:
    return set(re.split(r"[^A-Z0-9]+", name.upper()))
