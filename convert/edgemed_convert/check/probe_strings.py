"""Texts on which tokenizers go wrong, sequences of ids for logits, and the texts that losses are measured on.

All invented here; no patient, no third-party text. Called by `tokens.py`, `logits.py` and `gate.py`.
"""

import random
import unicodedata
from collections.abc import Sequence
from pathlib import Path

SEED = 20_240_229
RANDOM_STRINGS = 10_000

ORDINARY = (
    "A 42-year-old woman comes with a cough that has lasted three weeks.",
    "Give paracetamol 500 mg every six hours; never more than 4 g a day.",
    "The child's temperature is 38.9 °C and she doesn't drink.",
    "Is this an emergency? Yes: refer her to the hospital today.",
)

CLINICAL_PROMPTS = (
    "Question: What are the danger signs of malaria in a young child, and what must be done first?\nAnswer:",
    "Patient: homme de 60 ans, douleur thoracique depuis deux heures, sueurs, nausées. Conduite à tenir ?",
    "Mgonjwa ana homa kali, maumivu ya kichwa na kutapika tangu jana. Je, apimwe malaria kwanza?",
    "المريضة حامل في الشهر السابع وضغط دمها ١٦٠/١٠٠ مع صداع شديد. ما العمل؟ 患者发烧三天,怎么办?",
)
"""Short, multilingual."""

_SPACES = (
    "", " ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", " \n ", "\t\t\n", " leading", "trailing ",
    "  two leading", "two  inside", "three   inside", "tab\tinside", "line\nbreak", "line\n\n\nbreaks",
    "a \n b", "a\u00a0b", "a\u2003b", "a\u3000b", "a\u200bb", "\ufeffa", "a\u2028b", "     five then text",
    "text then five     ", "    indented\n        more\n    back", "\x0b\x0c", "x\x00y", "\u0085next line",
)  # fmt: skip
_DIGITS = (
    "1", "12", "123", "1234", "12345", "123456", "1234567", "3.14", "1,000,000", "0.05mg", "120/80",
    "2024-02-29", "+254 712 345 678", "1e-5", "1st 2nd 3rd", "٣٤٥٦", "१२३४", "Ⅳ", "½ tablet", "10²",
    "x1y22z333", "HbA1c 7.5%",
)  # fmt: skip
_WORDS = (
    "Hello", " Hello", "HELLO", "hElLo", "camelCaseWords", "XMLHttpRequest", "iPhone", "mRNA", "pH",
    "don't", "DON'T", "I'm you're we've they'd she'll it's", "I'M YOU'RE WE'VE THEY'D SHE'LL IT'S",
    "'s't're", "l'hôpital", "aujourd'hui", "O'Brien's", "rock’n’roll", "co-operate", "snake_case_name",
    "e.g.", "...", "!!!???", "«guillemets»", "“quotes”", "—dash–", "a/b\\c", "$%&@#*", "foo@example.org",
    "https://example.org/a?b=c&d=1#e", "C:\\Users\\x", "MiXeD CaSe WoRdS", "ÀÉÎÕÜ àéîõü", "straße STRASSE",
    "ﬁne ﬂow", "İstanbul ısı", "Ǆ ǅ ǆ",
)  # fmt: skip
_SCRIPTS = (
    "Je m’appelle Ngozi ; j’ai mal à la tête.", "¿Dónde le duele?", "Não há febre.",
    "Schwangerschaftsübelkeit", "Homa ya matumbo inaambukizwa na maji machafu.",
    "Ẹ kú àárọ̀, báwo ni ara yín?", "ጤና ይስጥልኝ", "ሰላም", "السلام عليكم", "كَيْفَ حَالُكَ؟", "آپ کو بخار ہے؟",
    "שלום", "आपको बुखार कब से है?", "ক্ষুধামান্দ্য", "தலைவலி", "ไข้เลือดออก", "ភាសាខ្មែរ", "မြန်မာ",
    "Головная боль", "Πονοκέφαλος", "こんにちは、熱があります。", "カタカナ ｶﾀｶﾅ", "我头疼三天了。",
    "我想在apple工作1314151天～", "한국어 두통", "ᄒᆞᆫ글", "Tiếng Việt: đau đầu",
)  # fmt: skip
_MARKS = (
    "e\u0301", "é", "a\u0300\u0301\u0302\u0303", "\u0301alone", "x\u0338y", "Z͑ͫa̴l̡g̢o", "क्षि",
    "\u200dzwj\u200c", "🙂", "👍🏽", "👩‍⚕️", "👨‍👩‍👧‍👦", "🇰🇪🇫🇷", "😶‍🌫️ 🚀(normal)", "✅🦙🦙", "1️⃣",
    "☃️", "𝒳𝓎 𝟙𝟚", "𐍈", "\U000e0041", "\uffff", "\ufffd", "\u202ertl\u202c", "\U0010ffff",
)  # fmt: skip
_CODE = (
    "def f(x):\n    return x ** 2  # squared\n", "if (a != b) { c += 1; }", "SELECT * FROM t WHERE id=1;",
    "<html><body>&nbsp;</body></html>", '{"key": [1, 2.5, null, true]}', "#!/bin/sh\nset -e\n",
    "\t\tfor (;;)\n\t\t{", "// ========== ----------", "a->b::c<d>()", "`````` ''''''", "x=1;y=2;;z==3",
    "∑_{i=1}^{n} x_i ≤ ∞", "\\frac{1}{2}",
)  # fmt: skip
LOOK_ALIKES = (
    "<s>", "</s>", "<unk>", "<pad>", "<bos>", "<eos>", "<|endoftext|>", "<|im_start|>", "<|im_end|>",
    "<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>user<|end_header_id|>", "<|end|>",
    "<|assistant|>", "<start_of_turn>", "<end_of_turn>", "[INST] x [/INST]", "<<SYS>>", "[PAD1]", "<0x0A>",
    "<|im_start", "< s >", "<S>", "</s></s>", "a<s>b</s>c", "text<|im_end|>", " <|im_end|> text",
    "<|IM_END|>", "<think>\n</think>", "<tool_call>", "▁", "Ġ", "Ċ", "a▁b", "▁▁a", "<mask>", "<unused1>",
    "[BOS]", "<|reserved_special_token_0|>",
)  # fmt: skip

