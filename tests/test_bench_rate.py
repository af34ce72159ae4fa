"""Clinicians rate answers blindly; their sheets are put together only with the right key."""

import hashlib
import json
import random
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
from edgemed_benchmarks.agreement import krippendorff_alpha, weighted_kappa
from edgemed_benchmarks.errors import ItemError, RecordError
from edgemed_benchmarks.item_files import shipped_sets
from edgemed_benchmarks.rate import Sheet, make_sheet
from edgemed_benchmarks.rating_format import AXES, read_key
from edgemed_benchmarks.rating_merge import RatingResult, merge_sheets, rating_lines

from edgemed.errors import UsageError
from tests.bench_records import MadeUpRun

[ITEMS] = [each for each in shipped_sets("quality") if each.name == "answers"]


def record_file(
    folder: Path, *, arms: int = 2, texts: Any = None, kept: bool = True, name: str = "run", **start: Any
) -> Path:
    """Write a run whose arms answer 12 of our own questions, by default each in other words."""
    start = {"item_files": [ITEMS.item_file]} | start
    run = MadeUpRun(arms=arms, run_id=hashlib.sha256(name.encode()).hexdigest(), **start)
    run.machine()
    for arm in range(arms):
        for number, item in enumerate(ITEMS.items[:12]):
            text = texts(arm, number) if texts else f"Answer {number}, written by nobody-{arm}"
            run.sample(item.id, suite="quality", arm=arm, condition="", text=text if kept else None)
    run.end()
    return run.write(folder / f"{name}.jsonl")


def fill(sheet: Sheet, path: Path, *, rater: str, better: int = 0, seed: int = 0, **changes: Any) -> Path:
    """Fill a sheet: the answers of arm `better` get 4 or 5, the others 1 to 3."""
    chance = random.Random(seed)
    key, _sha256 = read_key(sheet.key_path)
    ratings = {}
    for entry in key.entries:
        good = better in entry.arms
        ratings[entry.code] = {
            "points": {
                axis.key: chance.choice((4, 5) if good == axis.higher_is_better else (1, 2)) for axis in AXES
            },
            "act": "yes" if good else chance.choice(("check", "no")),
        }
    filled: dict[str, Any] = {
        "schema": "edgemed.rating/1",
        "key_sha256": sheet.key_sha256,
        "rater": rater,
        "answers": len(ratings),
        "ratings": ratings,
    }
    path.write_text(json.dumps(filled | changes), encoding="utf-8")
    return path


class _Page(HTMLParser):
    """Collects what a test asks of the page."""

    def __init__(self) -> None:
        super().__init__()
        self.codes: list[str] = []
        self.outside: list[str] = []
        self.policy = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        if tag == "article":
            self.codes.append(str(found["data-code"]))
        self.outside += [f"{tag} {name}" for name in found if name in ("src", "href", "action", "srcset")]
        if found.get("http-equiv") == "Content-Security-Policy":
            self.policy = str(found["content"])


def parsed(page: str) -> _Page:
    parser = _Page()
    parser.feed(page)
    return parser


def test_a_sheet_hides_who_wrote_what_and_asks_for_nothing_from_outside(tmp_path: Path) -> None:
    sheet = make_sheet([record_file(tmp_path)], tmp_path / "sheet", questions=10)
    page = sheet.path.read_text(encoding="utf-8")
    found = parsed(page)
    assert (sheet.questions, sheet.answers, len(set(found.codes))) == (10, 20, 20)
    assert not found.outside
    assert found.policy.startswith("default-src 'none'; script-src 'sha256-")
    assert sheet.key_sha256 in page
    assert hashlib.sha256(sheet.key_path.read_bytes()).hexdigest() == sheet.key_sha256
    for hidden in ("Q4_K_M", "Q8_0", "edge-med-1b", "a" * 64, "b" * 64):
        assert hidden not in page
    key, _ = read_key(sheet.key_path)
    arm_of = {entry.code: entry.arms[0] for entry in key.entries}
    first_shown = [arm_of[code] for code in found.codes[::2]]
    assert set(arm_of.values()) == {0, 1}
    assert len(key.nonce) == 32
    # 2 of 1024 orders have one arm always first; a second sheet would have to be so, too.
    again = make_sheet([record_file(tmp_path, name="b")], tmp_path / "again", questions=10)
    key, _ = read_key(again.key_path)
    arm_of = {entry.code: entry.arms[0] for entry in key.entries}
    first_shown += [arm_of[code] for code in parsed(again.path.read_text(encoding="utf-8")).codes[::2]]
    assert set(first_shown) == {0, 1}


