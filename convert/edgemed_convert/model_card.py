"""The model card of a pack: what people should know before they use the model, in Markdown.

States only what files say or what was measured; what is not known is said to be unknown. Called by `pack.py`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgemed import __version__
from edgemed.check_report import CheckReport, CheckResult, QuantizationLoss
from edgemed.manifest import ModelManifest
from edgemed_convert.output import readable_bytes

_MARKS = {"passed": "passed", "failed": "**FAILED**", "not_run": "not run"}
_INTENDED_USE = (
    "Not stated by those who packed it. Until somebody has tested it for a use, take it for none: nothing it "
    "writes may replace the judgement of a health worker."
)
_LIMITS = (
    "The checks above tell whether the file says what the trained model says. They say nothing about whether "
    "that is medically right: a language model invents facts, doses and sources in fluent sentences, most of "
    "all where its data had little. Medical quality was not measured here."
)
_LOGITS = ("logits", "logits_first_layers")


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What the card tells beyond the manifest."""

    report: CheckReport | None
    """What the gate found; None when the file was never checked."""
    file: str
    """Name of the file in the report."""
    unchecked_because: Sequence[str] = ()
    """Sentences; empty for a file that passed."""
    importance_matrix: str | None = None
    training_card: str = ""
    """Markdown of whoever trained the model."""
    intended_use: str = ""
    limits: str = ""
    licence_files: Sequence[str] = ()


