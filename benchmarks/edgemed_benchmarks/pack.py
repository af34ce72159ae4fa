"""The command `pack`: a small anonymous file of some runs, for a stick or a slow line.

No answer, question, name, path, host, user or serial is in it: only words that `pack_words` knows.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from edgemed.errors import StorageError, UsageError
from edgemed.operating_system import write_atomically
from edgemed.records import Arm, Machine, Record, RunStart, Sample
from edgemed_benchmarks.errors import RecordError
from edgemed_benchmarks.journal import Run
from edgemed_benchmarks.pack_format import LARGEST_PACK_BYTES, SUFFIX, encode_pack, read_runs
from edgemed_benchmarks.pack_thinning import LEVELS, Thinning, thin
from edgemed_benchmarks.pack_words import STAND_IN_DIGITS, rule_of
from edgemed_benchmarks.score import score_run
from edgemed_benchmarks.score_format import Scores

_LONGEST_SHOWN = 70

S = TypeVar("S", bound=msgspec.Struct)


class PreparedPack(NamedTuple):
    """A pack before it is written."""

    data: bytes
    thinning: Thinning
    runs: list[tuple[list[Record], Scores | None]]

    @property
    def contents(self) -> list[str]:
        """All that is in it, in lines for the person who hands it on; every word that is not a number."""
        return list(_contents(self))


def prepare_pack(
    files: Sequence[Path], *, keep_names: bool = False, largest_bytes: int = LARGEST_PACK_BYTES
) -> PreparedPack:
    """Make a pack of record files (or of other packs) in memory.

    Args:
        files: each with one run or more.
        keep_names: keep the models' names as they are. Otherwise a name that is not made of usual words is
            replaced by the first digits of the file's SHA-256.
        largest_bytes: what the pack may have; times are thinned until it does.

    Raises:
        RecordError: a file cannot be read, one run is given twice, or it is too much for one pack.
    """
    whole = [_cleaned_run(run, scores, keep_names) for run, scores in _read_all(files)]
    for thinning in LEVELS:
        runs = [(thin(records, thinning), scores) for records, scores in whole]
        data = encode_pack(runs)
        if len(data) <= largest_bytes:
            return PreparedPack(data, thinning, runs)
    raise RecordError(
        f"The pack would have {len(data) / 1000:.0f} kB, and {largest_bytes / 1000:.0f} kB is the most.",
        hint="Pack fewer runs in one file.",
    )


def write_pack(prepared: PreparedPack, out: Path) -> Path:
    """Write a pack; return its path.

    Args:
        out: gets the suffix of packs if it has none; must not be there yet.

    Raises:
        UsageError: the file is there already.
        StorageError: it cannot be written.
    """
    path = out if out.name.endswith(SUFFIX) else out.with_name(out.name + SUFFIX)
    if path.exists():
        raise UsageError(f"{path} is there already.", hint="Choose another --out.")
    try:
        write_atomically(path, prepared.data)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror}.", hint="Check the folder and the disk."
        ) from error
    return path


def _read_all(files: Sequence[Path]) -> list[tuple[Run, Scores | None]]:
    found: dict[str, Path] = {}
    runs = []
    for file in files:
        for run, scores in read_runs(file):
            if run.start.run_id in found:
                raise RecordError(
                    f"{found[run.start.run_id]} and {file} hold the same run.", hint="Give each run once."
                )
            found[run.start.run_id] = file
            runs.append((run, scores or _scored(run)))
    return runs


def _scored(run: Run) -> Scores | None:
    scores = score_run(run)
    return scores if scores.scores else None


def _cleaned_run(run: Run, scores: Scores | None, keep_names: bool) -> tuple[list[Record], Scores | None]:
    records = [_cleaned(record) for record in run.records]
    arms = _named(run.start.arms, [_cleaned(arm) for arm in run.start.arms], keep_names)
    records[0] = msgspec.structs.replace(records[0], arms=arms, texts_kept=False)
    if scores is not None:
        scores = msgspec.structs.replace(_cleaned(scores), arms=[arm.label for arm in arms])
    return records, scores


def _named(before: Sequence[Arm], cleaned: Sequence[Arm], keep_names: bool) -> list[Arm]:
    """Give arms back a name and a label that tell them apart."""
    named: list[Arm] = []
    for first, arm in zip(before, cleaned, strict=True):
        by_hash = f"model-{first.model_sha256[:STAND_IN_DIGITS]}"
        label = first.label if keep_names else arm.label or arm.model_name or by_hash
        if any(label == other.label for other in named):
            label = f"{label} {len(named)}"
        name = first.model_name if keep_names else arm.model_name or by_hash
        named.append(msgspec.structs.replace(arm, model_name=name, label=label))
    return named


def _cleaned(struct: S) -> S:
    """Return a struct of which each text went through its rule."""
    kind = type(struct)
    fields = {}
    for name, default in _defaults(kind).items():
        value = _cleaned_value(getattr(struct, name), kind, name)
        fields[name] = default if value == "" else value
    return kind(**fields)


def _cleaned_value(value: Any, kind: type[msgspec.Struct], field: str) -> Any:
    if isinstance(value, str):
        return rule_of(kind, field)(value)
    if isinstance(value, msgspec.Struct):
        return _cleaned(value)
    if isinstance(value, list):
        return [each for each in (_cleaned_value(each, kind, field) for each in value) if each != ""]
    if isinstance(value, dict):
        rule = rule_of(kind, field)
        return {
            rule(key): each
            for key, each in value.items()
            if rule(key) and not isinstance(each, str | list | dict | msgspec.Struct)
        }
    return value


@cache
def _defaults(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Return what stands in each field whose text was left out."""
    return {
        field.name: "" if field.default is msgspec.NODEFAULT else field.default
        for field in msgspec.structs.fields(kind)
    }


