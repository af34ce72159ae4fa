"""The questions that ship, the files that users bring, and the bad ones among them."""

import itertools
import json
import lzma
import re
from collections import Counter
from pathlib import Path

import pytest
from edgemed_benchmarks.errors import ItemError
from edgemed_benchmarks.invented_names import disease_names, drug_names
from edgemed_benchmarks.item_files import (
    LARGEST_FILE_BYTES,
    Header,
    encode_item_set,
    find_item_set,
    read_item_set,
    shipped_folder,
    shipped_sets,
)
from edgemed_benchmarks.items_import import Imported, import_items
from edgemed_benchmarks.suite_safety import TAGS

from edgemed.metrics import words
from edgemed.records import Item
from tests.shared_material import shared_path

SHIPPED = [*shipped_sets("latency"), *shipped_sets("quality"), *shipped_sets("safety")]
ITEMS = [item for each in SHIPPED for item in each.items]
HEADER = Header(edgemed_items=1, name="own", suite="quality", source="here", license="CC0-1.0")
CHOICE = Item(id="a", kind="choice", question="Which?", options=["one", "two"], correct=0)


def tagged(tag: str) -> list[Item]:
    return [item for item in ITEMS if tag in item.tags]


def test_enough_questions_of_every_kind_ship() -> None:
    kinds = Counter(item.kind for item in ITEMS)
    assert kinds["generation"] >= 40 and kinds["choice"] >= 60 + 40
    for length in ("short", "history", "passages"):
        assert len(tagged(f"length:{length}")) >= 10
    fewest = {"must_refuse": 30, "benign_twin": 30, "none_of_the_above": 20, "invented": 20, "red_flag": 20}
    for tag in TAGS:
        assert len(tagged(tag)) >= fewest.get(tag, 12), tag


def test_every_shipped_question_has_an_id_of_its_own_and_says_what_it_is() -> None:
    assert len({item.id for item in ITEMS}) == len(ITEMS)
    for each in SHIPPED:
        assert each.license == "CC0-1.0" and "no clinical test" in each.note
        assert each.path.stem == each.name
        assert each.suite != "safety" or all(set(item.tags) & set(TAGS) for item in each.items)
    assert all(item.references for item in ITEMS if item.kind == "generation")


def test_neither_place_nor_length_gives_the_right_option_away() -> None:
    for tag in ("", "none_of_the_above", "has_an_answer"):
        items = [
            item
            for item in ITEMS
            if item.options and (tag in item.tags if tag else item.id.startswith("choice"))
        ]
        places = Counter(item.correct for item in items)
        assert max(places.values()) - min(places.values()) <= 1 and set(places) == {0, 1, 2, 3}
    choice = find_item_set("choice").items
    longest = sum(len(item.options[item.correct or 0]) == max(map(len, item.options)) for item in choice)
    shortest = sum(len(item.options[item.correct or 0]) == min(map(len, item.options)) for item in choice)
    # Who always takes the longest, or the shortest, option is right in at most four of ten.
    assert longest / len(choice) < 0.4 and shortest / len(choice) < 0.4


def test_no_two_shipped_questions_ask_the_same() -> None:
    """Twins, controls and the templates of invented names are alike on purpose, and share a group."""
    asked = [(item, frozenset(words(item.question))) for item in ITEMS]
    for (one, its), (other, others) in itertools.combinations(asked, 2):
        if not (one.group and one.group == other.group):
            assert len(its & others) / len(its | others) < 0.8, (one.id, other.id)


def test_harmful_requests_have_their_twins_and_questions_without_answer_their_controls() -> None:
    for first, second in (("must_refuse", "benign_twin"), ("none_of_the_above", "has_an_answer")):
        assert {item.group for item in tagged(first)} == {item.group for item in tagged(second)}
    for item in tagged("none_of_the_above"):
        assert item.options[item.correct or 0] == "None of these answers"
    for item in tagged("has_an_answer"):
        assert "None of these answers" in item.options and item.options[item.correct or 0][:4] != "None"


def test_invented_names_come_from_the_grammar_and_stay_the_same() -> None:
    named = [tag.removeprefix("name:").split()[0] for item in tagged("invented") for tag in item.tags[1:]]
    grammar = {*itertools.islice(drug_names(), 12), *itertools.islice(disease_names(), 12)}
    assert set(named) == grammar
    assert set(itertools.islice(drug_names(seed=8), 12)).isdisjoint(grammar)


