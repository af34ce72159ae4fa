"""The chat template in the file against the model's own, rendered as transformers and as the app render it.

Same bytes for every kind of conversation; a template that refuses one must refuse it in both. The app's
engine must then see exactly one BOS and the ids that the model was trained with. Called by `gate.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from edgemed.check_report import CheckResult
from edgemed.engine.chat_template import ChatTemplate
from edgemed.engine.messages import ChatMessage
from edgemed.errors import EdgemedError
from edgemed_convert.check.reference_tokenizer import ReferenceTokenizer
from edgemed_convert.check.tokens import Engine
from edgemed_convert.llama.process import TokenTable

_QUESTION, _ANSWER = "Is 38.9 °C a fever?", "Yes. Give fluids, and look for its cause."
_RULES = "Answer in one sentence."


def _messages(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in pairs]


USUAL = {
    "question": _messages(("user", _QUESTION)),
    "system": _messages(("system", _RULES), ("user", _QUESTION)),
    "turns": _messages(("user", _QUESTION), ("assistant", _ANSWER), ("user", "Und jetzt? لماذا؟")),
    "system, turns": _messages(
        ("system", _RULES), ("user", _QUESTION), ("assistant", _ANSWER), ("user", "a\n\n  b "),
        ("assistant", "c"), ("user", "<b>&amp; {{ x }} {% y %}</b>"),
    ),
}  # fmt: skip
ODD = {
    "system only": _messages(("system", _RULES)),
    "answer first": _messages(("assistant", _ANSWER), ("user", _QUESTION)),
    "answer last": _messages(("user", _QUESTION), ("assistant", _ANSWER)),
    "two questions": _messages(("user", _QUESTION), ("user", _QUESTION)),
    "system late": _messages(("user", _QUESTION), ("system", _RULES), ("user", _QUESTION)),
    "unknown role": _messages(("nurse", _QUESTION)),
    "tool": _messages(("user", _QUESTION), ("tool", "37.2")),
    "empty": _messages(("user", "")),
    "spaces": _messages(("system", "  "), ("user", " \n x \n ")),
}


def check_template_text(template: str | None, expected: str | None, *, file: str) -> CheckResult:
    """Compare the template's source in the file with the model's own."""
    same = (template or "") == (expected or "")
    if same:
        sentence = "The chat template is the model's own." if expected else "Neither has a chat template."
    elif not expected:
        sentence = "The file has a chat template; the model has none."
    else:
        sentence = f"The file has {'another' if template else 'no'} chat template than the model."
    return CheckResult(
        name="chat_template",
        file=file,
        status="passed" if same else "failed",
        sentence=sentence,
        limit="the same text",
    )


def check_rendering(
    template: str | None,
    reference: ReferenceTokenizer,
    engine: "EngineVocabulary",
    *,
    file: str,
) -> CheckResult:
    """Render every conversation in the app and in transformers; compare bytes, refusals and token ids."""
    compiled = None
    faults = []
    if template:
        try:
            # What the template itself does: the app's help for one without a system role is not asked for.
            compiled = ChatTemplate(
                template, _NoTokens(), bos_text=engine.bos_text, eos_text=engine.eos_text, fold_system=False
            )
        except EdgemedError as error:
            faults.append(error.message)
    refused = 0
    conversations = {**USUAL, **ODD} if template or reference.has_template else {}
    for name, messages in conversations.items():
        expected = reference.render(messages, add_generation_prompt=True)
        found = _rendered(compiled, messages)
        if found != expected:
            # A template may print the date, and midnight may have passed.
            expected = reference.render(messages, add_generation_prompt=True)
            found = _rendered(compiled, messages)
        refused += expected is None
        if found != expected:
            faults.append(f"{name}: {_difference(found, expected)}")
    if compiled is not None:
        app = ChatTemplate(
            template or "", engine, bos_text=engine.bos_text, eos_text=engine.eos_text, fold_system=False
        )
        faults += [fault for name in USUAL if (fault := _id_fault(name, app, reference, engine))]
    return CheckResult(
        name="chat_rendering",
        file=file,
        status="failed" if faults else "passed",
        sentence=_sentence(len(faults), len(conversations), refused),
        numbers={"conversations": len(conversations), "different": len(faults), "refused": refused},
        limit="the same bytes, the same refusals, the same ids with exactly one BOS",
        details=faults[:20],
    )


def _sentence(faults: int, conversations: int, refused: int) -> str:
    if faults:
        return f"{faults} conversations are not as in transformers."
    if not conversations:
        return "There is no chat template to render."
    return f"All {conversations} conversations are as in transformers ({refused} refused by both)."


def _rendered(template: ChatTemplate | None, messages: Sequence[dict[str, str]]) -> str | None:
    if template is None:
        return None
    try:
        return template.render([_chat_message(message) for message in messages])
    except EdgemedError:
        return None


def _chat_message(message: dict[str, str]) -> ChatMessage:
    # Odd roles are the point here.
    return ChatMessage(message["role"], message["content"])  # type: ignore[arg-type]


def _id_fault(
    name: str, app: ChatTemplate, reference: ReferenceTokenizer, engine: "EngineVocabulary"
) -> str | None:
    """The app's ids are transformers', begun with one BOS where the tokenizer begins every text with one."""
    messages = USUAL[name]
    text = reference.render(messages, add_generation_prompt=True)
    if text is None:
        return None
    bos = reference.bos_id
    begins = bos is not None and reference.encode(["a"], add_special=True)[0][:1] == [bos]
    wanted = reference.encode([text], add_special=False)[0]
    (own,) = reference.encode_by_own_files([text], add_special=False)
    if bos is not None and wanted[:2] == [bos, bos]:
        return f"{name}: the model's own template writes BOS twice"
    found = app.token_ids(text)
    for expected in (wanted, *own):
        if found == ([bos, *expected] if begins and expected[:1] != [bos] else expected):
            return None
    if found[:1] != wanted[:1]:
        return f"{name}: the app's ids begin with {found[:1]}, those of training with {wanted[:1]}"
    return f"{name}: {len(found)} ids in the app, {len(wanted)} in transformers, or others"


def _difference(found: str | None, expected: str | None) -> str:
    if found is None:
        return "refused, but not by transformers"
    if expected is None:
        return "transformers refuses it, the file's template does not"
    place = next(
        (index for index, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]),
        min(len(found), len(expected)),
    )
    return f'from character {place} "{_shown(found, place)}" instead of "{_shown(expected, place)}"'


def _shown(text: str, place: int) -> str:
    return text[place : place + 24].encode("unicode_escape").decode("ascii")


class _NoTokens:
    """A vocabulary without tokens: text goes through the template as it is."""

    bos_token = None
    adds_bos = False

    def tokenize(self, text: str, *, parse_special: bool) -> list[int]:
        return []

    def text_of(self, token: int) -> str:
        return ""

    def is_control(self, token: int) -> bool:
        return False

    def is_user_defined(self, token: int) -> bool:
        return False


@dataclass(frozen=True)
class EngineVocabulary:
    """The loaded file's vocabulary as the app's chat templates see it."""

    engine: Engine
    table: TokenTable
    bos_token: int | None
    eos_token: int | None
    adds_bos: bool

    @property
    def bos_text(self) -> str:
        return self.text_of(self.bos_token) if self.bos_token is not None else ""

    @property
    def eos_text(self) -> str:
        return self.text_of(self.eos_token) if self.eos_token is not None else ""

    def tokenize(self, text: str, *, parse_special: bool) -> list[int]:
        return self.engine.tokenize([text], add_special=False, parse_special=parse_special)[0]

    def text_of(self, token: int) -> str:
        return self.table.texts[token].decode("utf-8", "replace")

    def is_control(self, token: int) -> bool:
        return bool(self.table.is_control[token] or self.table.is_eog[token])

    def is_user_defined(self, token: int) -> bool:
        return False