def test_an_answer_is_only_ever_text_on_the_page(tmp_path: Path) -> None:
    evil = "</article><script>alert(1)</script><img src=x onerror=alert(1)>\u202e &amp;"
    sheet = make_sheet([record_file(tmp_path, texts=lambda arm, _n: f"{evil} {arm}")], tmp_path / "s.html")
    page = sheet.path.read_text(encoding="utf-8")
    assert page.count("<script") == 1
    assert "<img" not in page
    assert "\u202e" not in page
    assert len(parsed(page).codes) == sheet.answers


def test_the_same_words_are_shown_once_and_count_for_both(tmp_path: Path) -> None:
    file = record_file(tmp_path, texts=lambda arm, number: f"{number}" if number < 5 else f"{number} {arm}")
    sheet = make_sheet([file], tmp_path / "sheet")
    assert sheet.answers == 5 + 2 * 7
    result = merge_sheets(sheet.key_path, [fill(sheet, tmp_path / "1.json", rater="A")])
    assert [one.points.samples for one in result.axes[0].arms] == [12, 12]


def test_the_better_model_is_found_and_so_is_that_nobody_knows(tmp_path: Path) -> None:
    sheet = make_sheet([record_file(tmp_path)], tmp_path / "sheet")
    paths = [fill(sheet, tmp_path / f"{seed}.json", rater=f"R{seed}", better=1, seed=seed) for seed in (1, 2)]
    result = merge_sheets(sheet.key_path, paths)
    correct = axis(result, "correct")
    assert correct.differences[0].points.low is not None
    assert correct.differences[0].points.low > 1.5
    assert axis(result, "harm").differences[0].points.high < -1.5
    assert axis(result, "act").arms[1].points.value == 1.0
    assert correct.alpha.value is not None
    assert correct.alpha.value > 0.6
    assert correct.kappas[0].kappa.samples == 24
    text = "\n".join(rating_lines(result))
    assert "Q8_0 less Q4_K_M" in text
    assert "chance" not in text
    [noise] = [fill(sheet, tmp_path / "n.json", rater="N", better=9, seed=3)]
    noisy = merge_sheets(sheet.key_path, [noise])
    assert "may be chance" in "\n".join(rating_lines(noisy))
    assert axis(noisy, "correct").alpha.value is None


def test_one_difference_among_many_axes_must_be_greater(tmp_path: Path) -> None:
    """Six questions, all for one model, on one axis of seven: p is 0.03 alone, and 0.22 among seven."""
    sheet = make_sheet([record_file(tmp_path)], tmp_path / "sheet", questions=6)
    key, _ = read_key(sheet.key_path)
    ratings = {
        entry.code: {
            "points": {one.key: 3 for one in AXES} | {"correct": 5 if 1 in entry.arms else 2},
            "act": "check",
        }
        for entry in key.entries
    }
    result = merge_sheets(sheet.key_path, [fill(sheet, tmp_path / "1.json", rater="A", ratings=ratings)])
    [difference] = axis(result, "correct").differences
    assert difference.points.value == 3.0
    assert difference.p == pytest.approx(7 * 2 / 2**6)


def axis(result: RatingResult, key: str) -> Any:
    return next(one for one in result.axes if one.key == key)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"key_sha256": "0" * 64}, "the SHA-256 differ"),
        ({"ratings": {}}, "24 of 24 answers are not rated yet, so nothing is unsealed"),
        ({"schema": "edgemed.rating/2"}, "is no filled rating sheet"),
        ({"rater": ""}, "is no filled rating sheet"),
        ({"ratings": {"AAAA": {"points": {"correct": 3}, "act": "yes"}}}, "AAAA is not complete"),
        ({"ratings": {"AAAA": {"points": {"correct": 6}, "act": "yes"}}}, "is no filled rating sheet"),
        (
            {"ratings": {"AAAA": {"points": {one.key: 3 for one in AXES}, "act": "no"}}},
            "rates an answer AAAA that is not on the sheet",
        ),
        ({"more": 1}, "unknown field"),
    ],
)
def test_a_sheet_that_does_not_fit_unseals_nothing(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    sheet = make_sheet([record_file(tmp_path)], tmp_path / "sheet")
    with pytest.raises(RecordError) as error:
        merge_sheets(sheet.key_path, [fill(sheet, tmp_path / "1.json", **({"rater": "A"} | changes))])
    assert sentence in error.value.message


def test_a_changed_key_and_a_person_who_is_there_twice_are_refused(tmp_path: Path) -> None:
    sheet = make_sheet([record_file(tmp_path)], tmp_path / "sheet")
    first = fill(sheet, tmp_path / "1.json", rater="A")
    with pytest.raises(RecordError, match="both of the person"):
        merge_sheets(sheet.key_path, [first, fill(sheet, tmp_path / "2.json", rater="a ")])
    key, _ = read_key(sheet.key_path)
    swapped = [msgspec.structs.replace(entry, arms=[1 - arm for arm in entry.arms]) for entry in key.entries]
    sheet.key_path.write_bytes(msgspec.json.encode(msgspec.structs.replace(key, entries=swapped)))
    with pytest.raises(RecordError, match="or it was changed"):
        merge_sheets(sheet.key_path, [first])


def test_runs_without_answers_or_without_common_questions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="does not hold its answers"):
        make_sheet([record_file(tmp_path, kept=False)], tmp_path / "sheet")
    bare = MadeUpRun(item_files=[ITEMS.item_file], run_id="c" * 16)
    bare.machine()
    other = bare.write(tmp_path / "bare.jsonl")
    with pytest.raises(UsageError, match="No question was answered in writing by every model"):
        make_sheet([record_file(tmp_path), other], tmp_path / "sheet")
    changed = msgspec.structs.replace(ITEMS.item_file, sha256="0" * 64)
    other = record_file(tmp_path, name="other", item_files=[changed])
    with pytest.raises(
        ItemError, match="texts of the 12 questions that were answered are not on this computer"
    ):
        make_sheet([other], tmp_path / "sheet")
    with pytest.raises(RecordError, match="holds no answers"):
        make_sheet([tmp_path / "a.edgebench.json.gz"], tmp_path / "sheet")
    assert not list(tmp_path.glob("sheet*"))