@pytest.mark.slow
def test_no_eight_words_of_ours_and_no_invented_name_stand_in_the_public_sets() -> None:
    texts = [
        text for item in ITEMS for text in (item.question, *item.references, *item.passages, *item.history)
    ]
    ours = {
        gram for text in texts for gram in zip(*(words(text)[start:] for start in range(8)), strict=False)
    }
    names = {
        tag.removeprefix("name:").split()[0].lower() for item in tagged("invented") for tag in item.tags[1:]
    }
    for name in (
        "medquad",
        "wikidoc_patient_information",
        "medmcqa_dev",
        "mmlu_med_test",
        "medsafetybench_train",
    ):
        with lzma.open(shared_path("data", f"{name}.jsonl.xz"), "rt", encoding="utf-8") as file:
            for line in file:
                found = re.findall("[a-z0-9]+", line.lower())
                assert names.isdisjoint(found)
                assert ours.isdisjoint(zip(*(found[start:] for start in range(8)), strict=False))


# Bad item files.


def lines(*rows: object) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


HEAD = {"edgemed_items": 1, "name": "own", "suite": "quality", "source": "here", "license": "CC0-1.0"}
GOOD = {"id": "a", "kind": "generation", "question": "What?", "references": ["That."]}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (lines(HEAD), "holds no questions"),
        (lines(GOOD), "line 1 does not say what the file is"),
        (lines({**HEAD, "edgemed_items": 2}, GOOD), "line 1 does not say what the file is"),
        (lines(HEAD, GOOD, GOOD), "line 3 has the id 'a' of line 2 again"),
        (lines(HEAD, GOOD) + b"{", "line 3 is no item"),
        (lines(HEAD, {**GOOD, "surplus": 1}), "line 2 is no item"),
        (lines(HEAD, {**GOOD, "question": " "}), "line 2 has no question"),
        (lines(HEAD, {**GOOD, "id": ""}), "line 2 has no id"),
        (lines(HEAD, {**GOOD, "history": ["Only a question?"]}), "line 2 has a question without an answer"),
        (lines(HEAD, {**GOOD, "kind": "choice"}), "line 2 needs 2 to 10 options and has 0"),
        (lines(HEAD, {**GOOD, "options": ["x", "x"], "correct": 0}), "line 2 has the same option twice"),
        (lines(HEAD, {**GOOD, "options": ["x", "y"], "correct": 2}), "names number 2 as the right one"),
        (lines(HEAD, GOOD) + b'{"id": "b\xff"}\n', "line 3 is no UTF-8 at byte 10"),
        (lines(HEAD) + b"x" * (2**20 + 2), "line 2 is longer than 1 MiB"),
    ],
)
def test_a_bad_item_file_is_refused_and_the_line_is_named(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "own.jsonl"
    path.write_bytes(data)
    with pytest.raises(ItemError, match=says) as caught:
        read_item_set(path)
    assert str(path) in caught.value.message and caught.value.hint


def test_missing_and_huge_item_files_are_refused_before_they_are_read(tmp_path: Path) -> None:
    with pytest.raises(ItemError, match="cannot be read: No such file"):
        read_item_set(tmp_path / "gone.jsonl")
    with pytest.raises(ItemError, match="Did you mean choice"):
        find_item_set("choise")
    huge = tmp_path / "huge.jsonl"
    with huge.open("wb") as file:
        file.truncate(LARGEST_FILE_BYTES + 1)
    with pytest.raises(ItemError, match="256 MiB is the most"):
        read_item_set(huge)


def test_an_item_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + encode_item_set(HEADER, [CHOICE]))
    read = read_item_set(path)
    assert read.items == [CHOICE] and read.item_file.items == 1 and len(read.sha256) == 64


# Importing.


def imported(tmp_path: Path, name: str, data: bytes | str, **options: object) -> Imported:
    path = tmp_path / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return import_items(path, name="mine", **options)  # type: ignore[arg-type]


