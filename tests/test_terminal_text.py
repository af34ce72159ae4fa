"""Nothing that a terminal obeys comes out of `terminal_text`."""

import itertools
import random
import re

import pytest

from edgemed.terminal_text import LONGEST_SEQUENCE, StreamCleaner, clean

FORBIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")
HOSTILE = [
    "\x1b[2J\x1b[H",
    "\x1b]0;owned\x07",
    "\x1b]52;c;cm0gLXJm\x1b\\",
    "\x1b]8;;http://example.org\x1b\\link\x1b]8;;\x1b\\",
    "\x1bP1$r0m\x1b\\",
    "\x1b_payload\x1b\\",
    "\x1b^private\x9c",
    "\x1bXstring\x1b\\",
    "\x1bktitle\x1b\\",
    "\x1bc",
    "\x1b(0",
    "\x9b31m",
    "\x9d0;title\x9c",
    "\x90q\x1b\\",
    "\x1b\x1b[31m[31m",
    "\x1b[\x1b[31m31m",
    "\x1b]0;never ends ",
    "\x1b[38;5;1",
    "\x1b",
    "\x9b",
    "\x07\x08\x7f\x00",
    "\r\n",
    "\r",
    "\u202eabc\u202c",
    "\u2066x\u2069",
    "\ud800",
    "\ufeff",
    "\u2028",
    "\x85",
    "\x18\x1a",
]
HARMLESS = ["fever ", "شهر", "日本", "m", "[31m", "]0;", "\\", "\n", "\t", "é", ";", "0", " "]


def streamed(text: str, cuts: list[int]) -> str:
    cleaner = StreamCleaner()
    edges = [0, *sorted(cuts), len(text)]
    shown = [cleaner.feed(text[start:end]) for start, end in itertools.pairwise(edges)]
    return "".join(shown) + cleaner.flush()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\x1b[1;31mb\x1b[0mc", "abc"),
        ("a\x1b]0;title\x07b", "ab"),
        ("a\x1b]52;c;eA==\x1b\\b", "ab"),
        ("a\x9d0;title\x9cb", "ab"),
        ("a\x1bP payload \x1b\\b", "ab"),
        ("a\x1b(Bb\x1bcc", "abc"),
        ("one\r\ntwo\rthree\u2028four\x85five", "one\ntwo\nthree\nfour\nfive"),
        ("tab\tstays\nand newline", "tab\tstays\nand newline"),
        ("\u202etxt.exe\u202c \u2067x\u2069", "txt.exe x"),
        ("a\ud83db\ufeff\x00c", "abc"),
        ("\x1b]no end", "]no end"),
        ("حمى شديدة، 39.5 °C", "حمى شديدة، 39.5 °C"),
    ],
)
def test_control_is_removed_and_words_stay(text: str, expected: str) -> None:
    assert clean(text) == expected


def test_no_control_ever_comes_out_wherever_the_text_is_cut() -> None:
    chance = random.Random(20)
    for _ in range(1500):
        parts = chance.choices(HOSTILE + HARMLESS, k=chance.randint(1, 12))
        if chance.random() < 0.3:
            parts.append("".join(chr(chance.randrange(0x120)) for _ in range(chance.randint(1, 200))))
        chance.shuffle(parts)
        text = "".join(parts)
        cuts = [chance.randint(0, len(text)) for _ in range(chance.randint(0, 8))]
        shown = streamed(text, cuts)
        assert not FORBIDDEN.search(shown), ascii(text)
        assert shown == clean(text), (ascii(text), cuts)


def test_one_character_at_a_time_is_as_safe_as_the_whole() -> None:
    text = "".join(HOSTILE) + "x" * 300
    assert streamed(text, list(range(len(text)))) == clean(text)


def test_an_unterminated_sequence_does_not_swallow_the_answer() -> None:
    cleaner = StreamCleaner()
    shown = cleaner.feed("before \x1b]0;")
    assert shown == "before "
    for _ in range(LONGEST_SEQUENCE):
        shown += cleaner.feed("word ")
    assert shown.count("word ") > LONGEST_SEQUENCE - 40
    assert shown + cleaner.flush() == "before ]0;" + "word " * LONGEST_SEQUENCE


def test_ordinary_text_is_shown_at_once() -> None:
    cleaner = StreamCleaner()
    assert [cleaner.feed(piece) for piece in ("Take ", "rest", ".\n")] == ["Take ", "rest", ".\n"]
    assert cleaner.flush() == ""


def test_a_megabyte_of_introducers_takes_no_minutes() -> None:
    assert clean("\x1b]" * 200_000) == "]" * 200_000
    assert clean("\x9d" * 200_000) == ""
