"""From sources to a data set: cleaning, duplicates, data of persons, a split without leaks, and its cards."""

import json
import random
import time
from pathlib import Path

import msgspec
import pytest
from edgemed_training import cleaning_text
from edgemed_training import prepare as prepare_module
from edgemed_training.cleaning import RULE_NAMES, clean
from edgemed_training.dataset import read_dataset
from edgemed_training.dataset_card import card_markdown
from edgemed_training.duplicates import answer_clusters, near_duplicate_clusters, shingles
from edgemed_training.errors import DataError, LeakError
from edgemed_training.leaks import find_leaks, refuse_leaks
from edgemed_training.pii import find_patient_data, refuse_patient_data
from edgemed_training.prepare import prepare
from edgemed_training.readers.columns import ReadOptions
from edgemed_training.readers.source import read_source
from edgemed_training.records import QAPair, SourcePair
from edgemed_training.split import split_pairs

from edgemed.errors import StorageError
from tests.shared_material import shared_path

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprstvz" for b in "aeiou" for c in ("n", "r", "st", "l")]
PARAGRAPH = (
    "This condition is inherited in an autosomal recessive pattern, which means both copies have mutations."
)


def _pairs(groups: int, *, seed: int = 0, first: int = 0) -> list[QAPair]:
    """Return invented pairs: one to four a group, every third group with a paragraph that all of them share."""
    pairs = []
    for group in range(first, first + groups):
        chance = random.Random(f"{seed} {group}")
        for number in range(1 + group % 4):
            answer = " ".join(chance.choices(WORDS, k=30)) + "."
            if number == 0 and group % 3 == 0:
                answer = PARAGRAPH
            question = f"What is {chance.choice(WORDS)} {group} {number}?"
            pairs.append(
                QAPair(id=f"{group}-{number}", question=question, answer=answer, group=f"Disease {group}")
            )
    return pairs


def _entries(*pairs: tuple[str, str]) -> list[SourcePair]:
    return [
        SourcePair(
            QAPair(id=str(number), question=question, answer=answer), "notes.csv", f"line {number + 1}"
        )
        for number, (question, answer) in enumerate(pairs, 1)
    ]


def _jsonl(path: Path, pairs: list[QAPair]) -> Path:
    path.write_bytes(b"".join(msgspec.json.encode(pair) + b"\n" for pair in pairs))
    return path


# Cleaning.


@pytest.mark.parametrize(
    ("change", "before", "after"),
    [
        ("clean_characters", "a\r\nb\rc\x00\u200b\x1b[31m", "a\nb\nc[31m"),
        (
            "clean_markup",
            "<p>A &amp; B</p> {{#ev:youtube|x}}pH &lt; 7.35 and &amp;gt; 7",
            " A & B  pH < 7.35 and > 7",
        ),
        ("clean_markup", "if pH < 7.2 and Na > 150", "if pH < 7.2 and Na > 150"),
        ("clean_spaces", "Key\n      - one   two\n\n\n\n   end ", "Key\n- one two\n\nend"),
        ("clean_question", "What is (are) Malaria ? ?", "What is Malaria?"),
        (
            "without_boilerplate",
            "Fever 90%. You can use the MedlinePlus Medical Dictionary to look up the definitions. Chills.",
            "Fever 90%. Chills.",
        ),
        ("without_boilerplate", "Rest. (Watch the video to learn. Press the Escape (Esc) button.)", "Rest."),
        ("without_boilerplate", "Drink water. NIH: National Cancer Institute", "Drink water."),
        (
            "without_contacts",
            "Take 1.5 mg daily. Call 1-800-222-1222 for help. Rest.",
            "Take 1.5 mg daily. Rest.",
        ),
        ("without_contacts", "See www.nih.gov/x. Give 250-500 mg.", "Give 250-500 mg."),
        ("without_contacts", "Dial +254 20 2717077 now.\nGive ORS.", "Give ORS."),
        (
            "without_contacts",
            "Blood pressure of 120-80 123 4567 and 1.800.",
            "Blood pressure of 120-80 123 4567 and 1.800.",
        ),
    ],
)
def test_each_cleaning_of_text_takes_what_it_names_and_nothing_else(
    change: str, before: str, after: str
) -> None:
    assert getattr(cleaning_text, change)(before) == after


