"""An inspection as a readable table for a terminal of 80 columns; nothing in it can command the terminal."""

import re
import unicodedata
from collections.abc import Iterator, Sequence

from edgemed.terminal_text import clean
from edgemed_convert.inspection import Inspection, TensorFacts, VocabularyFacts
from edgemed_convert.output import readable_bytes

WIDTH = 80
_LABEL_WIDTH = 18
_MAX_TEMPLATE_LINES = 40
_MAX_ADDED_TOKENS = 24
_MAX_METADATA_KEYS = 400
_MAX_TENSOR_ROWS = 200
_BLOCK = re.compile(r"^(.*?\.)(\d+)(\..*)$")


def as_text(inspection: Inspection) -> str:
    """Return the whole table, lines of at most 80 columns."""
    sections = [
        _summary(inspection),
        _types(inspection),
        _vocabulary(inspection.vocabulary) if inspection.vocabulary else [],
        _template(inspection.chat_template),
        ["METADATA", *_metadata(inspection)],
        ["TENSORS  (shape as ggml has it: row length first)", *_tensors(inspection.tensors)]
        if inspection.tensors
        else [],
        ["REMARKS", *(line for remark in inspection.remarks for line in _wrapped(remark))]
        if inspection.remarks
        else [],
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def _summary(facts: Inspection) -> list[str]:
    first, others = facts.files[0], len(facts.files) - 1
    rows = [("file", f"{first} and {others} more parts" if others else first)]
    rows.append(("kind", facts.kind))
    if facts.name:
        rows.append(("name", facts.name))
    if facts.architecture:
        rows.append(("architecture", facts.architecture))
    rows.append(("size", readable_bytes(facts.size_bytes)))
    if facts.parameters and facts.imatrix is None:
        rows.append(("parameters", f"{facts.parameters:,}"))
    if facts.bits_per_weight is not None:
        rows.append(("bits per weight", f"{facts.bits_per_weight:.2f}"))
    if facts.file_type:
        rows.append(("label", facts.file_type))
    if facts.context_length is not None:
        rows.append(("context length", f"{facts.context_length:,} tokens"))
    if facts.lora_ranks:
        rows.append(("LoRA ranks", ", ".join(map(str, facts.lora_ranks[:16]))))
    if facts.imatrix is not None:
        matrix = facts.imatrix
        rows.append(("entries", f"{matrix.entries:,}"))
        rows.append(("collected on", ", ".join(matrix.datasets) or "not said"))
        rows.append(("chunks", f"{matrix.chunks or 0:,} of {matrix.chunk_tokens or 0:,} tokens"))
    return [_row(label, value) for label, value in rows]


def _types(facts: Inspection) -> list[str]:
    if not facts.types:
        return []
    total = max(1, sum(row.size_bytes for row in facts.types))
    lines = [f"{'TYPE':<10}{'TENSORS':>9}{'PARAMETERS':>20}{'SIZE':>14}{'SHARE':>8}"]
    lines += [
        f"{row.type:<10}{row.tensors:>9,}{row.parameters:>20,}{readable_bytes(row.size_bytes):>14}"
        f"{row.size_bytes / total:>8.1%}"
        for row in facts.types
    ]
    return lines


def _vocabulary(facts: VocabularyFacts) -> list[str]:
    says = {True: "yes", False: "no", None: "not said"}
    lines = [
        "TOKENS",
        _row("tokenizer", f"{facts.model or 'not said'}, splitting rule {facts.pre or 'not said'}"),
        _row("tokens", f"{facts.tokens:,}"),
    ]
    if facts.types:
        lines.append(_row("kinds", ", ".join(f"{name} {count:,}" for name, count in facts.types.items())))
    lines.append(_row("adds BOS", f"{says[facts.add_bos]}; adds EOS: {says[facts.add_eos]}"))
    lines += [_row(role, f"{token.id:>7}  {_text(token.text)}") for role, token in facts.special.items()]
    special = {token.id for token in facts.special.values()}
    others = [token for token in facts.added if token.id not in special]
    lines += [_row("added", f"{token.id:>7}  {_text(token.text)}") for token in others[:_MAX_ADDED_TOKENS]]
    if len(others) > _MAX_ADDED_TOKENS:
        lines.append(_row("", f"… and {len(others) - _MAX_ADDED_TOKENS:,} more"))
    return lines


def _template(template: str | None) -> list[str]:
    if not template:
        return []
    lines = [part for line in clean(template).split("\n") for part in _pieces(line, WIDTH - 2)]
    shown = [f"  {line}" for line in lines[:_MAX_TEMPLATE_LINES]]
    if len(lines) > _MAX_TEMPLATE_LINES:
        shown.append(f"  … and {len(lines) - _MAX_TEMPLATE_LINES:,} more lines")
    return ["CHAT TEMPLATE", *shown]


def _metadata(facts: Inspection) -> Iterator[str]:
    for number, (key, value) in enumerate(facts.metadata.items()):
        if number == _MAX_METADATA_KEYS:
            yield f"  … and {len(facts.metadata) - number:,} more"
            return
        if key == "tokenizer.chat_template":
            continue
        shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        name = _clipped(_one_line(key), WIDTH - 2)
        if _width(name) <= 44:
            yield f"  {_padded(name, 44)} {_clipped(_one_line(shown), WIDTH - 47)}"
        else:
            yield f"  {name}"
            yield f"  {'':44} {_clipped(_one_line(shown), WIDTH - 47)}"


def _tensors(tensors: Sequence[TensorFacts]) -> Iterator[str]:
    """One line for the tensors of all layers that are alike."""
    groups: dict[tuple[str, tuple[int, ...], str], list[int]] = {}
    for tensor in tensors:
        found = _BLOCK.match(tensor.name)
        name = f"{found[1]}*{found[3]}" if found else tensor.name
        groups.setdefault((name, tuple(tensor.shape), tensor.type), []).append(tensor.size_bytes)
    for number, ((name, shape, type_name), sizes) in enumerate(groups.items()):
        if number == _MAX_TENSOR_ROWS:
            yield f"  … and {len(groups) - number:,} more kinds"
            return
        times = f"{len(sizes)} ×" if len(sizes) > 1 else ""
        what = _clipped(" × ".join(map(str, shape)), 18)
        yield (
            f"  {_padded(_clipped(_one_line(name), 32), 32)} {times:>6} {what:>18} {type_name:<7}"
            f"{readable_bytes(sum(sizes)):>10}"
        )


def _row(label: str, value: str) -> str:
    return f"{_padded(_clipped(_one_line(label), _LABEL_WIDTH - 1), _LABEL_WIDTH)}" + _clipped(
        _one_line(value), WIDTH - _LABEL_WIDTH
    )


def _text(text: str | None) -> str:
    return "(no such token)" if text is None else text


def _one_line(text: str) -> str:
    """Text without anything that a terminal obeys, its line breaks and tabs written out."""
    return clean(text.replace("\r", "\\r")).replace("\n", "\\n").replace("\t", "\\t")


def _wrapped(text: str) -> Iterator[str]:
    line = ""
    for word in _one_line(text).split(" "):
        if line and _width(f"  {line} {word}") > WIDTH:
            yield f"  {line}"
            line = word
        else:
            line = f"{line} {word}" if line else word
    if line:
        yield _clipped(f"  {line}", WIDTH)


def _width(text: str) -> int:
    """Columns that the text takes."""
    return sum(_columns(character) for character in text)


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _clipped(text: str, width: int) -> str:
    if _width(text[: width + 1]) <= width and len(text) <= width:
        return text
    kept, columns = [], 0
    for character in text[: 4 * width]:
        columns += _columns(character)
        if columns > width - 1:
            break
        kept.append(character)
    return "".join(kept) + "…"


def _padded(text: str, width: int) -> str:
    return text + " " * max(0, width - _width(text))


def _pieces(line: str, width: int) -> Iterator[str]:
    piece, columns = "", 0
    for character in line:
        columns += _columns(character)
        if columns > width:
            yield piece
            piece, columns = "", _columns(character)
        piece += character
    yield piece
