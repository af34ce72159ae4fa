"""Importance matrices collected on in-domain text: chat-formatted questions and answers."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemed.errors import StorageError, UsageError
from edgemed.gguf_header import read_shards
from edgemed_convert.errors import LlamaCppError
from edgemed_convert.imatrix_file import ImportanceMatrix, layer_matrices, write_imatrix
from edgemed_convert.llama.messages import Loaded
from edgemed_convert.llama.process import LlamaProcess
from edgemed_convert.llama.token_windows import spread, windows_of
from edgemed_convert.output import Progress, no_progress

CHUNK_TOKENS = 512
"""As llama-imatrix reads: long enough that most tokens have context."""
MINIMUM_CHUNKS = 20
"""10,240 tokens. A column's weight is an average over them; with fewer it changes with the choice of text."""
DEFAULT_CHUNKS = 200
_MAX_LINE_BYTES = 16 * 2**20
_EXAMPLES_PER_REQUEST = 64
_SHAPES = (
    '{"question", "answer"}, {"instruction", "input", "output"}, {"prompt", "completion"}, '
    '{"messages": [{"role", "content"}, …]} or {"text"}'
)
_ROLES = ("system", "user", "assistant")

Conversation = list[tuple[str, str]]


@dataclass(frozen=True)
class Example:
    """One line of the data: a conversation, or text that stands for itself."""

    line: int
    messages: Conversation
    """Role and content of each message; empty for plain text."""
    text: str = ""


@dataclass(frozen=True)
class ImatrixReport:
    """What a matrix was collected on."""

    path: Path
    examples: int
    """Conversations or texts in the data."""
    data_tokens: int
    """All of the data."""
    chunks: int
    """Chunks of 512 tokens that were read, spread evenly over the data."""
    matrices: int
    chat_formatted: bool
    """Whether the model's own chat template was used."""