TRICKY = ORDINARY + CLINICAL_PROMPTS + _SPACES + _DIGITS + _WORDS + _SCRIPTS + _MARKS + _CODE + LOOK_ALIKES

# Blocks that random strings are drawn from; the first ones, which people write, more often.
_BLOCKS = (
    (0x20, 0x7E), (0x20, 0x7E), (0x20, 0x7E), (0xA0, 0x17F), (0x370, 0x3FF), (0x400, 0x4FF), (0x590, 0x5FF),
    (0x600, 0x6FF), (0x900, 0x97F), (0x980, 0x9FF), (0xE00, 0xE7F), (0x1200, 0x137F), (0x1E00, 0x1EFF),
    (0x2000, 0x206F), (0x2190, 0x21FF), (0x3040, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3),
    (0xFE00, 0xFEFF), (0x1F300, 0x1F64F), (0x300, 0x36F), (0x10000, 0x10FFFF),
)  # fmt: skip


def random_strings(count: int = RANDOM_STRINGS, *, seed: int = SEED) -> list[str]:
    """Return strings of 1 to 24 assigned characters, some blocks mixed in each; the same every time."""
    source = random.Random(seed)
    strings = []
    for _unused in range(count):
        blocks = source.sample(_BLOCKS, source.randint(1, 3))
        length = source.randint(1, 24)
        strings.append("".join(_character(source, source.choice(blocks)) for _each in range(length)))
    return strings


def _character(source: random.Random, block: tuple[int, int]) -> str:
    if source.random() < 0.15:
        return source.choice("  \n\t'.,1230")
    while True:
        character = chr(source.randint(*block))
        # Surrogates are no text; private and unassigned characters differ between Unicode versions.
        if unicodedata.category(character) not in ("Cs", "Co", "Cn"):
            return character


def random_ids(
    vocabulary: int, *, sequences: int = 4, length: int = 120, avoid: Sequence[int] = (), seed: int = SEED
) -> list[list[int]]:
    """Return sequences of random token ids, without those to avoid."""
    source = random.Random(seed)
    allowed = sorted(set(range(vocabulary)) - set(avoid))
    return [source.choices(allowed, k=length) for _unused in range(sequences)]


def clinical_texts() -> dict[str, str]:
    """Return the texts that losses are measured on: invented questions and answers in eight languages."""
    folder = Path(__file__).parent
    return {
        "English": (folder / "clinical_english.txt").read_text(encoding="utf-8"),
        "other languages": (folder / "clinical_languages.txt").read_text(encoding="utf-8"),
    }