OWN: dict[str, object] = {"source": "our clinic", "licence": "CC0-1.0"}
LETTERED = {"question": "Which?", "options": {"A": "one", "B": "two", "C": "three"}, "answer_idx": "B"}
MEDMCQA = {
    "id": "x1",
    "question": "Which?",
    "opa": "one",
    "opb": "two",
    "opc": "three",
    "opd": "four",
    "cop": 1,
}
PUBMEDQA = {"QUESTION": "Does it?", "CONTEXTS": ["It may.", "It did."], "LABELS": [], "final_decision": "yes"}
KQA = {"Question": "Can I?", "Must_have": ["Yes.", "Slowly."], "Free_form_answer": "", "ICD_10_diag": "x"}


@pytest.mark.parametrize(
    ("name", "data", "file_format", "told", "right"),
    [
        ("medqa.jsonl", lines({**LETTERED, "answer": "two", "meta_info": "step1"}), "medqa", "medqa", "two"),
        ("medmcqa.json", lines(MEDMCQA, {**MEDMCQA, "id": "x2", "question": "And?", "cop": 4}), None, "medmcqa", "one"),
        ("medmcqa.jsonl", lines(MEDMCQA, {**MEDMCQA, "id": "x2", "question": "And?", "cop": 0}), None, "medmcqa", "two"),
        ("mirage.jsonl", lines({**LETTERED, "subject": "Anatomy"}), "mmlu", "mmlu", "two"),
        ("mmlu.csv", '"Which, then?",one,two,three,four,C\n', "mmlu", "mmlu", "three"),
        ("mmlu.jsonl", lines({"question": "Q?", "subject": "s", "choices": ["x", "y"], "answer": 1}), None, "mmlu", "y"),
        ("ori_pqal.json", json.dumps({"123": PUBMEDQA}), None, "pubmedqa", "yes"),
        (
            "pubmedqa.jsonl",
            lines({"pubid": 1, "question": "Q?", "context": {"contexts": ["C."]}, "final_decision": "no"}),
            None,
            "pubmedqa",
            "no",
        ),
        ("kqa.jsonl", lines(KQA), None, "kqa", "Yes. Slowly."),
        ("own.jsonl", lines({"question": "Q?", "answer": "Because."}), None, "jsonl", "Because."),
        ("meadow.json", json.dumps([{"instruction": "Answer.", "input": "Q?", "output": "R."}]), None, "jsonl", "R."),
        ("own.csv", "Question,Answer\r\n\"Why\r\nso?\",Because.\r\n", None, "csv", "Because."),
        ("own.tsv", "question\toption_a\toption_b\tanswer\nQ?\tyes\tno\tb\n", None, "csv", "no"),
        ("options.csv", "question,A,B,C,correct\nQ?,x,y,,y\n", None, "csv", "y"),
    ],
)  # fmt: skip
def test_each_published_shape_is_read(
    tmp_path: Path, name: str, data: bytes | str, file_format: str | None, told: str, right: str
) -> None:
    options = OWN if told in ("jsonl", "csv") else {}
    result = imported(tmp_path, name, data, file_format=file_format, **options)
    item = result.item_set.items[0]
    assert result.format == told and result.item_set.license and result.item_set.source
    assert (item.options[item.correct or 0] if item.options else item.references[0]) == right
    assert item.id.startswith("mine-")
    assert find_item_set("mine").items == result.item_set.items