def collect_imatrix(
    model: Path,
    data: Path,
    target: Path,
    *,
    process: LlamaProcess,
    chunks: int = DEFAULT_CHUNKS,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> ImatrixReport:
    """Read the data with the model and save what each weight matrix was fed.

    Args:
        model: a GGUF file, best the unquantized one.
        data: JSON Lines of questions and answers; `read_examples` names the shapes.
        chunks: how many chunks of 512 tokens to read at most.

    Raises:
        UsageError: a bad line, too little text, or the target exists.
        ModelError: the model cannot be loaded.
        LlamaCppError: the model's matrices cannot be watched, or one was never used.
        StorageError: the data cannot be read or the matrix not written.
    """
    if chunks < MINIMUM_CHUNKS:
        raise UsageError(f"{chunks} chunks are too few: {MINIMUM_CHUNKS} are needed.", hint=_enough_hint())
    if target.exists() and not overwrite:
        raise UsageError(
            f"{target} exists.", hint="Give the output another name; --overwrite replaces the old file."
        )
    headers = read_shards(model)
    loaded = process.load(headers[0].path, vocabulary_only=True)
    examples = list(read_examples(data))
    token_ids = _token_ids(examples, data, loaded, process, progress)
    windows = windows_of(token_ids.tolist(), CHUNK_TOKENS, loaded)
    if len(windows) < MINIMUM_CHUNKS:
        needed = MINIMUM_CHUNKS * CHUNK_TOKENS
        raise UsageError(
            f"{data.name} is too little text: {len(token_ids):,} tokens of the {needed:,} that are needed.",
            hint=_enough_hint(),
        )
    chosen = spread(windows, chunks)
    process.load(headers[0].path, context_length=CHUNK_TOKENS)
    sums = process.collect_imatrix(
        chosen, lambda done, total, _what: progress("importance", done, total, "chunks")
    )
    shapes = {tensor.name: tensor.shape for header in headers for tensor in header.tensors}
    _check_reached(model, shapes, sums, len(chosen) * CHUNK_TOKENS)
    matrix = ImportanceMatrix(
        sums={name: values[None, :] for name, (values, _) in sums.items()},
        counts={name: np.array([rows], np.float32) for name, (_, rows) in sums.items()},
        datasets=[data.name],
        chunk_count=len(chosen),
        chunk_size=CHUNK_TOKENS,
        model=model.name,
    )
    write_imatrix(matrix, target, replace=overwrite)
    return ImatrixReport(
        path=target,
        examples=len(examples),
        data_tokens=len(token_ids),
        chunks=len(chosen),
        matrices=len(sums),
        chat_formatted=loaded.chat_template is not None and any(example.messages for example in examples),
    )


def read_examples(data: Path) -> Iterator[Example]:
    """Yield what each line of a JSON Lines file says; empty lines are passed over.

    A line is {"question", "answer"}, {"instruction", "input", "output"}, {"prompt", "completion"},
    {"messages": [{"role", "content"}, …]} or {"text"}; other fields are ignored.

    Raises:
        UsageError: a line is none of these; file and line number are named.
        StorageError: the file cannot be read.
    """
    try:
        with data.open("rb") as file:
            number = 0
            while line := file.readline(_MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > _MAX_LINE_BYTES:
                    raise _bad_line(data, number, "it is longer than 16 MiB")
                if line.strip(b"\xef\xbb\xbf \t\r\n"):
                    yield _example(data, number, line)
    except OSError as error:
        raise StorageError(f"{data} cannot be read: {error.strerror}.", hint="Check the path.") from error


def _example(data: Path, number: int, line: bytes) -> Example:
    try:
        fields = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise _bad_line(data, number, "it is not UTF-8") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise _bad_line(data, number, "it is not JSON") from error
    if not isinstance(fields, dict):
        raise _bad_line(data, number, "it is no JSON object")
    if "messages" in fields:
        return Example(number, _messages(data, number, fields["messages"]))
    if "question" in fields and "answer" in fields:
        asked, answered = _texts(data, number, fields, "question", "answer")
    elif "instruction" in fields and "output" in fields:
        instruction, given, answered = _texts(data, number, fields, "instruction", "input", "output")
        asked = f"{instruction}\n\n{given}" if given else instruction
    elif "prompt" in fields and "completion" in fields:
        asked, answered = _texts(data, number, fields, "prompt", "completion")
    elif "text" in fields:
        (text,) = _texts(data, number, fields, "text")
        return Example(number, [], text)
    else:
        raise _bad_line(data, number, f"its fields are {', '.join(map(repr, list(fields)[:6])) or 'none'}")
    return Example(number, [("user", asked), ("assistant", answered)])


def _texts(data: Path, number: int, fields: dict[str, Any], *names: str) -> list[str]:
    texts = []
    for name in names:
        text = fields.get(name) or ""
        if not isinstance(text, str):
            raise _bad_line(data, number, f"{name!r} is no text")
        if not text.strip() and name != "input":
            raise _bad_line(data, number, f"{name!r} is empty")
        texts.append(text)
    return texts


def _messages(data: Path, number: int, messages: object) -> Conversation:
    if not isinstance(messages, list) or not messages:
        raise _bad_line(data, number, "'messages' is no list of messages")
    conversation = []
    for message in messages:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (0, 0)
        if role not in _ROLES or not isinstance(content, str):
            raise _bad_line(data, number, "a message needs a role (system, user, assistant) and a content")
        conversation.append((str(role), content))
    return conversation


def _token_ids(
    examples: Sequence[Example], data: Path, loaded: Loaded, process: LlamaProcess, progress: Progress
) -> NDArray[np.int32]:
    """Return the ids of all examples, one behind the other, each with its BOS where the model wants one."""
    parts: list[NDArray[np.int32]] = []
    for start in range(0, len(examples), _EXAMPLES_PER_REQUEST):
        batch = examples[start : start + _EXAMPLES_PER_REQUEST]
        chats = [example for example in batch if example.messages and loaded.chat_template is not None]
        plain = [example for example in batch if not (example.messages and loaded.chat_template is not None)]
        ids = process.tokenize(_rendered(chats, data, process), parse_special=True)
        ids += process.tokenize([_plain(example) for example in plain])
        # In the order of the data, so that an even spread stays one.
        order = np.argsort([example.line for example in (*chats, *plain)])
        parts += [np.array(_with_bos(ids[index], loaded), np.int32) for index in order]
        progress("tokens", start + len(batch), len(examples), "examples")
    return np.concatenate(parts) if parts else np.zeros(0, np.int32)


def _rendered(chats: Sequence[Example], data: Path, process: LlamaProcess) -> list[str]:
    if not chats:
        return []
    texts, faults = process.render_chats([example.messages for example in chats])
    for example, text in zip(chats, texts, strict=True):
        if text is None:
            raise _bad_line(
                data, example.line, f"the model's chat template refuses it: {faults[0].rstrip('.')}"
            )
    return [text for text in texts if text is not None]


def _plain(example: Example) -> str:
    """A base model has no chat template: its text is that of the messages."""
    return example.text or "\n".join(content for _, content in example.messages) + "\n\n"


def _with_bos(ids: list[int], loaded: Loaded) -> list[int]:
    return (
        [loaded.bos, *ids] if loaded.add_bos and loaded.bos is not None and ids[:1] != [loaded.bos] else ids
    )


def _check_reached(
    model: Path,
    shapes: dict[str, tuple[int, ...]],
    sums: dict[str, tuple[NDArray[np.float32], int]],
    tokens: int,
) -> None:
    for name in layer_matrices(shapes):
        values, rows = sums.get(name, (np.zeros(0, np.float32), 0))
        if rows != tokens or len(values) != shapes[name][0]:
            raise LlamaCppError(
                f"No importance matrix can be made of {model.name}: {name} was reached by {rows:,} of "
                f"{tokens:,} tokens.",
                hint="Quantize without a matrix.",
            )


def _bad_line(data: Path, number: int, what: str) -> UsageError:
    return UsageError(f"{data.name}, line {number}: {what}.", hint=f"Each line is one of {_SHAPES}.")


def _enough_hint() -> str:
    return (
        f"Give at least {MINIMUM_CHUNKS} chunks of {CHUNK_TOKENS} tokens, about 8,000 English words: "
        "each column's weight is an average over them. 100 chunks or more are better."
    )
