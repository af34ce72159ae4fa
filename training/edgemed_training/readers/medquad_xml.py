"""MedQuAD's XML: one file, or the whole tree of folders, in all three of its dialects.

Most files have <Document> with <QAPair>. Four NINDS files have <doc> with <pair> and lower-case names (16
answered pairs that a reader of the first dialect alone misses: 16,407 of 16,423), one CDC file <DiseaseFile>.
"""

from pathlib import Path
from xml.parsers import expat

from edgemed_training.errors import DataError
from edgemed_training.readers.plain_file import read_bytes
from edgemed_training.records import QAPair, SourcePair

_ROOTS = ("document", "doc", "diseasefile")
_PAIRS = ("qapair", "pair")
_FOCUS = ("focus", "doctitle-focus")


def read_medquad_file(path: Path) -> tuple[list[SourcePair], int]:
    """Return the answered pairs of one file, and how many questions have no answer.

    MedlinePlus took back its answers: most files of three folders hold questions alone.

    Raises:
        DataError: unreadable, broken XML (the line is named), a document type or entity, another kind of XML.
    """
    document = _Document(path)
    document.parse(read_bytes(path))
    return document.pairs, document.unanswered


class _Document:
    """One file while expat walks through it."""

    def __init__(self, path: Path) -> None:
        self.pairs: list[SourcePair] = []
        self.unanswered = 0
        self._path = path
        self._text: dict[str, str] = {}
        self._open: str | None = None
        self._institution = self._focus = self._pair_id = ""
        self._line = self._count = 0
        self._parser = parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        # An entity can stand for gigabytes or for another file; MedQuAD has none.
        parser.StartDoctypeDeclHandler = self._refuse_document_type

    def parse(self, data: bytes) -> None:
        try:
            self._parser.Parse(data, True)
        except expat.ExpatError as error:
            raise DataError(
                f"{self._path} is broken XML in line {error.lineno}: {expat.ErrorString(error.code)}.",
                hint="Copy the file again from where it is published.",
            ) from error

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        name = tag.lower()
        if not self._count and not self._institution:
            self._begin(name, {key.lower(): value for key, value in attributes.items()})
        if name in _PAIRS:
            self._count += 1
            self._line = self._parser.CurrentLineNumber
            self._pair_id = attributes.get("pid") or str(self._count)
            self._text.update(question="", answer="")
        elif name in ("question", "answer"):
            self._open = name
        elif name in _FOCUS:
            self._open = "focus"
            self._text["focus"] = ""

    def _begin(self, root: str, attributes: dict[str, str]) -> None:
        if root not in _ROOTS:
            raise DataError(
                f"{self._path} is not MedQuAD: its XML begins with <{root}>.",
                hint="Of XML only MedQuAD's can be read; save other data as CSV or JSON Lines.",
            )
        self._institution = attributes.get("source") or attributes.get("corpus") or "unknown"

    def _end(self, tag: str) -> None:
        name = tag.lower()
        if name in ("question", "answer") or name in _FOCUS:
            self._open = None
        elif name in _PAIRS:
            self._keep()

    def _characters(self, text: str) -> None:
        if self._open:
            self._text[self._open] += text

    def _keep(self) -> None:
        question, answer = self._text["question"].strip(), self._text["answer"].strip()
        if not question or not answer:
            self.unanswered += 1
            return
        document = f"{self._path.parent.name}/{self._path.name.split('.')[0]}"
        pair = QAPair(
            id=f"{document}#{self._pair_id}",
            question=question,
            answer=answer,
            group=self._text.get("focus", "").strip() or document,
            source=self._institution,
        )
        self.pairs.append(SourcePair(pair, self._path.name, f"line {self._line}"))

    def _refuse_document_type(self, *_declaration: object) -> None:
        raise DataError(
            f"{self._path} declares a document type in line {self._parser.CurrentLineNumber}, which can hide "
            "entities that grow without end or open other files.",
            hint="Take the <!DOCTYPE …> out if you trust the file; MedQuAD has none.",
        )
