"""Answer quality: hand-worked cases, the signs that decide a dose, every script, and equality with others."""

import math
import random

import pytest
from edgemed_training.evaluate_metrics import evaluate_metric

from edgemed import metrics
from edgemed.errors import UsageError

SCRIPTS = {
    "Latin": "Take 1.5 mg twice a day.",
    "Greek": "Πάρτε το φάρμακο δύο φορές την ημέρα.",
    "Cyrillic": "Принимайте лекарство два раза в день.",
    "Arabic": "تناول الدواء مرتين في اليوم.",
    "Hebrew": "קח את התרופה פעמיים ביום.",
    "Devanagari": "दवा दिन में दो बार लें।",
    "Bengali": "দিনে দুবার ওষুধ খান।",
    "Tamil": "மருந்தை ஒரு நாளைக்கு இரண்டு முறை எடுத்துக் கொள்ளுங்கள்.",
    "Thai": "กินยาวันละสองครั้ง",
    "Chinese": "每天服药两次。",
    "Japanese": "薬を一日二回のんでください。",
    "Amharic": "መድኃኒቱን በቀን ሁለት ጊዜ ይውሰዱ።",
}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Vitamin A", "Vitamin"),
        ("Give 1.5 mg", "Give 15 mg"),
        ("pH < 7.35", "pH > 7.35"),
        ("SpO2 ≤ 90 %", "SpO2 ≥ 90 %"),
        ("base excess -5", "base excess 5"),
        ("- 5 mmol/l", "5 mmol/l"),
        ("150 × 10⁹/l", "150 × 109/l"),
        ("1½ tablets", "11/2 tablets"),
        ("E. coli", "coli"),
        ("5 µg", "5 mg"),
        ("1,5 mg", "15 mg"),
        ("कि", "का"),
    ],
)
def test_what_changes_a_dose_or_a_diagnosis_is_no_exact_match(one: str, other: str) -> None:
    assert metrics.exact_match(one, other) == 0
    assert metrics.tokens(one) != metrics.tokens(other)
    assert metrics.token_f1(one, other) < 1


def test_squad_normalisation_would_lose_what_ours_keeps() -> None:
    for one, other in (("Vitamin A", "Vitamin"), ("1.5 mg", "15 mg"), ("pH < 7.35", "pH > 7.35")):
        assert metrics.squad_exact_match(one, other) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Malaria is curable.", "malaria  is\ncurable"),
        ("the patient’s “rash”", 'the patient\'s "rash"'),
        ("5–10 mg", "5-10 mg"),
        ("5 µg", "5 μg"),
        ("pH ≤ 7", "pH <= 7"),
        ("1. Rest\n2. Drink", "• Rest\n• Drink"),
        ("٢٫٥ ملغ", "2.5 ملغ"),
        ("co\u00adtrimoxazole", "cotrimoxazole"),
        ("38 ℃", "38 °C"),
    ],
)
def test_the_same_said_with_other_marks_is_an_exact_match(one: str, other: str) -> None:
    assert metrics.exact_match(one, other) == 1
    assert metrics.token_f1(one, other) == 1


@pytest.mark.parametrize("script", SCRIPTS)
def test_identical_text_scores_full_marks_in_every_script(script: str) -> None:
    text = SCRIPTS[script]
    scores = metrics.score_item(text, text)
    assert (scores.exact_match, scores.token_f1, scores.rouge_1, scores.rouge_l) == (1, 1, 1, 1)
    assert scores.rouge_2 == 1
    assert scores.unigram_precision == 1
    assert metrics.sentence_bleu(text, text) == pytest.approx(100)
    assert metrics.token_f1(text, SCRIPTS["Latin" if script != "Latin" else "Greek"]) < 0.35


def test_scores_are_those_worked_out_by_hand() -> None:
    prediction, reference = "the cat sat on the mat", "the cat is on the mat"
    # Five of six tokens are shared.
    assert metrics.token_f1(prediction, reference) == pytest.approx(5 / 6)
    assert metrics.ngram_precision("the the the", "the cat") == pytest.approx(1 / 3)
    assert metrics.ngram_precision(prediction, reference, 2) == pytest.approx(3 / 5)
    # 1-grams 5/6, 2-grams 3/5 (the cat, on the, the mat), longest common subsequence 5.
    assert metrics.rouge(prediction, reference) == pytest.approx((5 / 6, 3 / 5, 5 / 6))
    # 3-grams 1/4 (on the mat), 4-grams 0/3 → half of 1/3.
    expected = 100 * math.exp((math.log(5 / 6) + math.log(3 / 5) + math.log(1 / 4) + math.log(1 / 6)) / 4)
    assert metrics.bleu([prediction], [reference]) == pytest.approx(expected)
    # A prediction of half the length pays exp(1 - 2).
    assert metrics.bleu(["a b c d"], ["a b c d e f g h"]) == pytest.approx(100 * math.exp(-1))