def test_every_rule_is_counted_shown_and_optional() -> None:
    entries = _entries(
        ("What is malaria ?", "A disease that mosquitoes bring."),
        ("What is  malaria?", "A disease that mosquitoes bring. "),
        (
            "Could you provide me with the text that needs to be rephrased?",
            "Fever and chills for three days.",
        ),
        ("Where to learn more?", "These resources address the management of malaria: - Gene Review"),
        ("What is Quinapril?", "Accupril®"),
        ("Is it inherited, and by whom in general?", "Is it inherited, and by whom in general"),
        *((f"Question {n}?", f"A long enough answer number {n}.") for n in range(20)),
        ("Why?", "  "),
    )
    cleaned = clean(entries)
    dropped = {one.rule: one.where for one in cleaned.dropped}
    assert dropped == {
        "empty": "notes.csv line 28",
        "artefacts": "notes.csv line 4",
        "link-lists": "notes.csv line 5",
        "short": "notes.csv line 6",
        "echoes": "notes.csv line 7",
        "duplicates": "notes.csv line 3",
    }
    assert cleaned.dropped[-1].reason == "the same as 1 (notes.csv line 2)"
    assert [count.after for count in cleaned.counts][-1] == len(cleaned.pairs) == 21
    everything = clean(entries, skip=RULE_NAMES)
    assert everything.pairs == entries
    assert not any(count.enabled for count in everything.counts)
    with pytest.raises(DataError, match=r"no cleaning rule 'boilerplates'\. Did you mean boilerplate"):
        clean(entries, skip=["boilerplates"])


def test_many_empty_answers_are_an_error_with_their_places_and_nothing_left_is_one_with_reasons() -> None:
    with pytest.raises(DataError, match=r"1 of 2 pairs have no question or no answer, .*notes.csv line 3"):
        clean(_entries(("a", "A long enough answer, surely."), ("b", "")))
    with pytest.raises(DataError, match=r"No usable examples \(0 of 1\): short 1"):
        clean(_entries(("a", "Yes.")))


# Duplicates.


def test_near_duplicates_are_found_as_by_comparing_all_with_all() -> None:
    chance = random.Random(5)
    texts = [" ".join(chance.choices(WORDS[:12], k=chance.randrange(3, 40))) for _ in range(60)]
    # Fragments and mixtures of one another, and a passage that nearly all share.
    texts += [
        " ".join(text.split()[: chance.randrange(4, 30)]) + " " + chance.choice(texts) for text in texts
    ]
    texts += [PARAGRAPH + " " + " ".join(chance.choices(WORDS, k=chance.randrange(2, 40))) for _ in range(40)]
    sets = [shingles(text) for text in texts]
    clusters = near_duplicate_clusters(sets)
    slow = list(range(len(sets)))
    for one in range(len(sets)):
        for other in range(one):
            if len(sets[one] & sets[other]) * 2 >= min(len(sets[one]), len(sets[other])):
                old, new = slow[one], slow[other]
                slow = [new if label == old else label for label in slow]
    expected = sorted(sorted(index for index, label in enumerate(slow) if label == one) for one in set(slow))
    assert sorted(clusters.members()) == expected
    assert 2 < len(expected) < len(texts)


def test_shingles_see_every_script() -> None:
    assert shingles("Take it, twice a day!") == {"take it twice a day"}
    assert shingles("Yes.") == {"yes"}
    assert shingles("…") == frozenset()
    assert len(shingles("दवा दिन में दो बार लें")) == 2
    assert len(shingles("每天服药两次")) == 2


# Data of persons.


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("MRN: 00482213, seen in clinic.", "record number"),
        ("Patient ID 4471 has a cough.", "record number"),
        ("DOB 03/04/1961.", "date of birth"),
        ("She was born on 4 March 1961.", "date of birth"),
        ("His SSN is 123-45-6789.", "social security number"),
        ("Aadhaar number 1234 5678 9012", "national identity number"),
        ("Patient name: Amina", "name of a person"),
        ("Mrs. Smith is a 64-year-old with chest pain.", "name of a person"),
        ("Mr. Otieno was seen on 12/03/2021.", "name beside a date"),
        ("My number is 555-201-3344.", "telephone number"),
        ("Reach me at +254 722 123456.", "telephone number"),
        ("Write to jane.doe@gmail.com", "e-mail address"),
    ],
)
def test_data_of_a_person_is_refused_with_its_line_and_without_its_value(text: str, kind: str) -> None:
    found = find_patient_data(_entries(("What now?", "Rest and drink."), ("What now?", text)))
    with pytest.raises(DataError) as refused:
        refuse_patient_data(found)
    assert f"{kind} in notes.csv line 3" in refused.value.message
    said = refused.value.message + refused.value.hint
    assert not any(
        word in said for word in ("0048", "4471", "1961", "6789", "Amina", "Smith", "3344", "jane")
    )


@pytest.mark.parametrize(
    "text",
    [
        "Call the hotline at 1-800-222-1222.",
        "Contact the National Institute at 301-496-5248 or info@nih.gov.",
        "Dr. Down described it in 1866.",
        "Take 250 mg on 2 of 3 days; the ratio is 120-80-100, the doses 250 500 1000 mg.",
        "It was approved on 12/03/2011.",
        "Of 1200 patients 300 had it (2001-2010).",
        "Patient number two felt better.",
    ],
)
def test_institutions_and_numbers_of_medicine_are_no_data_of_persons(text: str) -> None:
    assert not find_patient_data(_entries(("What?", text))).personal


