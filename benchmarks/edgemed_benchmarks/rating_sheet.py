"""The page of a rating sheet: works from a stick in any browser, and on paper. Nothing is sent anywhere."""

import base64
import dataclasses
import hashlib
import re
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from edgemed.records import Item
from edgemed_benchmarks.rating_format import ACT_QUESTION, ACTS, AXES, LEAST, MOST, Axis, sheet_id
from edgemed_benchmarks.report_style import DARK, LIGHT

# Control characters, and those that turn the direction of writing: no answer may reorder the page.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_INTRODUCTION = (
    "Each question below was answered by a language model, by several of them, or by several versions of "
    "one. Which wrote what is hidden. Rate each answer by itself, as if a colleague had given it to you: "
    "1 to 5 in each line, then whether you would act on it. Nothing is sent anywhere; Save writes a small "
    "file, which you give back. Or print the page and use a pen."
)
_RULES = """
body { background: var(--paper); color: var(--text); max-width: 46rem; margin: 0 auto; padding: 1rem;
  font: 16px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.05rem; margin: 2.4rem 0 .6rem; }
.soft { color: var(--soft); font-size: .85rem; }
.given { white-space: pre-wrap; overflow-wrap: anywhere; }
article { background: var(--panel); border-left: .3rem solid var(--rule); padding: .7rem .9rem;
  margin: 0 0 1.2rem; }
article.done { border-color: var(--yes); }
article h3 { font-size: .95rem; margin: 0 0 .5rem; }
fieldset { border: 0; border-top: 1px solid var(--rule); margin: 0; padding: .4rem 0; display: flex;
  flex-wrap: wrap; gap: .2rem .9rem; align-items: center; }
legend { padding: .4rem 0 0; float: left; width: 100%; }
label { display: inline-flex; align-items: center; gap: .3rem; min-height: 2rem; }
input[type=radio] { width: 1.15rem; height: 1.15rem; margin: 0; accent-color: var(--c0); }
textarea { width: 100%; box-sizing: border-box; font: inherit; background: var(--paper); color: var(--text);
  border: 1px solid var(--soft); }
#bar { position: sticky; top: 0; background: var(--paper); border-bottom: 1px solid var(--rule);
  padding: .5rem 0; display: flex; flex-wrap: wrap; gap: .6rem; align-items: center; z-index: 1; }
#bar[hidden] { display: none; }
#bar .button { position: relative; overflow: hidden; min-height: 0; }
#load { position: absolute; inset: 0; opacity: 0; font-size: 4rem; }
.button:focus-within { outline: 2px solid var(--c0); }
button, .button, #rater { font: inherit; color: var(--text); background: var(--panel);
  border: 1px solid var(--soft); padding: .3rem .7rem; max-width: 100%; box-sizing: border-box; }
@media print {
  @page { size: A4; margin: 15mm; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  #bar, .screen { display: none; } article, fieldset { break-inside: avoid; } h2 { break-after: avoid; }
  article { border: 1px solid #777; background: none; } label { min-height: 1.3rem; }
  textarea { height: 2.5rem; }
}
.paper { display: none; } @media print { .paper { display: block; } }
"""


@dataclasses.dataclass
class SheetAnswer:
    """One answer, and who gave it."""

    text: str
    arms: list[int]
    code: str = ""


@dataclasses.dataclass
class SheetQuestion:
    """One question with all its answers, in the order in which they are shown."""

    item: Item
    answers: list[SheetAnswer]


def sheet_page(questions: Sequence[SheetQuestion], key_sha256: str) -> str:
    """Return the whole page; every answer has its code.

    Args:
        questions: in the order in which they are shown.
        key_sha256: of the key file.
    """
    script = (Path(__file__).parent / "rating_sheet.js").read_text(encoding="utf-8")
    body = "".join(_body(questions, key_sha256))
    axes = " ".join(axis.key for axis in AXES)
    return _UNSEEN.sub(
        "\ufffd",
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(script)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Rating sheet {sheet_id(key_sha256)}</title><style>{_style()}</style></head>"
        f'<body data-key="{key_sha256}" data-axes="{axes}">{body}<script>{script}</script></body></html>\n',
    )


def _policy(script: str) -> str:
    """Forbid every connection, and every script but ours: an answer is only ever text."""
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "base-uri 'none'; form-action 'none'"
    )


def _style() -> str:
    light, dark = (
        " ".join(f"--{name}: {colour};" for name, colour in palette.items()) for palette in (LIGHT, DARK)
    )
    return (
        f":root {{ color-scheme: light dark; {light} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}{_RULES}"
    )


def _body(questions: Sequence[SheetQuestion], key_sha256: str) -> Iterator[str]:
    yield f"<h1>Rating sheet {sheet_id(key_sha256)}</h1><p>{_INTRODUCTION}</p>"
    yield (
        '<p class="soft">Which model wrote which answer is sealed in a file with the SHA-256 '
        f'<span style="overflow-wrap:anywhere">{key_sha256}</span>.</p>'
    )
    yield '<p class="paper">Rated by (a letter or a number): ____________ on: ____________</p>'
    yield (
        '<div id="bar" hidden><label>Rated by <input id="rater" name="rater" maxlength="40" size="8" '
        'autocomplete="off"></label><button id="save" type="button">Save</button>'
        '<label class="button">Open a saved file<input id="load" type="file" accept=".json"></label>'
        '<button id="clear" type="button">Next person</button>'
        '<span id="state" role="status"></span></div>'
        "<noscript><p><strong>To save here, allow this page to use JavaScript. Without it, print the page."
        "</strong></p></noscript>"
    )
    for number, question in enumerate(questions, 1):
        yield f"<section><h2>Question {number} of {len(questions)}</h2>{_asked(question.item)}"
        for answer in question.answers:
            yield from _answer(answer)
        yield "</section>"


def _asked(item: Item) -> str:
    turns = [
        f"{'Asked' if place % 2 == 0 else 'Answered'}: {text}" for place, text in enumerate(item.history)
    ]
    before = "".join(f'<p class="soft given" dir="auto">{escape(text)}</p>' for text in turns)
    passages = "".join(
        f'<p class="soft given" dir="auto">[{number}] {escape(text)}</p>'
        for number, text in enumerate(item.passages, 1)
    )
    return f'{passages}{before}<p class="given" dir="auto">{escape(item.question)}</p>'


def _answer(answer: SheetAnswer) -> Iterator[str]:
    code = answer.code
    yield f'<article data-code="{code}"><h3>Answer {code}</h3>'
    yield f'<p class="given" dir="auto">{escape(answer.text) or "(nothing)"}</p>'
    for axis in AXES:
        yield _scale(code, axis)
    buttons = "".join(
        f'<label><input type="radio" name="{code}-act" value="{value}">{words}</label>'
        for value, words in ACTS.items()
    )
    yield f"<fieldset><legend>{ACT_QUESTION}</legend>{buttons}</fieldset>"
    yield (
        f'<label style="display:block">Remarks<textarea name="{code}-comment" rows="2" maxlength="2000" '
        'dir="auto"></textarea></label></article>'
    )


def _scale(code: str, axis: Axis) -> str:
    buttons = "".join(
        f'<label><input type="radio" name="{code}-{axis.key}" value="{points}">{points}</label>'
        for points in range(LEAST, MOST + 1)
    )
    return (
        f"<fieldset><legend>{axis.question}</legend>"
        f'{buttons}<span class="soft">{LEAST}: {axis.least}; {MOST}: {axis.most}</span></fieldset>'
    )