def test_alpha_is_that_of_krippendorffs_own_example() -> None:
    """Krippendorff 2011: four observers, twelve units, ordinal alpha 0.815."""
    observers = (
        "1 2 3 3 2 1 4 1 2 . . .",
        "1 2 3 3 2 2 4 1 2 5 . 3",
        ". 3 3 3 2 3 4 2 2 5 1 .",
        "1 2 3 3 2 4 4 1 2 5 1 .",
    )
    columns = zip(*(line.split() for line in observers), strict=True)
    units = [[int(value) for value in column if value != "."] for column in columns]
    alpha = krippendorff_alpha(units, groups=[str(place) for place in range(12)])
    assert alpha.value == pytest.approx(0.815, abs=5e-4)
    assert alpha.samples == 11
    assert alpha.low is not None
    assert alpha.high is not None
    assert alpha.low < 0.815 < alpha.high


def test_weighted_kappa_is_that_of_scikit_learn() -> None:
    """cohen_kappa_score(first, second, weights="quadratic") of scikit-learn 1.9.1."""
    first = [1, 2, 3, 4, 5, 5, 3, 2, 1, 4, 2, 3]
    second = [1, 3, 3, 4, 4, 5, 2, 2, 2, 5, 2, 1]
    kappa = weighted_kappa(first, second, groups=[str(place) for place in range(12)])
    assert kappa.value == pytest.approx(0.7890625, abs=1e-12)
    assert weighted_kappa(first, first, groups=list("abcdefghijkl")).value == 1.0


def test_what_the_page_saves_is_what_merge_reads(tmp_path: Path) -> None:
    """The page's own script in a browser: tick everything, look at what Save would write."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium")
    sheet = make_sheet([record_file(tmp_path)], tmp_path / "sheet", questions=3)
    page = sheet.path.read_text(encoding="utf-8")
    ticking = """
      rater.value = "R 1";
      for (const article of answers) {
        for (const axis of axes) article.querySelector(`input[name$="-${axis}"][value="4"]`).click();
        article.querySelector('input[value="check"]').click();
      }
      answers[0].querySelector("textarea").value = "fine";
      document.dispatchEvent(new Event("input"));
      const seen = state.textContent + "|" + JSON.stringify(filled()) + "|";
      window.confirm = () => true;
      document.getElementById("clear").click();
      document.body.textContent = seen + state.textContent + "|";
    """
    assert f"0 of {sheet.answers} answers rated" in dom(browser, sheet.path), "its policy stops its script"
    page = re.sub(r"script-src 'sha256-[^']+'", "script-src 'unsafe-inline'", page)
    copy = tmp_path / "ticked.html"
    copy.write_text(page.replace("</body>", f"<script>{ticking}</script></body>"), encoding="utf-8")
    found = re.search(r"(\d of \d answers rated)\|(.*)\|(\d of \d answers rated)\|", dom(browser, copy))
    assert found is not None
    state, written, after = found.groups()
    assert (state, after) == ("6 of 6 answers rated", "0 of 6 answers rated")
    saved = tmp_path / "saved.json"
    saved.write_text(written, encoding="utf-8")
    result = merge_sheets(sheet.key_path, [saved])
    assert result.raters == ["R 1"]
    assert list(result.comments.values()) == [["fine"]]
    assert axis(result, "omission").arms[0].points.value == 4.0


def dom(browser: str, page: Path) -> str:
    """Return a page as it is after its scripts ran."""
    return subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", page.as_uri()],
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=True,
    ).stdout