# Split and leaks.


def test_a_split_by_group_never_leaks_and_has_the_sizes_asked_for() -> None:
    for seed in range(5):
        pairs = _pairs(200, seed=seed)
        split = split_pairs(pairs, answer_clusters(pairs), train=300, heldout=40, seed=seed)
        assert (len(split.train), len(split.heldout)) == (300, 40)
        assert find_leaks(split.train, split.heldout).facts.leaking == 0
        assert split.facts.unused == len(pairs) - 340


def test_a_random_split_leaks_and_training_is_refused() -> None:
    pairs = _pairs(200)
    split = split_pairs(pairs, answer_clusters(pairs), method="random", train=400, heldout=60)
    report = find_leaks(split.train, split.heldout)
    assert report.facts.shared_group > 30
    assert report.facts.answer_exact == sum(pair.answer == PARAGRAPH for pair in split.heldout) > 0
    with pytest.raises(LeakError, match=f"{report.facts.leaking} of 60 held-out pairs leak"):
        refuse_leaks(report.facts)


def test_each_kind_of_leak_is_found() -> None:
    long = "Drink a lot of clean water with sugar and salt, and rest until the fever has gone away again."
    train = [QAPair(id="t1", question="What helps?", answer=f"First of all: {long}", group="Cholera")]
    heldout = [
        QAPair(id="group", question="a", answer="Nothing of the kind is known.", group="cholera "),
        QAPair(id="question", question="what helps", answer="Nothing at all is known."),
        QAPair(id="half", question="b", answer="Drink a lot of clean water with sugar and salt, then go."),
        QAPair(id="exact", question="c", answer=f"first of all:  {long}"),
        QAPair(id="none", question="d", answer="A lot of clean water is needed in a hospital."),
    ]
    report = find_leaks(train, heldout)
    facts = report.facts
    assert (facts.shared_group, facts.shared_question, facts.answer_contained, facts.answer_exact) == (
        1,
        1,
        2,
        1,
    )
    assert [leak.heldout for leak in report.leaks] == ["group", "question", "half", "exact"]
    assert report.leaks[2].answer_contained_in == "t1"


def test_what_was_trained_on_is_not_held_out_when_the_data_grow() -> None:
    pairs = _pairs(200)
    before = split_pairs(pairs, answer_clusters(pairs), train=300, heldout=40)
    groups = {pair.group for pair in before.train}
    grown = pairs + _pairs(100, first=200)
    after = split_pairs(grown, answer_clusters(grown), train=500, heldout=40)
    assert not groups & {pair.group for pair in after.heldout}
    shuffled = random.Random(1).sample(pairs, len(pairs))
    assert split_pairs(shuffled, answer_clusters(shuffled), train=300, heldout=40).facts == before.facts
    assert (
        split_pairs(pairs, answer_clusters(pairs), train=300, heldout=40, seed=1).facts.sha256
        != before.facts.sha256
    )


def test_sizes_that_cannot_be_had_are_refused_and_defaults_shrink_with_the_data() -> None:
    pairs = _pairs(40)
    near = answer_clusters(pairs)
    with pytest.raises(DataError, match="1900 training and 100 held-out pairs were asked for, but only 100"):
        split_pairs(pairs, near, train=1900, heldout=100)
    with pytest.raises(DataError, match="pairs can be held out"):
        split_pairs(pairs, near, train=1, heldout=95)
    with pytest.raises(DataError, match="cannot be divided"):
        split_pairs(pairs[:1], answer_clusters(pairs[:1]))
    facts = split_pairs(pairs, near).facts
    assert facts.heldout == 5
    assert facts.train + facts.heldout + facts.unused == 100
    many = _pairs(1000)
    facts = split_pairs(many, answer_clusters(many)).facts
    assert (facts.train, facts.heldout) == (1900, 100)


# prepare.


def test_prepare_writes_a_folder_that_is_read_back_and_the_same_each_time(tmp_path: Path) -> None:
    source = _jsonl(tmp_path / "pairs.jsonl", _pairs(100))
    card = prepare(
        [source], tmp_path / "one", options=ReadOptions(license="CC0"), token_counters={"letters": len}
    )
    prepare([source], tmp_path / "two", options=ReadOptions(license="CC0"), token_counters={"letters": len})
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(prepare_module._OUR_NAMES)
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    data = read_dataset(tmp_path / "one")
    assert data.card == card
    assert (len(data.train), len(data.heldout)) == (card.split.train, card.split.heldout)
    assert card.leaks.leaking == 0
    assert card.lengths["answer_tokens_letters"] == card.lengths["answer_characters"]
    assert card.sources[0].license == "CC0"
    hashes = json.loads((tmp_path / "one" / "split.json").read_text())["pairs"]
    assert hashes["heldout"] == {pair.id: pair.sha256() for pair in data.heldout}
    assert "None of the" in (tmp_path / "one" / "dataset_card.md").read_text(encoding="utf-8")


