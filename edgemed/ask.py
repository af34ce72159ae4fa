"""One question, one answer: what `edgemed ask` does."""

import sys
from typing import BinaryIO, TextIO

import msgspec

from edgemed.engine.messages import Answer, ChatMessage, Finished, Piece, StopReason, TurnsLeftOut
from edgemed.errors import UsageError
from edgemed.languages import text as _
from edgemed.session import Session, interrupt_stops
from edgemed.terminal_text import StreamCleaner

LONGEST_INPUT_BYTES = 4 * 2**20


class AskResult(msgspec.Struct, frozen=True, kw_only=True):
    """What `edgemed ask --json` prints."""

    text: str
    stop_reason: StopReason
    prompt_tokens: int
    reused_tokens: int
    generated_tokens: int
    ttft_seconds: float | None
    prefill_seconds: float
    decode_seconds: float
    threads: int
    model: str
    model_sha256: str
    adapter: str | None
    notice: str | None
    explanation: str


def read_question(argument: str, standard_input: BinaryIO) -> str:
    """Return the question: the argument, or all of standard input for "-".

    Raises:
        UsageError: it is empty, not UTF-8, or beyond any model's reach.
    """
    question = argument
    if argument == "-":
        data = standard_input.read(LONGEST_INPUT_BYTES + 1)
        if len(data) > LONGEST_INPUT_BYTES:
            raise UsageError(
                _("The question on standard input is larger than 4 MiB."), hint=_("Ask a shorter question.")
            )
        try:
            question = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UsageError(
                _("The question on standard input is not UTF-8 text (byte {value}).", value=error.start + 1),
                hint=_("Save the text as UTF-8 and try again."),
            ) from error
    # An argument that was no UTF-8 reaches Python as lone surrogates.
    question = question.encode("utf-8", "replace").decode("utf-8").strip()
    if not question:
        raise UsageError(_("The question is empty."), hint=_('Ask like this: edgemed ask "What is anaemia?"'))
    return question


def ask_once(
    session: Session, question: str, *, max_tokens: int, seed: int | None, out: TextIO | None
) -> AskResult:
    """Ask one question; write the answer to `out` while it comes, or nothing with None.

    Raises:
        EdgemedError: as `Engine.ask` says.
    """
    if max_tokens < 1:
        raise UsageError(_("--max-tokens must be 1 or more, not {max_tokens}.", max_tokens=max_tokens))
    cleaner = StreamCleaner()
    answer: Answer | None = None
    begun = began_before = False
    session.engine.wait_until_ready()
    with interrupt_stops(session.engine):
        messages = [*session.opening, ChatMessage("user", question)]
        for event in session.engine.ask(messages, max_tokens=max_tokens, seed=seed):
            match event:
                case Piece(text) if out is not None:
                    visible = cleaner.feed(text)
                    begun = begun or bool(visible.strip())
                    if begun:
                        # Many models begin with a space or an empty line.
                        out.write(visible if began_before else visible.lstrip())
                        out.flush()
                    began_before = begun
                case TurnsLeftOut():
                    sys.stderr.write("The oldest text did not fit and was not read by the AI.\n")
                case Finished():
                    answer = event.answer
    assert answer is not None, "Engine.ask always ends with Finished"
    if out is not None:
        out.write(cleaner.flush() + "\n")
        out.flush()
    manifest = session.model.manifest
    fields = msgspec.structs.asdict(answer)
    del fields["measurement"]
    return AskResult(
        **{**fields, "text": answer.text.strip()},
        model=session.model.name,
        model_sha256=manifest.sha256,
        adapter=None if session.adapter is None else session.adapter.name,
        notice=manifest.notice,
    )
