"""The results of `training_speed`: medians, ratios, shares and targets, as a struct for JSON and as Markdown."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.measurements.training_arms import ARMS, SHAPES

_FLOPS = 4
"""For one weight and token: 2 forward, 2 for the gradient of the activations; frozen weights have none."""
_FULL_MICRO_STEP = 8000  # 4 rows of 2048 are never quite full
_COLUMNS = (
    "arm", "dropout", "recompute", "attention", "real tokens/s (range)", "× TRL default", "× Unsloth", "padding",
    "real tokens in a micro-step / step", "peak GiB", "of 4N", "held-out loss", "seconds with warm-up",
)  # fmt: skip


@dataclass
class Measured:
    """One arm over all rounds."""

    rounds: list[dict[str, Any]] = field(default_factory=list)
    failure: str | None = None
    heldout_loss: float | None = None

    def median(self, what: str) -> float | None:
        """Return the median over the rounds; None where nothing was measured."""
        values = [found[what] for found in self.rounds if what in found]
        return statistics.median(values) if values else None


def flop_share(tokens_per_second: float, parameters: int, peak_flops: float) -> float:
    """Return the share of the peak that useful work takes: 4 FLOP for a weight and a real token.

    Args:
        tokens_per_second: without padding.
        parameters: without the embedding table.
        peak_flops: FLOP/s of the card.
    """
    return _FLOPS * parameters * tokens_per_second / peak_flops


def as_result(
    options: Mapping[str, Any], size: str, device: Mapping[str, Any], measured: Mapping[str, Measured]
) -> dict[str, Any]:
    """Return what results.json holds of one size.

    Args:
        options: of the command line.
        size: of the model.
        device: its name and peak.
        measured: by arm; "" is the untrained model.
    """
    peak = options["peak_tflops"] * 1e12 if options["peak_tflops"] else device["peak_flops"]
    parameters = SHAPES[size].parameters_without_embedding()
    untrained = measured.get("")
    arms: dict[str, Any] = {}
    for name in options["arms"]:
        one = measured[name]
        speed = one.median("tokens_per_second")
        arms[name] = {
            **asdict(ARMS[name]),
            "failure": one.failure,
            "tokens_per_second": speed,
            "flop_share": flop_share(speed, parameters, peak) if speed else None,
            "peak_gib": peak_bytes / 2**30 if (peak_bytes := one.median("peak_bytes")) else None,
            "heldout_loss": one.heldout_loss,
            "rounds": one.rounds,
        }
    counts = {(found["examples"], found["tokens"]) for one in measured.values() for found in one.rounds}
    return {
        "size": size,
        "device": device["device"],
        "peak_flops": peak,
        "peak_is_measured": not options["peak_tflops"],
        "parameters_without_embedding": parameters,
        "settings": {key: str(v) if isinstance(v, Path) else v for key, v in options.items()},
        "same_tokens_in_all_arms": len(counts) <= 1,
        "untrained_heldout_loss": untrained.heldout_loss if untrained else None,
        "arms": arms,
        "targets": targets(arms),
    }


def targets(arms: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the four comparisons: what is asked, what was found, whether it holds; None where an arm is missing."""

    def fastest(library: str, dropout: float | None = None, packed: bool | None = None) -> float | None:
        speeds = [
            arm["tokens_per_second"]
            for arm in arms.values()
            if arm["library"] == library
            and arm["tokens_per_second"]
            and dropout in (None, arm["dropout"])
            and packed in (None, arm["packed"])
        ]
        return max(speeds, default=None)

    def ratio(one: float | None, other: float | None) -> float | None:
        return one / other if one and other else None

    shares = [
        arm["flop_share"]
        for arm in arms.values()
        if arm["library"] == "edgemed"
        and arm["rounds"]
        and arm["rounds"][-1]["tokens_per_micro_step"] >= _FULL_MICRO_STEP
    ]
    found = (
        ("real tokens/s of TRL's default, dropout 0.25", 2.5, ratio(fastest("edgemed", 0.25), fastest("trl", packed=False))),
        ("real tokens/s of Unsloth, dropout 0.25", 1.0, ratio(fastest("edgemed", 0.25), fastest("unsloth", 0.25))),
        ("real tokens/s of Unsloth, dropout 0", 0.9, ratio(fastest("edgemed", 0), fastest("unsloth", 0))),
        (f"share of the 4N FLOP ceiling, {_FULL_MICRO_STEP:,} real tokens in a micro-step", 0.35, max(shares, default=None)),
    )  # fmt: skip
    return [
        {"what": what, "at_least": limit, "found": value, "holds": None if value is None else value >= limit}
        for what, limit, value in found
    ]