def test_pubmedqas_abstract_and_medical_meadows_question_arrive(tmp_path: Path) -> None:
    item = imported(tmp_path, "p.json", json.dumps({"123": PUBMEDQA})).item_set.items[0]
    assert item.passages == ["It may.", "It did."] and item.id == "mine-123"
    meadow = json.dumps([{"instruction": "Answer.", "input": "Why?", "output": "R."}])
    assert imported(tmp_path, "m.json", meadow, replace=True, **OWN).item_set.items[0].question == "Why?"


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.jsonl", lines({"q": "x", "a": "y"}), "its columns are a, q"),
        ("a.csv", "What helps against pain in the back?,Rest a little\nx,y\n", "holds no names of columns"),
        ("a.jsonl", lines({"question": "Q?", "answer": "R."}) + b"[1]\n", "line 2 is no JSON object"),
        ("a.jsonl", lines({"question": "Q?", "answer": "R."}, {"question": "Q?"}), "line 2 has no text as an answer"),
        ("a.jsonl", lines({**LETTERED, "answer_idx": "E"}), "line 1 names a right option that is not there: 'E'"),
        ("a.jsonl", lines(MEDMCQA), "whether its column cop counts from 0 or from 1"),
        ("a.jsonl", lines({**MEDMCQA, "cop": -1}), "its publisher holds them back"),
        ("a.csv", "question,answer\nQ?,R.\nQ?\n", "line 3 has 1 columns, and the header 2"),
        ("a.csv", "question,answer\n\n\"Q?,R.\n", "line 3 is no CSV"),
        ("a.csv", "question,answer\n\"Q\nover\nlines?\",R.\nQ?\n", "line 5 has 1 columns, and the header 2"),
        ("a.csv", "question,answer\nQ?,\xe9\n".encode("latin-1"), "line 2 is no UTF-8 at byte 4"),
        ("a.csv", "question,answer\n", "holds no questions"),
        ("a.jsonl", b"\xff", "line 1 is no UTF-8 at byte 1"),
        ("a.json", b"[]", "holds no questions"),
        ("a.jsonl", lines(*({**LETTERED, "question": "", "id": n} for n in range(3))), "has no text as a question"),
        ("a.jsonl", lines({**LETTERED, "options": {"A": "x", "B": "x"}}), "line 1 has the same option twice"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_imported_is_named_with_its_line(
    tmp_path: Path, name: str, data: bytes | str, says: str
) -> None:
    with pytest.raises(ItemError, match=says) as caught:
        imported(tmp_path, name, data, **OWN)
    assert "back?" not in caught.value.message
    with pytest.raises(ItemError, match="no set of questions 'mine'"):
        find_item_set("mine")


def test_source_and_licence_must_be_known(tmp_path: Path) -> None:
    with pytest.raises(ItemError, match="under which licence is not known"):
        imported(tmp_path, "a.jsonl", lines(LETTERED))


def test_a_shipped_set_cannot_be_hidden_and_a_set_is_not_lost_by_mistake(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines({"question": "Q?", "answer": "R."}))
    with pytest.raises(ItemError, match="comes with edgemed"):
        import_items(path, name="choice")
    with pytest.raises(ItemError, match="cannot be the name"):
        import_items(path, name="../evil")
    import_items(path, name="mine", source="here", licence="CC0-1.0")
    with pytest.raises(ItemError, match="There is a set mine already"):
        import_items(path, name="mine", source="here", licence="CC0-1.0")


def test_repetitions_and_slips_are_left_out_and_counted(tmp_path: Path) -> None:
    slip = {**LETTERED, "question": "Slip?", "options": {"A": "x", "B": "x"}}
    result = imported(tmp_path, "a.jsonl", lines(LETTERED, slip, LETTERED), **OWN)
    assert (len(result.item_set.items), result.repeated, result.unusable) == (1, 1, [2])


def test_questions_that_stand_in_the_training_file_are_counted(tmp_path: Path) -> None:
    seen = "How much zinc does a small child with diarrhoea get for how long?"
    rows = [
        {"question": question, "answer": "R."}
        for question in (seen, "What is a normal pulse of a newborn baby?", "Why?")
    ]
    training = tmp_path / "train.jsonl"
    training.write_bytes(lines({"messages": [{"role": "user", "content": f"Hello. {seen.upper()}"}]}))
    overlap = imported(tmp_path, "a.jsonl", lines(*rows), training=training, **OWN).overlap
    assert overlap is not None
    assert (overlap.items, overlap.shared, overlap.too_short) == (2, ["mine-1"], 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "file_format", "count", "repeated"),
    [("medmcqa_dev", "medmcqa", 4162, 0), ("mmlu_med_test", "mmlu", 1011, 78), ("pubmedqa_pqal_train", None, 500, 0), ("kqa_questions", None, 1164, 48)],
)  # fmt: skip
def test_the_public_sets_are_read_whole(
    tmp_path: Path, name: str, file_format: str | None, count: int, repeated: int
) -> None:
    """MMLU asks 78 of its medical questions under two subjects; 21 of MedMCQA have an option twice."""
    path = tmp_path / f"{name}.jsonl"
    path.write_bytes(lzma.decompress(shared_path("data", f"{name}.jsonl.xz").read_bytes()))
    result = import_items(path, name="mine", file_format=file_format)
    assert (len(result.item_set.items), result.repeated) == (count, repeated)


def test_the_readme_counts_what_ships() -> None:
    text = (shipped_folder() / "README.md").read_text(encoding="utf-8")
    assert f"{len(ITEMS)} short questions" in text
    for each in SHIPPED:
        assert f"`{each.path.name}`" in text
