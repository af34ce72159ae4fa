"""What every energy counter of a machine offers, and the sentence for those that cannot be used."""

from typing import NamedTuple, Protocol

from edgemed.records import EnergyGrade


class EnergySource(Protocol):
    """One way to know how much energy was used. Not shared between threads: see `energy.Meter`."""

    @property
    def name(self) -> str:
        """What measures, and what is measured: `rapl: package-0 + dram (processor and memory)`."""

    @property
    def grade(self) -> EnergyGrade:
        """How far it can be trusted; see `records.EnergyGrade`."""

    @property
    def least_joules(self) -> float:
        """A smaller difference is its own step, not a measurement: 10 % of it may be wrong."""

    @property
    def least_seconds(self) -> float:
        """In a shorter time it may not have been renewed."""

    def joules(self) -> float | None:
        """Return the energy used since the source was opened; None when it does not tell now."""


class NoSource(NamedTuple):
    """Why one way to measure cannot be used here."""

    way: str
    reason: str
    advice: str = ""
