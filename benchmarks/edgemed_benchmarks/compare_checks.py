"""What must be the same before arms are compared: refused where a number would mislead, said where it may."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import combinations

from edgemed_benchmarks.compare_values import ArmValues
from edgemed_benchmarks.errors import RecordError

_MANY_INVALID = 0.2
_NAMED = 3
"""Files that a sentence names before it only counts them."""


def refuse_what_misleads(arms: Sequence[ArmValues]) -> None:
    """Raise where arms cannot stand side by side.

    Raises:
        RecordError: a run was given twice, or one label stands for different model files.
    """
    files: dict[str, str] = {}
    for arm in arms:
        if files.setdefault(arm.run_id, arm.file) != arm.file:
            raise RecordError(
                f"{files[arm.run_id]} and {arm.file} hold the same run.", hint="Give each run once."
            )
    for first, second in combinations(arms, 2):
        same_name = first.arm.model_name == second.arm.model_name and first.arm.label == second.arm.label
        if same_name and first.arm.model_sha256 != second.arm.model_sha256:
            raise RecordError(
                f"{first.file} and {second.file} both call an arm {first.arm.model_name} {first.arm.label}, "
                f"but the model files differ (SHA-256 {first.arm.model_sha256[:12]}… and "
                f"{second.arm.model_sha256[:12]}…).",
                hint="Measure the same model file on both, or install one of them under another name.",
            )


def flags(arms: Sequence[ArmValues]) -> list[str]:
    """Return a sentence for each thing that differs beside what is compared."""
    return list(
        dict.fromkeys(
            [
                *(said for arm in arms for said in _alone(arm)),
                *_questions(arms),
                *_runs(arms),
                *_settings(arms),
            ]
        )
    )


def _alone(arm: ArmValues) -> list[str]:
    said = []
    taken = arm.ok + arm.suspect + arm.invalid
    if not arm.finished:
        said.append(f"{arm.file}: the run did not come to its end; its numbers rest on fewer questions.")
    if taken and arm.invalid / taken > _MANY_INVALID:
        said.append(
            f"{arm.file}, {arm.arm.label}: {arm.invalid} of {taken} samples are invalid and left out; the "
            "machine was not fit for measuring."
        )
    if arm.cut:
        said.append(
            f"{arm.file}, {arm.arm.label}: {arm.cut} answers were cut because they were late; the whole "
            "answer takes longer than its time here says."
        )
    return said


def _questions(arms: Sequence[ArmValues]) -> Iterable[str]:
    for name in dict.fromkeys(name for arm in arms for name in arm.item_files):
        by_sha256 = _by([arm for arm in arms if name in arm.item_files], _sha256_of(name))
        if len(by_sha256) > 1:
            files = "; ".join(_files(having) for having in by_sha256.values())
            yield f"The questions under the name {name} differ and are not compared between: {files}."


def _runs(arms: Sequence[ArmValues]) -> Iterable[str]:
    for machine, having in _by(arms, lambda arm: arm.machine.machine_id).items():
        if len({arm.run_id for arm in having}) > 1:
            yield (
                f"{_files(having)} are different runs on the machine {machine}: how warm and how busy it was "
                "is in each difference of speed. Measure in one run to take that out."
            )


def _settings(arms: Sequence[ArmValues]) -> Iterable[str]:
    for what, of in _SETTINGS.items():
        by_value = _by(arms, of)
        if len(by_value) > 1:
            values = "; ".join(f"{value} ({_files(having)})" for value, having in by_value.items())
            yield f"{what} differs: {values}."


_SETTINGS: dict[str, Callable[[ArmValues], Hashable]] = {
    "The edgemed version": lambda arm: arm.edgemed_version,
    "The llama.cpp build": lambda arm: arm.machine.llama_cpp_build or "not known",
    "The kind of kernels": lambda arm: arm.machine.kernels or "not known",
    "The number of threads": lambda arm: arm.arm.threads or "chosen by the app",
    "The context length": lambda arm: arm.arm.context_length,
    "The temperature": lambda arm: arm.arm.temperature,
    "The repetition penalty": lambda arm: arm.arm.repetition_penalty,
    "The power source": lambda arm: arm.machine.power_source or "not known",
}


def _sha256_of(name: str) -> Callable[[ArmValues], Hashable]:
    return lambda arm: arm.item_files[name]


def _by(arms: Sequence[ArmValues], of: Callable[[ArmValues], Hashable]) -> dict[Hashable, list[ArmValues]]:
    groups: dict[Hashable, list[ArmValues]] = {}
    for arm in arms:
        groups.setdefault(of(arm), []).append(arm)
    return groups


def _files(arms: Sequence[ArmValues]) -> str:
    names = list(dict.fromkeys(arm.file for arm in arms))
    if len(names) == 1 and len(arms) < _NAMED:
        return f"{names[0]} {', '.join(arm.arm.label for arm in arms)}"
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
