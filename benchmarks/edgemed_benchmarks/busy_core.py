"""One core kept busy by a child process: what the clinic's other programs do to the answers."""

import contextlib
import multiprocessing
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

from edgemed import operating_system

SETTLING_SECONDS = 2.0
"""Before the question comes: the engine looks for free cores about once a second."""
_START_SECONDS = 30.0
_LOOP = 200_000


@contextlib.contextmanager
def busy_core(settling_seconds: float = SETTLING_SECONDS) -> Iterator[None]:
    """Keep one core busy inside the block; the child ends with it, and with this process however it dies."""
    spawn = multiprocessing.get_context("spawn")
    told, tells = spawn.Pipe(duplex=False)
    child = spawn.Process(target=_spin, args=(tells,), name="edgemed-busy", daemon=True)
    child.start()
    tells.close()
    try:
        if told.poll(_START_SECONDS):
            time.sleep(settling_seconds)
        yield
    finally:
        child.kill()
        child.join()
        child.close()
        told.close()


def _spin(tells: Connection) -> None:
    operating_system.ignore_termination_signals()
    tells.send(True)
    parent = multiprocessing.parent_process()
    while parent is None or parent.is_alive():
        for _unused in range(_LOOP):
            pass
