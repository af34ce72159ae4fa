"""A benchmark report says the verdict in words, shows what was measured, and lets no data become markup."""

import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from edgemed_benchmarks import report_style
from edgemed_benchmarks.answer_times import LimitVerdict
from edgemed_benchmarks.csv_report import SAMPLE_COLUMNS, SUMMARY_COLUMNS, samples_csv, summary_csv
from edgemed_benchmarks.errors import RecordError
from edgemed_benchmarks.journal import read_run
from edgemed_benchmarks.long_run import Fidelity, answers_per_charge
from edgemed_benchmarks.measures import interval_text, value_text
from edgemed_benchmarks.report_html import LARGEST_BYTES, page, write_page
from edgemed_benchmarks.report_plots import plots
from edgemed_benchmarks.stats import Estimate
from edgemed_benchmarks.summary import ArmSummary, RunSummary, summarise
from edgemed_benchmarks.svg import Spot, StripRow, pareto_front, strip_plot, thinned
from edgemed_benchmarks.terminal_report import WIDTH, summary_lines
from edgemed_benchmarks.verdict_text import REASONS, fidelity_sentence, headline

from edgemed.errors import StorageError
from edgemed.records import Arm, Energy, ItemFile
from edgemed.reference_logits import MEAN_KL_LIMIT_NATS
from tests.bench_records import SECOND_NS, SHA, MadeUpRun, full_run, scores_of

EVIL = "\x1b[31m\u202e<script>alert('&1')</script>"
SECRET = "The answer about the patient in room 12"
TAGS = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "section", "dl", "dt", "dd", "table", "thead", "tbody", "tr", "th", "td", "small", "div", "figure", "figcaption", "svg", "path", "circle", "text"}  # fmt: skip
VOID = {"meta"}


def read(run: MadeUpRun, folder: Path, *, with_scores: bool = False, **options: Any) -> RunSummary:
    path = run.write(folder / f"run-{len(list(folder.iterdir()))}.jsonl")
    return summarise(read_run(path), scores_of(run) if with_scores else None, **options)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> RunSummary:
    return read(full_run(), tmp_path_factory.mktemp("one"), with_scores=True)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> RunSummary:
    """A run with three arms."""
    return read(full_run(arms=3, run_id="three"), tmp_path_factory.mktemp("three"), with_scores=True)


def only_arm(run: MadeUpRun, folder: Path, **options: Any) -> ArmSummary:
    return read(run, folder, **options).arms[0]


def value(arm: ArmSummary, key: str) -> Estimate:
    measure = arm.measure(key)
    assert measure is not None
    return measure.estimate