def model_card(manifest: ModelManifest, facts: CardFacts) -> str:
    """Return the card as Markdown, ending with a line feed."""
    sections = [
        _title(manifest, facts),
        ["## What it is", "", *_table(["", ""], _what_it_is(manifest))],
        ["## How it was made", "", *_how(manifest, facts)],
        ["## Training", "", _demoted(facts.training_card)] if facts.training_card.strip() else [],
        ["## Data", "", *_data(manifest)],
        ["## Checks", "", *_checks(manifest, facts)],
        ["## Intended use", "", facts.intended_use.strip() or _INTENDED_USE],
        ["## Limits", "", facts.limits.strip() or _LIMITS],
        ["## Licence", "", *_licence(manifest, facts)],
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def _title(manifest: ModelManifest, facts: CardFacts) -> list[str]:
    lines = [f"# {manifest.name}"]
    if manifest.notice:
        lines += ["", f"**{manifest.notice[:1].upper()}{manifest.notice[1:]}.**"]
    if manifest.unchecked:
        lines += ["", "**This file was packed unchecked, by force:**", ""]
        lines += [f"- {reason}" for reason in facts.unchecked_because]
    return lines


def _what_it_is(manifest: ModelManifest) -> Iterator[tuple[str, str]]:
    shape = manifest.shape
    types = ", ".join(f"{count} tensors {name}" for name, count in manifest.tensor_types.items())
    yield "Files", ", ".join(f"`{file.name}` ({readable_bytes(file.size_bytes)})" for file in manifest.files)
    if manifest.kind == "adapter":
        yield "Kind", "LoRA adapter: works only with the base model file named below"
    yield "Quantization type", f"{manifest.quantization_type or 'not stated'}; really present: {types}"
    numbers = f"{shape.parameters:,} parameters, {shape.block_count} layers, {shape.vocabulary_size:,} tokens"
    yield "Architecture", f"{shape.architecture}: {numbers}, hidden size {shape.embedding_length:,}"
    if manifest.kind == "model":
        yield "Context length", f"{manifest.context_length:,} tokens"
    yield "Base model", manifest.base_model or "not stated"
    if manifest.base_fingerprint:
        yield "Base model's fingerprint", f"`{manifest.base_fingerprint}`"
    if manifest.base_sha256:
        yield "Base file's SHA-256", f"`{manifest.base_sha256}`"
    for adapter in manifest.adapters:
        weight = "" if adapter.weight == 1 else f", weight {adapter.weight:g}"
        sha256 = f", `{adapter.sha256}`" if adapter.sha256 else ""
        yield "Adapter merged in", f"{adapter.name}{weight}{sha256}"
    yield "Licence", manifest.license or "not stated"
    yield "SHA-256", f"`{manifest.sha256}`"


def _how(manifest: ModelManifest, facts: CardFacts) -> list[str]:
    quantized = manifest.quantization_type not in (None, "F32", "F16", "BF16")
    steps = []
    if manifest.adapters:
        steps.append("The adapters were merged into the base model in float32, and the result rounded once.")
    steps.append(f"Converted with edgemed-convert {__version__}.")
    if quantized and manifest.kind == "model":
        steps.append(f"Quantized to {manifest.quantization_type} with llama.cpp's quantizer.")
    if facts.importance_matrix:
        steps.append(f"Quantized with the importance matrix {facts.importance_matrix}.")
    if manifest.recipe_sha256:
        steps.append(f"Training recipe: SHA-256 `{manifest.recipe_sha256}`.")
    if not facts.training_card.strip():
        steps.append("How it was trained is not stated.")
    return [f"- {step}" for step in steps]


def _data(manifest: ModelManifest) -> list[str]:
    lines = []
    if manifest.data:
        rows = [(source.name, source.source, source.license) for source in manifest.data]
        lines = _table(["Data", "Source", "Licence"], rows)
    else:
        lines = ["Not stated."]
    if manifest.dataset_sha256:
        lines += ["", f"Dataset card: SHA-256 `{manifest.dataset_sha256}`."]
    return lines


def _checks(manifest: ModelManifest, facts: CardFacts) -> list[str]:
    report = facts.report
    if report is None:
        return ["This file was never checked."]
    names = {facts.file, *(loss.parent for loss in report.quantization_losses if loss.file == facts.file)}
    results = [result for result in report.results if result.file in names]
    lines = [
        f"Checked with edgemed-convert {report.edgemed_version} against {report.model}"
        + "".join(f" + {adapter.name}" for adapter in report.adapters)
        + ". `check.json` holds every number.",
        "",
        *_table(["Check", "File", "Result", "Found"], [_row(result) for result in results]),
    ]
    if not any(result.name in _LOGITS for result in report.results):
        lines += ["", "The logits were not compared with those of the trained model."]
    not_run = [result for result in results if result.status == "not_run"]
    if not_run:
        what = ", ".join(dict.fromkeys(result.name.replace("_", " ") for result in not_run))
        lines += ["", f"What did not run is not proved: {what}."]
    losses = [loss for loss in report.quantization_losses if loss.file == facts.file]
    if losses:
        lines += ["", "### What quantizing cost", "", *_losses(losses)]
    return lines


def _row(result: CheckResult) -> tuple[str, str, str, str]:
    return result.name.replace("_", " "), f"`{result.file}`", _MARKS[result.status], result.sentence


def _losses(losses: Sequence[QuantizationLoss]) -> list[str]:
    header = ["Text", "Positions", "Mean KL (nats)", "99 % below", "Worst", "Same first choice", "Perplexity"]
    rows = [
        (
            loss.text,
            f"{loss.scored_tokens:,}",
            f"{loss.mean_kl_nats:.2g} ± {loss.mean_kl_uncertainty_nats:.1g}",
            f"{loss.percentile_99_kl_nats:.2g}",
            f"{loss.highest_kl_nats:.2g}",
            f"{loss.top1_share:.1%}",
            f"{loss.parent_perplexity:.2f} → {loss.perplexity:.2f}",
        )
        for loss in losses
    ]
    return [*_table(header, rows), "", f"Against `{losses[0].parent}`, on the gate's own texts."]


def _licence(manifest: ModelManifest, facts: CardFacts) -> list[str]:
    lines = [
        f"The weights are under the base model's licence, {manifest.license}; the data above have theirs."
    ]
    if facts.licence_files:
        lines.append(
            "Its text lies beside this card: " + ", ".join(f"`{name}`" for name in facts.licence_files)
        )
    return lines


def _table(header: Sequence[str], rows: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(header)} |",
        f"|{'|'.join('---' for _ in header)}|",
        *(f"| {' | '.join(_cell(text) for text in row)} |" for row in rows),
    ]


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _demoted(markdown: str) -> str:
    """Put a document's headings two levels lower, without its front matter."""
    text = re.sub(r"\A---\n.*?\n---\n", "", markdown.replace("\r\n", "\n"), flags=re.DOTALL)
    return re.sub(r"^(#{1,4}) ", r"##\1 ", text.strip(), flags=re.MULTILINE)
