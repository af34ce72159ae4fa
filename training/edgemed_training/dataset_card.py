"""The dataset card for people: what is in a prepared data set, where it came from and what was done to it."""

from collections.abc import Iterator

from edgemed_training.records import DatasetCard, LeakFacts, SourceFacts

_NOT_STATED = "**not stated: find out before you publish a model**"


def card_markdown(card: DatasetCard) -> str:
    """Return the card as Markdown, its tables with one row a line."""
    parts = [
        "# Dataset card",
        _summary(card),
        "## Sources",
        "\n".join(_sources(card)),
        "## Cleaning",
        "\n".join(_rules(card)),
        _duplicates(card),
        "## Split",
        _split(card),
        "## Leaks",
        leak_sentence(card.leaks),
        "## Data of persons",
        _patient_data(card),
        "## Lengths",
        "\n".join(_lengths(card)),
        "## Files",
        "\n".join(f"- `{name}`: SHA-256 {sha256}" for name, sha256 in card.files.items()),
    ]
    return "\n\n".join(parts) + "\n"


def leak_sentence(leaks: LeakFacts) -> str:
    """Say in one or two sentences whether the held-out pairs are a test."""
    if not leaks.leaking:
        return (
            f"None of the {leaks.heldout} held-out pairs shares its document or disease, its question, or "
            "half of its answer's word 5-grams with a training pair."
        )
    return (
        f"**{leaks.leaking} of {leaks.heldout} held-out pairs leak**: {leaks.shared_group} share a document "
        f"or disease with training, {leaks.shared_question} a question, {leaks.answer_contained} at least "
        f"half of the answer, {leaks.answer_exact} all of it. Scores on them measure memory."
    )


def _summary(card: DatasetCard) -> str:
    return (
        f"Made by `edgemed-train prepare` {card.edgemed_version}. {card.split.train} pairs for training, "
        f"{card.split.heldout} held out, {card.split.unused} unused."
    )


def _duplicates(card: DatasetCard) -> str:
    facts = card.duplicates
    return (
        f"Near-duplicate answers that stayed: {facts.pairs_in_clusters} pairs in {facts.clusters} clusters, "
        f"the largest of {facts.largest_cluster}."
    )


def _sources(card: DatasetCard) -> Iterator[str]:
    yield "| name | licence | file | shape | pairs | without an answer | SHA-256 |"
    yield "|---|---|---|---|---:|---:|---|"
    for source in card.sources:
        yield (
            f"| {_cell(_named(source))} | {_cell(source.license) or _NOT_STATED} | {_cell(source.file)} "
            f"| {source.shape} | {source.rows} | {source.unanswered} | {source.sha256} |"
        )


def _named(source: SourceFacts) -> str:
    return f"{source.name} ({source.source})" if source.source else source.name


def _rules(card: DatasetCard) -> Iterator[str]:
    yield "| rule | what it looks for | before | changed | dropped | after |"
    yield "|---|---|---:|---:|---:|---:|"
    for count in card.rules:
        done = f"{count.changed} | {count.dropped}" if count.enabled else "left out | left out"
        yield f"| {count.rule} | {_cell(count.meaning)} | {count.before} | {done} | {count.after} |"


def _split(card: DatasetCard) -> str:
    split = card.split
    if split.method == "random":
        return (
            f"At random, as in the study (seed {split.seed}): pairs of one document may stand on both sides. "
            f"SHA-256 {split.sha256}."
        )
    return (
        f"By group and near-duplicate cluster (seed {split.seed}): {split.units} units, the largest of "
        f"{split.largest_unit} pairs. SHA-256 {split.sha256}."
    )


def _patient_data(card: DatasetCard) -> str:
    found = card.patient_data
    personal = _counts(found.personal) or "none found"
    allowed = " (allowed by whoever made this data set)" if found.personal and found.allowed else ""
    return f"Personal: {personal}{allowed}. Institutional: {_counts(found.institutional) or 'none found'}."


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} in {count} pairs" for name, count in sorted(counts.items()))


def _lengths(card: DatasetCard) -> Iterator[str]:
    yield "| length | mean | median | p95 | p99 | largest |"
    yield "|---|---:|---:|---:|---:|---:|"
    for name, spread in card.lengths.items():
        yield (
            f"| {name.replace('_', ' ')} | {spread.mean:.0f} | {spread.median:.0f} | {spread.p95:.0f} "
            f"| {spread.p99:.0f} | {spread.largest:.0f} |"
        )


def _cell(text: str) -> str:
    """Return text that cannot break a table."""
    return text.replace("|", "\\|").replace("\n", " ")