def test_a_data_set_that_was_changed_by_hand_is_refused(tmp_path: Path) -> None:
    prepare([_jsonl(tmp_path / "pairs.jsonl", _pairs(50))], tmp_path / "out")
    with (tmp_path / "out" / "train.jsonl").open("ab") as file:
        file.write(b"\n")
    with pytest.raises(DataError, match=r"train.jsonl is not as `prepare` wrote it"):
        read_dataset(tmp_path / "out")
    with pytest.raises(DataError, match="no prepared data"):
        read_dataset(tmp_path)


def test_a_folder_is_replaced_only_when_asked_and_only_when_it_is_ours(tmp_path: Path) -> None:
    source, out = _jsonl(tmp_path / "pairs.jsonl", _pairs(50)), tmp_path / "out"
    prepare([source], out)
    with pytest.raises(DataError, match="already holds a data set"):
        prepare([source], out)
    assert prepare([source], out, overwrite=True, seed=3).split.seed == 3
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="something else"):
        prepare([source], out, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir() if "." in path.name) == ["pairs.jsonl"]


def test_a_full_disk_leaves_the_old_data_set_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = _jsonl(tmp_path / "pairs.jsonl", _pairs(50)), tmp_path / "out"
    old = prepare([source], out)

    def full(path: Path, _data: bytes) -> None:
        if path.name == "split.json":
            raise OSError(28, "No space left on device")
        path.write_bytes(b"half")

    monkeypatch.setattr(prepare_module, "write_durably", full)
    with pytest.raises(StorageError, match="No space left on device"):
        prepare([source], out, overwrite=True, seed=3)
    assert read_dataset(out).card == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "pairs.jsonl"]


def test_data_of_persons_stop_prepare_unless_allowed_and_stand_in_the_card(tmp_path: Path) -> None:
    pairs = [
        *_pairs(50),
        QAPair(id="x", question="MRN 4471123, what now?", answer="Rest until the fever has gone."),
    ]
    source = _jsonl(tmp_path / "notes.jsonl", pairs)
    with pytest.raises(DataError, match=r"record number in notes.jsonl line 124"):
        prepare([source], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    card = prepare([source], tmp_path / "out", allow_pii=True)
    assert card.patient_data.personal == {"record number": 1}
    assert "allowed by whoever" in card_markdown(card)


def test_two_sources_may_use_the_same_ids_and_one_without_a_licence_is_marked(tmp_path: Path) -> None:
    one = _jsonl(tmp_path / "a.jsonl", _pairs(40))
    other = _jsonl(tmp_path / "b.jsonl", _pairs(40, seed=9))
    card = prepare([one, other], tmp_path / "out", split="random", train=150, heldout=20)
    assert [source.rows for source in card.sources] == [100, 100]
    assert len({pair.id for pair in read_dataset(tmp_path / "out").train}) == 150
    assert "not stated" in card_markdown(card)
    assert "As in the study" not in card_markdown(card)
    assert "At random, as in the study" in card_markdown(card)


def test_the_studys_own_data_lose_their_artefacts_and_leaks(tmp_path: Path) -> None:
    source = shared_path("data", "paper_2000_instruct.jsonl.xz")
    card = prepare([source], tmp_path / "group")
    dropped = {count.rule: count.dropped for count in card.rules}
    assert 49 <= dropped["artefacts"] <= 60
    assert dropped["link-lists"] == 200
    assert {count.rule: count.changed for count in card.rules}["characters"] == 447
    assert card.leaks.leaking == 0
    study = prepare(
        [source], tmp_path / "study", split="random", skip_rules=RULE_NAMES, train=1900, heldout=100
    )
    assert 8 <= study.leaks.answer_contained <= 25
    assert 1 <= study.leaks.answer_exact <= 8


@pytest.mark.slow
def test_all_of_medquad_is_prepared_in_a_minute_without_a_leak(tmp_path: Path) -> None:
    started = time.process_time()
    card = prepare([shared_path("data", "medquad.jsonl.xz")], tmp_path / "out", train=12_000, heldout=500)
    assert time.process_time() - started < 60
    assert card.leaks.leaking == 0
    assert (card.split.train, card.split.heldout) == (12_000, 500)
    assert card.sources[0].rows == len(read_source(shared_path("data", "medquad.jsonl.xz")).pairs) == 15_608
