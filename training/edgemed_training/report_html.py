"""The report as one HTML page: no script, nothing from outside, light and dark, down to a telephone's width.

Everything that was read from a file is escaped. Used by `report`.
"""

from collections.abc import Iterable, Iterator, Mapping
from html import escape

from edgemed_training.card import TrainingCard
from edgemed_training.evaluate import AnswerLine, SystemScores
from edgemed_training.plots import CHART_STYLE
from edgemed_training.report_data import EvaluationFolder, RunFolder
from edgemed_training.scoring import DEFINITIONS, Score
from edgemed_training.study_table import NOT_RECORDED, StudyRow, ours_text

WORST_COUNT = 5
_SHOWN_CHARACTERS = 1200
SYSTEMS = {"adapter": "with adapter", "base": "base model, untuned", "nearest": "nearest training question"}
_NAMES = {
    "exact_match": "Exact match",
    "squad_exact_match": "Exact match as SQuAD has it",
    "token_f1": "Token F1",
    "bleu": "BLEU",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "unigram_precision": "1-gram precision",
    "degenerate": "Degenerate answers",
    "ended": "Ended with EOS",
}
_SHARES = ("exact_match", "squad_exact_match", "degenerate", "ended")
_ON_TOP = (
    '<p class="soft">Scores of answers to held-out questions. No score says that an answer is right: '
    "that takes a clinician. Not a medical device.</p>"
)
_STYLE = """
:root { color-scheme: light dark; --paper:#fff; --text:#1b2126; --soft:#52606b; }
:root { --rule:#d5dade; --mark:#f2f5f7; }
@media (prefers-color-scheme: dark) {
:root { --paper:#14191d; --text:#e4e9ed; --soft:#a3b0ba; --rule:#3a444d; --mark:#1d242a; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--paper); margin: 0 auto;
  max-width: 46rem; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
h3 { font-size: 1rem; margin-bottom: .3rem; } small, .soft { color: var(--soft); font-size: .85rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; }
table { width: 100%; font-size: .9rem; table-layout: fixed; }
th, td { text-align: left; vertical-align: top; padding: .35rem .5rem .35rem 0; }
th, td { border-top: 1px solid var(--rule); } th { font-weight: 600; } td.number { white-space: nowrap; }
td small, th small { display: block; font-weight: 400; }
tr.head th { background: var(--mark); padding-left: .4rem; }
dl { display: grid; grid-template-columns: minmax(6rem, 10rem) 1fr; gap: .2rem .8rem; font-size: .9rem; }
dt { color: var(--soft); } dd { margin: 0; min-width: 0; }
figure { margin: 1rem 0; } figcaption { font-size: .9rem; font-weight: 600; }
.chart { width: 100%; max-width: 32rem; }
blockquote { margin: .4rem 0; padding: .5rem .7rem; background: var(--mark); }
blockquote { white-space: pre-wrap; font-size: .9rem; }
"""


def page(
    runs: Iterable[RunFolder],
    evaluations: list[EvaluationFolder],
    charts: Mapping[str, list[tuple[str, str]]],
    study: Iterable[StudyRow],
    *,
    note: str = "",
    with_answers: bool = True,
) -> str:
    """Return the whole page.

    Args:
        runs: in the order in which they are shown.
        evaluations: in the order in which they are shown.
        charts: a run's name → captions and SVG elements.
        study: the study's Table 4.
        note: stands on top, as text.
        with_answers: show the worst answers with their references.
    """
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>edgemed: fine-tuning report</title><style>{_STYLE}{CHART_STYLE}</style></head><body>",
        "<h1>Fine-tuning report</h1>",
        f"<p>{escape(note)}</p>" if note else "",
        _ON_TOP,
    ]
    for folder in evaluations:
        parts += _evaluation(folder, with_answers)
    for run in runs:
        parts += _run(run, charts.get(run.name, []))
    parts += _study_table(study)
    return "".join([*parts, "</body></html>\n"])


def _evaluation(folder: EvaluationFolder, with_answers: bool) -> Iterator[str]:
    found = folder.evaluation
    yield f"<h2>Evaluation: {escape(folder.name)}</h2>"
    yield _facts(
        {
            "base model": f"{found.base_model}, SHA-256 {found.base_sha256[:16]}…",
            "adapter": f"SHA-256 {found.adapter_sha256[:16]}…" if found.adapter_sha256 else "none",
            "questions": f"{found.items}; {found.skipped_items} more did not fit the model",
            "decoding": f"greedy, at most {found.settings.max_new_tokens} new tokens",
            "held-out pairs": f"SHA-256 {found.heldout_sha256[:16]}…",
            "device": f"{found.device}, {found.precision}",
        }
    )
    yield "<p>Means over all answers, BLEU over the corpus, each with its 95 % bootstrap interval.</p>"
    yield '<div class="wide"><table><tr>'
    yield "".join(f"<th>{SYSTEMS[system.system]}</th>" for system in found.systems) + "</tr>"
    for name, title in _NAMES.items():
        definition = found.definitions.get(name, DEFINITIONS[name]).replace("`", "")
        cells = "".join(_score_cell(name, system.scores.get(name)) for system in found.systems)
        yield f"{_heading(title, definition, len(found.systems))}<tr>{cells}</tr>"
    cells = "".join(_seconds_cell(system) for system in found.systems)
    definition = f"median, within batches of {found.settings.batch_size}"
    yield f"{_heading('Seconds an answer', definition, len(found.systems))}<tr>{cells}</tr></table></div>"
    if with_answers:
        yield f"<h3>The {WORST_COUNT} worst answers ({SYSTEMS[folder.main_system]})</h3>"
        for line in folder.worst(WORST_COUNT):
            yield _answer(line)
    else:
        yield '<p class="soft">The worst answers are left out: their references belong to others.</p>'