def test_empty_answers_score_zero_and_never_divide_by_it() -> None:
    assert metrics.rouge("", "malaria") == (0, 0, 0)
    assert metrics.token_f1("", "malaria") == 0
    assert metrics.bleu([""], ["malaria"]) == 0
    assert metrics.bleu([], []) == 0
    assert metrics.ngram_precision("", "malaria") == 0
    assert metrics.corpus_scores([])["token_f1"] == (0, 0, 0)


def test_an_answer_that_goes_round_in_circles_is_degenerate() -> None:
    assert metrics.is_degenerate("")
    assert metrics.is_degenerate(" … ")
    assert metrics.is_degenerate("you should see a doctor " * 8)
    assert not metrics.is_degenerate(
        "Drink clean water, and see a doctor when the fever stays for three days."
    )
    assert metrics.repeated_share("a b c d a b c d") == pytest.approx(1 / 5)


def test_the_bootstrap_interval_is_the_same_each_time_and_holds_the_mean() -> None:
    chance = random.Random(1)
    values = [chance.random() for _ in range(100)]
    first = metrics.bootstrap_interval(values, metrics.mean, seed=7)
    assert first == metrics.bootstrap_interval(values, metrics.mean, seed=7)
    assert first.low < first.value < first.high
    assert metrics.bootstrap_interval([0.5], metrics.mean) == (0.5, 0.5, 0.5)


def test_the_95_percent_interval_of_a_mean_is_as_wide_as_theory_says() -> None:
    chance = random.Random(3)
    values = [chance.gauss(0, 1) for _ in range(400)]
    found = metrics.bootstrap_interval(values, metrics.mean, samples=2000)
    assert found.high - found.low == pytest.approx(2 * 1.96 / 20, rel=0.15)


def _noise(chance: random.Random) -> str:
    """Return text with everything on which a tokenizer can stumble."""
    words = [
        "1.5",
        "15",
        "mg",
        "don't",
        "(a)",
        "x-ray",
        "3-4",
        "e.g.",
        "<b>",
        "&amp;",
        "&lt;",
        "A",
        "the",
        ",",
        ".",
    ]
    words += [
        "10,000",
        "$5",
        "[1]",
        "{x}",
        "`",
        "~",
        "--",
        "-\n",
        "\n",
        "_",
        "a_b",
        "%",
        "pH",
        "?",
        "!",
        "<skipped>",
    ]
    return " ".join(chance.choice(words) for _ in range(chance.randrange(30)))


def test_bleu_equals_sacrebleu() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    chance = random.Random(0)
    for _ in range(150):
        references = [_noise(chance) + " é 薬" for _ in range(4)]
        predictions = [text if chance.random() < 0.3 else _noise(chance) for text in references]
        assert metrics.bleu(predictions, references) == pytest.approx(
            sacrebleu.corpus_bleu(predictions, [references]).score, abs=1e-9
        )
        assert metrics.sentence_bleu(predictions[0], references[0]) == pytest.approx(
            sacrebleu.sentence_bleu(predictions[0], [references[0]]).score, abs=1e-9
        )


def test_rouge_equals_rouge_score_on_ascii() -> None:
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
    chance = random.Random(0)
    for _ in range(300):
        prediction, reference = _noise(chance), _noise(chance)
        theirs = scorer.score(reference, prediction)
        expected = [theirs[name].fmeasure for name in ("rouge1", "rouge2", "rougeL")]
        assert list(metrics.rouge(prediction, reference)) == pytest.approx(expected, abs=1e-9)


def test_metrics_work_inside_evaluate_without_a_network() -> None:
    evaluate = pytest.importorskip("evaluate")
    predictions, references = ["Take 1.5 mg.", "Rest"], ["take 1.5 mg", "Drink water"]
    metric = evaluate_metric("exact_match")
    assert isinstance(metric, evaluate.Metric)
    assert metric.compute(predictions=predictions, references=references)["exact_match"] == 0.5
    both = evaluate.combine([evaluate_metric("bleu"), evaluate_metric("rouge_l")])
    assert {"bleu", "rouge_l", "rouge_l_low"} <= set(
        both.compute(predictions=predictions, references=references)
    )


def test_a_metric_that_does_not_exist_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean rouge_l"):
        evaluate_metric("rougeL")
