"""How fast this machine reads memory with all cores: the ceiling of the decode rate.

Each token of an answer reads the whole model once, so a share of this number says how good the engine is on
a machine, whatever the machine. Measured with C's `strlen`, which reads once, without interruption, as wide
as the processor can, and lets go of Python's lock; no package is needed for it.
"""

import ctypes
import threading
import time

from edgemed import machine, machine_counters, operating_system

BUFFER_BYTES = 128 * 2**20
"""Of all threads together, and never less than four times the largest cache."""
LEAVE_FREE_SHARE = 0.5
"""At most so much of the free memory is used."""
LIMIT_SECONDS = 1.2
LEAST_ROUNDS = 3


def memory_bandwidth(
    *, threads: int | None = None, buffer_bytes: int | None = None, limit_seconds: float = LIMIT_SECONDS
) -> float | None:
    """Return bytes read per second by all cores together, the best of some rounds; in less than 2 s.

    The best, for everything that disturbs makes it lower. None when too little memory is free to leave the
    caches behind.

    Args:
        threads: None is one for each physical core.
        buffer_bytes: of all threads together; None looks at what is free.
        limit_seconds: new rounds begin until then.
    """
    threads = threads or machine.physical_cores()
    if buffer_bytes is None:
        wanted_bytes = max(BUFFER_BYTES, 4 * (machine_counters.largest_cache_bytes() or 0))
        least_bytes = wanted_bytes // 4
        buffer_bytes = min(wanted_bytes, int(machine.available_memory_bytes() * LEAVE_FREE_SHARE))
        if buffer_bytes < least_bytes:
            return None
    each_bytes = max(1, buffer_bytes // threads)
    # `create_string_buffer` would fill one by one: bytes have a 0 behind them already, where strlen ends.
    buffers = [b"\x01" * each_bytes for _thread in range(threads)]
    strlen = operating_system.c_strlen()
    strlen.restype = ctypes.c_size_t
    strlen.argtypes = [ctypes.c_char_p]
    return threads * each_bytes / _best_round_seconds(strlen, buffers, limit_seconds)


def _best_round_seconds(strlen: "ctypes._NamedFuncPointer", buffers: list[bytes], limit: float) -> float:
    barrier = threading.Barrier(len(buffers))
    going_on = True
    rounds: list[list[tuple[float, float]]] = [[] for _buffer in buffers]
    stop_at = time.perf_counter() + limit

    def read(place: int) -> None:
        nonlocal going_on
        while going_on:
            barrier.wait()
            began = time.perf_counter()
            strlen(buffers[place])
            rounds[place].append((began, time.perf_counter()))
            # All must see the same answer, so one gives it between two meetings.
            if barrier.wait() == 0:
                going_on = len(rounds[place]) < LEAST_ROUNDS or time.perf_counter() < stop_at
            barrier.wait()

    readers = [threading.Thread(target=read, args=(place,)) for place in range(len(buffers))]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    best_seconds: float = min(
        max(end for _begin, end in together) - min(begin for begin, _end in together)
        for together in zip(*rounds, strict=True)
    )
    return best_seconds