def _run(run: RunFolder, charts: list[tuple[str, str]]) -> Iterator[str]:
    yield f"<h2>Training: {escape(run.name)}</h2>"
    yield _facts(_card_facts(run.card)) if run.card else "<p>This run is not finished.</p>"
    for caption, svg in charts:
        yield f"<figure><figcaption>{escape(caption)}</figcaption>{svg}</figure>"


def _card_facts(card: TrainingCard) -> dict[str, str]:
    encoding, recipe, lora = card.encoding, card.recipe, card.recipe.lora
    sources = "; ".join(
        ", ".join(filter(None, (source.get("name"), source.get("source"), source.get("license"))))
        for source in card.data_sources
    )
    leaks = "not looked for" if card.leaking_pairs is None else f"{card.leaking_pairs} held-out pairs leak"
    cut = encoding.cut_answers / max(encoding.examples, 1)
    dropped = ", ".join(f"{count} {reason}" for reason, count in encoding.dropped.items()) or "none"
    best = "the last one" if card.best_step is None else f"step {card.best_step}"
    return {
        "base model": f"{card.base_model} ({card.base_license or 'licence not stated'})",
        "data": sources or "no dataset card",
        "leaks": f"{leaks} into the training data. What the base model read before is not known here.",
        "examples": f"{encoding.examples}, {encoding.tokens:,} tokens, {encoding.answer_tokens:,} in answers",
        "cut answers": f"{encoding.cut_answers} ({cut:.1%}) at {encoding.max_length} tokens",
        "left out": dropped,
        "rows": f"{encoding.rows}, {encoding.fill_share:.1%} full{', packed' if encoding.packed else ''}",
        "adapter": f"r {lora.r}, alpha {lora.lora_alpha:g}, dropout {lora.lora_dropout:g}",
        "training": f"{card.steps} steps, learning rate {recipe.train.learning_rate:g}, kept: {best}",
        "final loss": f"{card.final_loss:.4f} nats a token, mean of the last epoch",
        "device": f"{card.device}, {card.precision}, base in {recipe.base.quantization}",
        "time": f"{card.seconds / 60:.1f} minutes, evaluations within",
        "recipe": f"{recipe.name or 'without a name'}, SHA-256 {card.identity.recipe_sha256[:16]}…",
        "versions": ", ".join(f"{name} {version}" for name, version in card.libraries.items()),
    }


def _study_table(rows: Iterable[StudyRow]) -> Iterator[str]:
    yield "<h2>The study’s Table 4</h2><p>The study’s values stand as it gives them; those that are not "
    yield "recorded here are named so. Ours are of the same base model’s adapter where one was evaluated.</p>"
    yield '<div class="wide"><table><tr><th>Model</th><th>Study value</th><th>Ours</th></tr>'
    shown = ""
    for row in rows:
        if row.title != shown:
            shown = row.title
            yield _heading(row.title, f"Definition (ours): {row.definition}. {row.remark}", 3)
        study, mine = row.study_value or NOT_RECORDED, ours_text(row)
        yield f"<tr><td>{escape(row.model)}</td><td>{escape(study)}</td><td>{escape(mine)}</td></tr>"
    yield "</table></div>"


def _heading(title: str, definition: str, columns: int) -> str:
    small = f"<small>{escape(definition)}</small>"
    return f'<tr class="head"><th colspan="{columns}">{escape(title)}{small}</th></tr>'


def _score_cell(name: str, score: Score | None) -> str:
    if score is None:
        return '<td class="number">–</td>'
    value, interval = _score_texts(name, score)
    return f'<td class="number">{value}<small>{interval}</small></td>'


def _score_texts(name: str, score: Score) -> tuple[str, str]:
    if name in _SHARES:
        return f"{score.value:.1%}", f"[{100 * score.low:.1f}, {100 * score.high:.1f}]"
    digits = 2 if name == "bleu" else 3
    return f"{score.value:.{digits}f}", f"[{score.low:.{digits}f}, {score.high:.{digits}f}]"


def _seconds_cell(system: SystemScores) -> str:
    return f'<td class="number">{_seconds(system)}</td>'


def _seconds(system: SystemScores) -> str:
    return "–" if system.seconds_per_answer is None else f"{system.seconds_per_answer:.2f}"


def _answer(line: AnswerLine) -> str:
    return (
        f"<h3>{escape(line.id)}: token F1 {line.token_f1:.3f}</h3>"
        f"<small>answer</small><blockquote>{escape(_shortened(line.answer)) or '(empty)'}</blockquote>"
        f"<small>reference</small><blockquote>{escape(_shortened(line.reference))}</blockquote>"
    )


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]} …"


def _facts(facts: Mapping[str, str]) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items())
    return f"<dl>{rows}</dl>"