def _contents(prepared: PreparedPack) -> Iterator[str]:
    samples = Counter(
        record.suite for records, _scores in prepared.runs for record in records if isinstance(record, Sample)
    )
    counted = ", ".join(f"{count} {suite}" for suite, count in samples.items())
    yield f"{len(prepared.data) / 1000:.1f} kB: {len(prepared.runs)} run{'s' * (len(prepared.runs) != 1)}"
    yield f"answers, times only, no text: {counted or 'none'}"
    for records, scores in prepared.runs:
        for record in records:
            if isinstance(record, RunStart):
                yield f"run {record.run_id}, {record.utc[:10]}, {record.profile}"
                yield from (f"  model {arm.label}: {arm.model_name}" for arm in record.arms)
            elif isinstance(record, Machine):
                yield f"  machine {record.machine_id}: {record.cpu_model}; {record.system}"
        if scores is not None:
            yield f"  {len(scores.scores)} scores of its answers, {len(scores.items)} of single questions"
    items = {
        record.item_id for records, _ in prepared.runs for record in records if isinstance(record, Sample)
    }
    yield f"ids of {len(items)} questions, such as {', '.join(sorted(items)[:3]) or 'none'}"
    yield f"to make it small: {prepared.thinning.sentence}"
    yield "every other word in it:"
    yield from _wrapped(sorted(set(_words(prepared))))


def _words(prepared: PreparedPack) -> Iterator[str]:
    for records, _scores in prepared.runs:
        for record in records:
            yield from _texts(record)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            if not name.endswith(("sha256", "chain", "utc", "fingerprint", "item_id")):
                yield from _texts(getattr(value, name))
    elif isinstance(value, list | dict):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, str) and value:
        yield value


def _wrapped(words: Sequence[str]) -> Iterator[str]:
    line = " "
    for word in words:
        if len(line) + len(word) > _LONGEST_SHOWN and line.strip():
            yield line
            line = " "
        line += f" {word},"
    yield line.rstrip(",")