def as_markdown(result: Mapping[str, Any]) -> str:
    """Return one size's tables."""
    arms = result["arms"]
    default = arms.get("trl-default", {}).get("tokens_per_second")
    how = "measured" if result["peak_is_measured"] else "as given"
    about_all = (
        f"Peak {result['peak_flops'] / 1e12:.4g} TFLOP/s ({how}), N = {result['parameters_without_embedding']:,}. "
        f"Held-out loss without training: {_number(result['untrained_heldout_loss'], '.4f')}. Every arm saw the "
        f"same examples and real tokens: {'yes' if result['same_tokens_in_all_arms'] else 'NO'}."
    )
    lines = [f"## {result['size']}: {result['device']}", "", about_all, "", *_table_head(_COLUMNS)]
    for name, arm in arms.items():
        about = f"| {name} | {arm['dropout']:g} | {arm['recompute']} |"
        if not arm["rounds"]:
            lines.append(f"{about} {arm['failure']} |" + " |" * (len(_COLUMNS) - 4))
            continue
        unsloth = _fastest_speed(
            a for a in arms.values() if (a["library"], a["dropout"]) == ("unsloth", arm["dropout"])
        )
        lines.append(f"{about} {_cells(arm, default, unsloth)} |")
    lines += ["", *_table_head(("target", "at least", "found", "holds"))]
    for target in result["targets"]:
        holds = {True: "yes", False: "no", None: "not measured"}[target["holds"]]
        lines.append(
            f"| {target['what']} | {target['at_least']} | {_number(target['found'], '.3f')} | {holds} |"
        )
    versions = sorted({f"{name}: {_versions(arm)}" for name, arm in arms.items() if arm["rounds"]})
    return "\n".join([*lines, "", *(f"- {line}" for line in versions), ""])


def _table_head(columns: Iterable[str]) -> list[str]:
    names = list(columns)
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]


def _cells(arm: Mapping[str, Any], default: float | None, unsloth: float | None) -> str:
    speeds, last = [found["tokens_per_second"] for found in arm["rounds"]], arm["rounds"][-1]
    median = arm["tokens_per_second"]
    failure = f"; then {arm['failure']}" if arm["failure"] else ""
    cells = [
        last["attention"],
        f"{median:,.0f} ({min(speeds):,.0f}-{max(speeds):,.0f}){failure}",
        _number(median / default if default else None, ".2f"),
        _number(median / unsloth if unsloth else None, ".2f"),
        f"{last['padding_share']:.1%}",
        f"{last['tokens_per_micro_step']:,.0f} / {last['tokens_per_step']:,.0f}",
        _number(arm["peak_gib"], ".1f"),
        f"{arm['flop_share']:.1%}",
        _number(arm["heldout_loss"], ".4f"),
        f"{last['seconds_with_warm_up']:.0f}",
    ]
    return " | ".join(cells)


def _fastest_speed(arms: Iterable[Mapping[str, Any]]) -> float | None:
    return max((arm["tokens_per_second"] for arm in arms if arm["tokens_per_second"]), default=None)


def _versions(arm: Mapping[str, Any]) -> str:
    last = arm["rounds"][-1]
    return (
        ", ".join(f"{name} {version}" for name, version in last["libraries"].items())
        + f"; {last['optimizer']}"
    )


def _number(value: float | None, how: str) -> str:
    return "–" if value is None else format(value, how)
