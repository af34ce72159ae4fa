"""What a fleet's folder says, as plain text for the terminal: 80 columns, readable without colour."""

import textwrap
from collections import Counter
from collections.abc import Iterator

from edgemed_benchmarks.fleet import Drift, Fleet, FleetMachine
from edgemed_benchmarks.stats import EarlyVerdict

_TITLES = {
    "no": "Miss the limits",
    "undecided": "Not known yet",
    "yes": "Keep the limits",
}
_MOST_LINES = 40
"""Of machines that keep the limits or are undecided; those that miss them are all named."""


def fleet_text(found: Fleet) -> str:
    """Return what could be read, who misses the limits, and who became slower."""
    return "\n".join(_lines(found)) + "\n"


def _lines(found: Fleet) -> Iterator[str]:
    verdicts = Counter(machine.verdict for machine in found.machines)
    yield (
        f"{found.files} files, {len({one.machine_id for one in found.machines})} machines: "
        f"{verdicts['no']} miss the limits, {verdicts['undecided']} not known yet, "
        f"{verdicts['yes']} keep them"
    )
    yield from _left_out(found)
    for verdict, title in _TITLES.items():
        machines = [machine for machine in found.machines if machine.verdict == verdict]
        if machines:
            yield ""
            yield f"{title} ({len(machines)})"
            shown = machines if verdict == "no" else machines[:_MOST_LINES]
            for machine in shown:
                yield from _machine(machine)
            if len(shown) < len(machines):
                yield f"  and {len(machines) - len(shown)} more"
    yield ""
    yield from _drift(found)


def _left_out(found: Fleet) -> Iterator[str]:
    if found.bad_files:
        yield "  Not counted:"
    for bad in found.bad_files:
        yield from _wrapped(f"! {bad.name} {bad.reason}.")
    if found.duplicates:
        yield from _wrapped(f"! {found.duplicates} runs are there more than once; each counts once.")
    if found.wrong_clocks:
        some = ", ".join(found.wrong_clocks[:3]) + (" …" if len(found.wrong_clocks) > 3 else "")
        yield from _wrapped(
            f"! {len(found.wrong_clocks)} runs have a date that cannot be true and take no part in what "
            f"became slower: {some}."
        )


def _machine(machine: FleetMachine) -> Iterator[str]:
    rate = "rate not known" if machine.decode_rate is None else f"{machine.decode_rate:.3g} tokens/s"
    yield f"  {machine.machine_id}: {machine.model_name} {machine.label}, {rate}, {machine.cpu_model}"
    yield (
        f"      first words {_verdict(machine.first_words)}; whole answer {_verdict(machine.full_answer)}; "
        f"{machine.utc[:10]}"
    )
    if machine.invalid:
        yield f"      {machine.invalid} of {machine.samples} samples invalid"


def _verdict(found: EarlyVerdict) -> str:
    late = f"{found.misses} of {found.samples} late"
    return f"{found.verdict}, {late}" + (f", {found.more} more needed" if found.more else "")


def _drift(found: Fleet) -> Iterator[str]:
    if found.since is None or not found.compared:
        yield "Slower than before: not known; no machine has runs on both sides of a day."
        return
    yield (
        f"Slower since {found.since} by {found.drop:.0%} or more, beyond noise: {len(found.drifted)} of "
        f"{found.compared} that can be compared"
    )
    for one in found.drifted:
        yield from _drifted(one)


def _drifted(one: Drift) -> Iterator[str]:
    low, high = one.ratio.low, one.ratio.high
    interval = "" if low is None or high is None else f" ({low:.2f} to {high:.2f})"
    yield f"  {one.machine_id}: {one.model_name} {one.label}"
    yield (
        f"      {one.rate_before:.3g} → {one.rate_after:.3g} tokens/s, × {one.ratio.value:.2f}{interval}, "
        f"{one.ratio.samples} questions"
    )
    if one.also_changed:
        yield from _wrapped(f"also changed: {'; '.join(one.also_changed)}", indent="      ")


def _wrapped(text: str, indent: str = "  ") -> list[str]:
    return textwrap.wrap(text, 80, initial_indent=indent, subsequent_indent=indent + "  ")
