"""Whether generation ends where the model means it to: every end token ends it, no ordinary token does.

A wrong end token changes no logits and no tokenization: the model simply goes on, or stops in the middle of a
word. Called by `gate.py`.
"""

from edgemed.check_report import CheckResult
from edgemed_convert.check.reference_tokenizer import ReferenceTokenizer
from edgemed_convert.check.templates import USUAL, EngineVocabulary
from edgemed_convert.tokenizer.special_tokens import ENDS_BY_TEXT

_MARK = "Yes, it is"


def check_end_of_turn(
    engine: EngineVocabulary,
    end_ids: list[int],
    not_ordinary: set[int],
    reference: ReferenceTokenizer | None,
    *,
    file: str,
) -> CheckResult:
    """Compare the tokens that end generation in llama.cpp with those of the model.

    Args:
        end_ids: end tokens of config, generation config and tokenizer.
        not_ordinary: ids that were added to the tokenizer as a whole.
        reference: None where transformers is missing; then no chat is rendered.
    """
    found = {int(token) for token in engine.table.is_eog.nonzero()[0]}
    faults = [
        f"token {token} ends an answer in the model, but not in llama.cpp"
        for token in end_ids
        if token not in found
    ]
    ordinary = sorted(found - set(end_ids) - not_ordinary)
    by_text = [token for token in ordinary if engine.text_of(token) in ENDS_BY_TEXT]
    faults += [
        f'token {token} "{_shown(engine, token)}" ends every answer, but is ordinary text'
        for token in ordinary
        if token not in by_text
    ]
    if end_ids and engine.eos_token not in end_ids:
        faults.append(f"llama.cpp's end token is {engine.eos_token}; the model ends with {end_ids}")
    names = [_shown(engine, token) for token in sorted(found)]
    if reference is not None and reference.has_template:
        faults += _chat_faults(engine, found, reference)
    return CheckResult(
        name="end_of_turn",
        file=file,
        status="failed" if faults else "passed",
        sentence=(
            f"{len(faults)} tokens end answers wrongly."
            if faults
            else f"Generation ends with {', '.join(names) or 'no token'}."
        ),
        numbers={"end_tokens": len(found), "named_by_the_model": len(end_ids)},
        limit="every end token of the model, no ordinary token",
        details=[
            *faults[:20],
            # In Qwen's vocabulary; no file can change it, and the model does not write it.
            *(f'llama.cpp takes "{_shown(engine, token)}" for an end by its text' for token in by_text),
        ],
    )


def _chat_faults(engine: EngineVocabulary, end_tokens: set[int], reference: ReferenceTokenizer) -> list[str]:
    """The first token behind an answer in a rendered conversation must end generation."""
    messages = [*USUAL["question"], {"role": "assistant", "content": _MARK}]
    text = reference.render(messages, add_generation_prompt=False)
    if text is None or _MARK not in text:
        return ["the chat template does not render an answer"]
    ids = engine.tokenize(text, parse_special=True)
    answer = _after_mark(engine, ids)
    behind = next((token for token in answer if engine.is_control(token)), None)
    if behind is None:
        return ["the chat template writes no end token behind an answer"]
    if behind not in end_tokens:
        return [f'the token "{_shown(engine, behind)}" behind an answer does not end generation']
    return []


def _after_mark(engine: EngineVocabulary, ids: list[int]) -> list[int]:
    """Return the ids behind the answer's text."""
    written = b""
    for index, token in enumerate(ids):
        written += engine.table.pieces[token]
        if _MARK.encode() in written:
            return ids[index + 1 :]
    return []


def _shown(engine: EngineVocabulary, token: int) -> str:
    return engine.text_of(token).encode("unicode_escape").decode("ascii")[:40]
