"""What a benchmark does around each answer, timed on this machine: the estimate of a run counts it.

On a laptop it is some milliseconds; on a board with a memory card the line on the disk alone may take longer
than a short answer.
"""

import contextlib
import os
import time
from pathlib import Path
from typing import NamedTuple

from edgemed import operating_system
from edgemed.errors import StorageError
from edgemed_benchmarks.canary import ROUNDS, Canary
from edgemed_benchmarks.stats import median
from edgemed_benchmarks.watch import Watch

_TIMES = 5
_LINE = b"x" * 2000 + b"\n"
"""About the size of a sample's line."""


class Overhead(NamedTuple):
    """Seconds around an answer, besides what the engine needs."""

    each_seconds: float
    """Counters and a line on the disk."""
    canary_seconds: float
    """Of the fixed piece of work, at most once in `canary.EVERY_NS`."""


def measure_overhead(folder: Path, canary: Canary) -> Overhead:
    """Time the counters, and lines in a file of this folder, which is deleted again.

    Raises:
        StorageError: nothing can be written there.
    """
    file = folder / f".edgemed-bench-{os.getpid()}"
    watch = Watch(canary=canary)
    canary.ratio()
    seconds = []
    try:
        with file.open("wb", buffering=0) as opened:
            for _time in range(_TIMES):
                started = time.monotonic()
                watch.start(os.getpid())
                watch.finish(wall_ns=1, engine_cpu_ns=None, threads=0)
                opened.write(_LINE)
                operating_system.fsync_file(opened.fileno())
                seconds.append(time.monotonic() - started)
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be written: {error.strerror}.", hint="Check the disk, or change --out."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
    return Overhead(median(seconds).value or 0.0, ROUNDS * canary.reference_ns / 1e9)