class Page(HTMLParser):
    """Reads a page strictly: tags and attributes seen, unbalanced ones, visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str]] = set()
        self.open: list[str] = []
        self.faults: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {(name, found or "") for name, found in attrs}
        if tag not in VOID and not (self.get_starttag_text() or "").endswith("/>"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += f" {data}"


# The page as a file.


def test_the_page_refers_to_nothing_outside_runs_nothing_and_is_well_formed(
    one: RunSummary, three: RunSummary
) -> None:
    html = page([one, three])
    found = Page(html)
    assert found.tags <= TAGS
    assert not found.faults
    assert not found.open
    names = {name for name, _value in found.attributes}
    assert not names & {"src", "href", "srcset", "action", "data", "style", "xlink:href"}
    assert not [name for name in names if name.startswith("on")]
    assert "url(" not in html
    assert "@import" not in html
    assert "://" not in html


def test_300_samples_of_200_tokens_make_a_page_of_150_kb_at_most(tmp_path: Path) -> None:
    html = page([read(full_run(questions=300, tokens=200), tmp_path, with_scores=True)])
    assert len(html.encode()) <= LARGEST_BYTES


def test_twenty_runs_make_a_page_that_still_can_be_sent(one: RunSummary) -> None:
    assert len(page([one] * 20).encode()) <= 20 * 25_000


def test_no_text_of_a_record_becomes_markup_or_reaches_the_terminal_raw(tmp_path: Path) -> None:
    run = MadeUpRun(
        item_files=[ItemFile(name=EVIL, sha256=SHA, items=1)],
        forced=[EVIL],
    )
    evil_arm = Arm(label=EVIL, model_name=EVIL, model_sha256=SHA, size_bytes=1, quantization_type=EVIL)
    run.records[0] = type(run.start)(
        **{name: getattr(run.start, name) for name in run.start.__struct_fields__}
        | {"arms": [evil_arm, evil_arm]}
    )
    run.machine(cpu_model=EVIL, system=EVIL, machine_id=EVIL, governor=EVIL)
    run.event("interrupted", EVIL)
    for number in range(8):
        run.sample(
            f"{EVIL}{number}", condition=EVIL, verdict="suspect", reasons=[EVIL],
            energy=Energy(joules=9.0, source=EVIL, grade="A", window_ns=SECOND_NS),
        )  # fmt: skip
    summary = read(run, tmp_path, with_scores=True)
    found = Page(page([summary, summary]))
    assert found.tags <= TAGS
    assert not found.faults
    assert "alert('&1')" in found.text
    assert not re.search("[\x1b\u202e]", page([summary]) + "".join(summary_lines(summary)))


def test_no_answer_text_is_in_any_report(tmp_path: Path) -> None:
    run = full_run()
    for number in range(40):
        run.sample(f"s{number}", suite="quality", text=SECRET, explanation=SECRET)
    summary = read(run, tmp_path, with_scores=True)
    everything = page([summary]) + samples_csv([summary]) + summary_csv([summary])
    assert SECRET not in everything + "".join(summary_lines(summary))


def test_every_text_colour_has_a_contrast_of_4_5_in_light_and_dark() -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        red, green, blue = (
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    def contrast(one: str, other: str) -> float:
        low, high = sorted((luminance(one), luminance(other)))
        return (high + 0.05) / (low + 0.05)

    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    for palette in (report_style.LIGHT, report_style.DARK):
        for name, colour in palette.items():
            if name not in ("paper", "panel", "rule"):
                grounds = ("paper", "panel") if not re.fullmatch("c[0-9]", name) else ("paper",)
                assert min(contrast(colour, palette[ground]) for ground in grounds) >= 4.5, name


def test_every_colour_that_the_style_uses_is_in_both_palettes_and_none_stands_beside_them() -> None:
    style = report_style.style()
    used = set(re.findall(r"var\(--([a-z0-9]+)\)", style))
    assert used == set(report_style.LIGHT) == set(report_style.DARK)
    assert len(re.findall("#[0-9a-f]{3,6}", style)) == len(report_style.LIGHT) + len(report_style.DARK)


def test_a_page_that_cannot_be_written_is_an_error_with_its_name(tmp_path: Path, one: RunSummary) -> None:
    with pytest.raises(StorageError, match=re.escape(str(tmp_path / "none" / "report.html"))):
        write_page(tmp_path / "none" / "report.html", [one])


# The verdict.


def test_page_one_says_verdict_machine_model_and_what_is_invalid_in_words(one: RunSummary) -> None:
    text = " ".join(Page(page([one])).text.split()).replace("\u00a0", " ")
    first = text[: text.index("Speed and memory")]
    assert "Yes, fast enough: at least 9 of 10 questions get the first words within 8 seconds" in first
    assert "3 of 76 samples are invalid and left out of all times; 3 of 76 samples are suspect" in first
    assert f"{REASONS['cpu_busy']} (3×)" in first
    assert "Intel Core i5-6300U" in first
    assert f"SHA-256 {one.run.arms[0].model_sha256}" in first
    assert "35 min were estimated" in first


@pytest.mark.parametrize(
    ("questions", "slow", "verdict", "words"),
    [
        (29, 0, "yes", "Yes, fast enough"),
        (28, 0, "undecided", "1 more question without a slow one would settle it"),
        (45, 1, "undecided", "1 more question without"),
        (46, 1, "yes", "Yes, fast enough"),
        (40, 20, "no", "No, too slow: more than 1 in 10 questions take more than 8 seconds"),
        (0, 0, "undecided", "No verdict"),
    ],
)
def test_the_verdict_follows_early_stopping(
    tmp_path: Path, questions: int, slow: int, verdict: str, words: str
) -> None:
    run = MadeUpRun()
    for number in range(questions):
        # 8 s sharp is within the limit.
        run.sample(f"q{number}", first_seconds=8.001 if number < slow else 8.0, tokens=10)
    arm = only_arm(run, tmp_path)
    assert arm.verdict == verdict
    assert words in arm.headline


def test_only_first_valid_undisturbed_answers_of_a_question_count_for_the_verdict(tmp_path: Path) -> None:
    run = MadeUpRun()
    for number in range(29):
        run.sample(f"q{number}", tokens=10)
    slow: dict[str, Any] = {"first_seconds": 100.0, "tokens": 10}
    run.sample("q1", **slow, repetition=1)
    run.sample("warm", **slow, warm_up=True)
    run.sample("bad", **slow, verdict="invalid", reasons=["suspended"])
    run.sample("busy", **slow, condition="busy:1 length:short")
    run.sample("cold", **slow, condition="cold length:short")
    run.sample("bare", **slow, condition="no_prefix forced:16 length:short", forced_length=True)
    run.sample("long", **slow, condition="saved_prefix forced:64", forced_length=True)
    run.sample("other", **slow, suite="quality")
    arm = only_arm(run, tmp_path)
    assert [(limit.samples, limit.misses) for limit in arm.limits] == [(29, 0), (29, 0)]
    assert arm.verdict == "yes"


def test_an_answer_that_never_came_is_a_miss_although_its_times_are_invalid(tmp_path: Path) -> None:
    run = MadeUpRun()
    for number in range(29):
        run.sample(f"q{number}", tokens=10)
    run.sample(
        "dead", tokens=2, stop_reason="engine_died", verdict="invalid", reasons=["engine_died"]
    )  # fmt: skip
    arm = only_arm(run, tmp_path)
    assert [limit.misses for limit in arm.limits] == [1, 1]
    assert value(arm, "answer_seconds").samples == 29


def test_a_no_names_only_the_limit_that_is_missed() -> None:
    limits = [
        LimitVerdict("first_words", 8, "yes", 40, 0, 0),
        LimitVerdict("full_answer", 60, "no", 40, 20, 0),
    ]
    assert (
        headline(limits)
        == "No, too slow: more than 1 in 10 questions take more than 60 seconds for the whole answer."
    )


# The numbers.


def test_rates_are_sums_of_tokens_by_sums_of_seconds(tmp_path: Path) -> None:
    """The mean of rates would be 55 tokens per second."""
    run = MadeUpRun()
    run.machine(memory_bandwidth_bytes_per_second=20e9)
    run.sample("fast", tokens=101, token_seconds=0.01)
    run.sample("slow", tokens=101, token_seconds=0.1)
    run.sample("slow", tokens=101, token_seconds=9.0, verdict="invalid")
    arm = only_arm(run, tmp_path)
    rate = value(arm, "decode_rate")
    assert rate.value == pytest.approx(200 / 11, rel=0.05)
    share = value(arm, "bandwidth_share").value
    assert share is not None
    assert rate.value is not None
    assert share == pytest.approx(rate.value * arm.arm.size_bytes / 20e9)
    # 120 tokens that were not reused, in 0.9 of 2 s.
    assert value(arm, "prefill_rate").value == pytest.approx(120 / 1.8)


def test_nine_of_ten_is_not_given_below_29_questions_and_repetitions_do_not_help(tmp_path: Path) -> None:
    def p90(questions: int) -> float | None:
        run = MadeUpRun()
        for number in range(questions * 2):
            run.sample(f"q{number % questions}", first_seconds=1 + number % questions, tokens=10)
        measure = only_arm(run, tmp_path).measure("first_text_seconds")
        assert measure is not None
        assert measure.p90 is not None
        assert measure.estimate.samples == questions
        return measure.p90.value

    assert p90(28) is None
    assert p90(29) == pytest.approx(26.2)


def test_an_energy_window_is_shared_by_its_answers_and_grades_are_not_mixed(tmp_path: Path) -> None:
    run = MadeUpRun()
    for _round in range(4):
        begun = run.now_ns
        run.sample("a", suite="energy", tokens=50)
        run.sample("b", suite="energy", tokens=50)
        window = Energy(
            joules=3 * 3600, source="battery", grade="B", window_ns=run.now_ns - begun + 9 * SECOND_NS
        )
        run.sample("c", suite="energy", tokens=60, token_seconds=0.1, energy=window)
        run.now_ns += 20 * SECOND_NS
    run.sample(
        "rough", suite="energy", energy=Energy(joules=1e9, source="percent", grade="C", window_ns=SECOND_NS)
    )
    found = only_arm(run, tmp_path, wh_per_day=30.0).energy
    assert found is not None
    assert found.grade == "B"
    by_key = {measure.key: measure.estimate.value for measure in found.measures}
    assert by_key["wh_per_answer"] == pytest.approx(1.0)
    assert by_key["answers_per_day"] == pytest.approx(30.0)
    assert by_key["wh_per_answer_above_idle"] is None


@pytest.mark.parametrize(
    ("fall", "source", "answers"), [(20, "battery", 50.0), (9, "battery", None), (20, "mains", None)]
)
def test_answers_a_charge_need_a_fall_of_ten_points_on_battery(
    tmp_path: Path, fall: int, source: str, answers: float | None
) -> None:
    run = MadeUpRun()
    run.machine(power_source=source)
    run.telemetry(battery_percent=90.0)
    for number in range(10):
        run.sample(f"q{number}")
    run.telemetry(battery_percent=90.0 - fall)
    measure = answers_per_charge(read_run(run.write(tmp_path / "run.jsonl")))
    assert measure.estimate.value == answers
    assert (measure.estimate.reason == "") == (answers is not None)


def test_endurance_shows_the_fall_from_the_first_to_the_last_third(tmp_path: Path) -> None:
    run = MadeUpRun()
    for number in range(30):
        run.sample(f"l{number}", suite="endurance", tokens=128, token_seconds=0.08 if number < 20 else 0.1)
    change = {measure.key: measure.estimate for measure in only_arm(run, tmp_path).endurance}[
        "endurance_change"
    ]
    assert change.value == pytest.approx(-0.2, abs=0.02)
    assert change.high is not None
    assert change.high < 0


@pytest.mark.parametrize(
    ("kl", "other_tokens", "words"),
    [
        (MEAN_KL_LIMIT_NATS, 0, "Yes, this is the model that was tested"),
        (MEAN_KL_LIMIT_NATS * 1.01, 0, "No, it behaves otherwise"),
        (0.0, 1, "The template or the tokenizer differs"),
        (None, 0, "Not known"),
    ],
)
def test_fidelity_is_told_in_words(kl: float | None, other_tokens: int, words: str) -> None:
    assert words in fidelity_sentence(Fidelity(10, other_tokens, 100, kl, kl, 0.99))


def test_scores_of_another_run_are_refused(tmp_path: Path) -> None:
    path = full_run().write(tmp_path / "run.jsonl")
    with pytest.raises(RecordError, match="another-run"):
        summarise(read_run(path), scores_of(full_run(run_id="another-run")))


def test_a_run_that_was_cut_off_is_shown_with_what_it_has_and_says_so(tmp_path: Path) -> None:
    path = full_run().write(tmp_path / "run.jsonl")
    path.write_bytes(path.read_bytes()[:-40])
    summary = summarise(read_run(path))
    text = Page(page([summary])).text
    assert "was cut in the middle" in text
    assert "The file has no end" in text
    assert "Not finished" in text


def test_a_file_with_nothing_but_its_start_makes_a_report(tmp_path: Path) -> None:
    summary = read(MadeUpRun(arms=2), tmp_path)
    assert "Nothing was measured." in Page(page([summary])).text
    assert summary_lines(summary)
    assert len(list(csv.reader(io.StringIO(summary_csv([summary]))))) > 1


# Tables and plots.


def test_no_line_of_the_terminal_report_is_too_long(three: RunSummary) -> None:
    lines = summary_lines(three)
    assert max(map(len, lines)) <= WIDTH
    assert any(re.match(r"  Q8_0 +4\.\d\d s +\d\.\d\d to \d\.\d\d +45$", line) for line in lines)


def test_csv_holds_every_sample_and_every_number_and_no_formula(tmp_path: Path) -> None:
    run = full_run()
    run.sample("=HYPERLINK(1)", warm_up=True)
    summary = read(run, tmp_path, with_scores=True)
    samples = list(csv.DictReader(io.StringIO(samples_csv([summary]))))
    numbers = list(csv.DictReader(io.StringIO(summary_csv([summary]))))
    assert tuple(samples[0]) == SAMPLE_COLUMNS
    assert tuple(numbers[0]) == SUMMARY_COLUMNS
    assert len(samples) == len(summary.run.samples)
    assert samples[-1]["item_id"] == "'=HYPERLINK(1)"
    arm = summary.arms[0]
    by_name = {row["name"]: row for row in numbers}
    assert by_name["fast_enough"]["value"] == "yes"
    assert float(by_name["decode_rate"]["value"]) == value(arm, "decode_rate").value
    assert by_name["accuracy:choice-en"]["n"] == "60"
    # Not known is empty and has its reason, never 0.
    assert by_name["answers_per_charge"]["value"] == ""
    assert by_name["answers_per_charge"]["note"]


def test_values_are_shown_with_units_that_a_person_reads() -> None:
    shown = [
        value_text(0.0873, "seconds"), value_text(2.5, "seconds"), value_text(134.2, "seconds"),
        value_text(808e6, "bytes"), value_text(2.104e9, "bytes"), value_text(0.415, "share"),
        value_text(None, "seconds"), value_text(float("inf"), "seconds"), value_text(0.0, "Wh"),
    ]  # fmt: skip
    assert shown == ["87.3 ms", "2.50 s", "134 s", "808 MB", "2.10 GB", "41.5 %", "–", "never", "0 Wh"]
    assert interval_text(Estimate(1.17, 0.959, 1.31, 9), "seconds") == "0.96 to 1.31"
    assert interval_text(Estimate(0.9, 0.8, 1.2, 9), "seconds") == "800 to 1,200"


def test_a_strip_plot_leaves_out_what_never_came_and_keeps_the_extremes() -> None:
    svg = strip_plot("t", "s", [StripRow("a", [1.0, float("inf"), 3.0], [2.0])], limit=8)
    assert svg.count("h.01") == 2
    assert "nan" not in svg
    assert "inf" not in svg
    many = [float(number) for number in range(1000)]
    assert (thinned(many, 20)[0], thinned(many, 20)[-1], len(thinned(many, 20))) == (0.0, 999.0, 20)


def test_a_report_of_many_runs_takes_fewer_points_of_each(one: RunSummary) -> None:
    dots = [plots(one, density=density)[0].svg.count("h.01") for density in (1.0, 0.1)]
    assert dots == [45, 30]
    lengths = [len(plots(one, density=density)[2].svg) for density in (1.0, 0.1)]
    assert lengths[1] < 0.4 * lengths[0]


def test_the_front_holds_only_what_nothing_beats() -> None:
    spots = [Spot("slow good", 9, 0.6), Spot("fast", 2, 0.4), Spot("beaten", 5, 0.3), Spot("middle", 5, 0.5)]
    assert [spot.name for spot in pareto_front(spots)] == ["fast", "middle", "slow good"]
