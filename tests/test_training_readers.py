"""Data in: every shape people hand over becomes the same record, and every broken file a sentence with its place."""

import gzip
import json
import lzma
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import msgspec
import pytest
from edgemed_training.errors import DataError
from edgemed_training.readers import plain_file
from edgemed_training.readers.columns import ReadOptions
from edgemed_training.readers.source import Source, read_source
from edgemed_training.records import QAPair, encode_pairs, read_pairs

from tests.shared_material import shared_path

ROWS = [
    {"question": "What is malaria?", "answer": "A disease that mosquitoes bring."},
    {"question": "Is it curable?", "answer": 'Yes, with medicine.\nSee a doctor, "soon".'},
]
DIALECTS = {
    "1_CancerGov_QA/0000001_1.xml": """<?xml version="1.0" encoding="UTF-8"?>
<Document id="0000001_1" source="CancerGov" url="u"><Focus>Leukemia</Focus><QAPairs>
<QAPair pid="1"><Question qid="q" qtype="t">What is (are) Leukemia ?</Question><Answer>A cancer &amp; more.</Answer></QAPair>
<QAPair pid="2"><Question>What causes it ?</Question><Answer>  </Answer></QAPair></QAPairs></Document>""",
    "6_NINDS_QA/0000007.xml": """<doc docid="0000007" corpus="NINDS"><doctitle-focus>Holmes-Adie</doctitle-focus><qaPairs>
<pair pid="1"><question qtype="information">what is it ?</question><answer>A disorder of the eye.</answer></pair></qaPairs></doc>""",
    "9_CDC_QA/0000397.xml": """<DiseaseFile fid="0000397" source="CDC"><Focus>Taeniasis</Focus><QAPairs>
<QAPair pid="1"><Question>What is Taeniasis ?</Question><Answer>A tapeworm &lt; 10 m.</Answer></QAPair></QAPairs></DiseaseFile>""",
}


def _write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def _refusal(path: Path, **options: object) -> str:
    """Return the message and the hint with which a source is refused."""
    with pytest.raises(DataError) as refused:
        read_source(path, ReadOptions(**options))  # type: ignore[arg-type]
    assert refused.value.exit_code == 2
    assert refused.value.hint
    return f"{refused.value.message} {refused.value.hint}"


def _texts(source: Source) -> list[dict[str, str]]:
    return [{"question": entry.pair.question, "answer": entry.pair.answer} for entry in source.pairs]


def test_all_three_dialects_of_medquad_are_read(tmp_path: Path) -> None:
    """Four NINDS files are written in another dialect: 16 answered pairs, the difference of 16,407 to 16,423."""
    for name, text in DIALECTS.items():
        _write(tmp_path / "MedQuAD" / name, text)
    source = read_source(tmp_path / "MedQuAD")
    assert [entry.pair.id for entry in source.pairs] == [f"{name[:-4]}#1" for name in sorted(DIALECTS)]
    assert [entry.pair.group for entry in source.pairs] == ["Leukemia", "Holmes-Adie", "Taeniasis"]
    assert source.pairs[0].pair.answer == "A cancer & more."
    assert source.pairs[2].pair.answer == "A tapeworm < 10 m."
    assert source.pairs[1].pair.source == "MedQuAD (NINDS)"
    assert {entry.pair.license for entry in source.pairs} == {"CC BY 4.0"}
    assert source.pairs[0].place == "line 3"
    assert (source.facts.rows, source.facts.unanswered) == (3, 1)


def test_an_entity_bomb_and_an_external_entity_are_refused(tmp_path: Path) -> None:
    bomb = '<!DOCTYPE d [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><Document source="x">&b;</Document>'
    assert "document type in line 1" in _refusal(_write(tmp_path / "bomb.xml", bomb))
    outside = '<?xml version="1.0"?>\n<!DOCTYPE d SYSTEM "file:///etc/passwd">\n<Document/>'
    assert "document type in line 2" in _refusal(_write(tmp_path / "outside.xml", outside))


def test_broken_xml_names_the_line_and_other_xml_is_refused(tmp_path: Path) -> None:
    broken = DIALECTS["6_NINDS_QA/0000007.xml"].replace("</pair>", "")
    assert "broken XML in line 2: mismatched tag" in _refusal(_write(tmp_path / "a.xml", broken))
    assert "begins with <rss>" in _refusal(_write(tmp_path / "b.xml", "<rss></rss>"))
    unanswered = '<Document source="ADAM"><QAPairs><QAPair pid="1"><Question>What?</Question><Answer></Answer></QAPair></QAPairs></Document>'
    assert "0 of 1" in _refusal(_write(tmp_path / "c.xml", unanswered))


@pytest.mark.parametrize(
    "rows",
    [
        [
            {"instruction": "Answer truthfully", "input": row["question"], "output": row["answer"]}
            for row in ROWS
        ],
        [{"prompt": row["question"], "completion": row["answer"]} for row in ROWS],
        [{"Question": row["question"], "Answer": row["answer"]} for row in ROWS],
        [{"instruction": row["question"], "input": "", "output": row["answer"]} for row in ROWS],
        [
            {
                "messages": [
                    {"role": "user", "content": row["question"]},
                    {"role": "assistant", "content": row["answer"]},
                ]
            }
            for row in ROWS
        ],
        [
            {
                "conversations": [
                    {"from": "human", "value": row["question"]},
                    {"from": "gpt", "value": row["answer"]},
                ]
            }
            for row in ROWS
        ],
        [
            {
                "prompt": [{"role": "user", "content": row["question"]}],
                "completion": [{"role": "assistant", "content": row["answer"]}],
            }
            for row in ROWS
        ],
    ],
    ids=["medical-meadow", "prompt-completion", "question-answer", "alpaca", "messages", "sharegpt", "trl"],
)
def test_every_json_layout_gives_the_same_pairs(tmp_path: Path, rows: list[dict[str, object]]) -> None:
    as_list = _write(tmp_path / "a.json", json.dumps(rows, indent=1))
    as_lines = _write(tmp_path / "b.jsonl", "\n\n".join(map(json.dumps, rows)))
    wrapped = _write(tmp_path / "c.json", json.dumps({"version": 1, "data": rows}))
    for path in (as_list, as_lines, wrapped):
        assert _texts(read_source(path)) == ROWS
    assert [entry.place for entry in read_source(as_lines).pairs] == ["line 1", "line 3"]
    assert read_source(as_list).pairs[1].pair.id == "a.json#2"


def test_a_conversation_keeps_its_system_prompt_and_earlier_turns(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "I have a fever."},
        {"role": "assistant", "content": "Since when?"},
        {"role": "user", "content": [{"type": "text", "text": "Three days."}]},
        {"role": "assistant", "content": "See a doctor."},
        {"role": "user", "content": "Thank you"},
    ]
    pair = read_source(_write(tmp_path / "a.jsonl", json.dumps({"messages": messages}))).pairs[0].pair
    assert pair.system == "Be brief."
    assert pair.turns == (("I have a fever.", "Since when?"),)
    assert (pair.question, pair.answer) == ("Three days.", "See a doctor.")


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ("hello", "its messages are a str, not a list"),
        ([{"role": "assistant", "content": "x"}], "message 1 answers, but no question"),
        ([{"role": "user", "content": "x"}] * 2, "messages 1 and 2 are both of the user"),
        ([{"role": "tool", "content": "x"}], "message 1 has a role that is not"),
        ([{"role": "user", "content": [{"type": "image"}]}], "message 1 holds something that is not text"),
        ([{"role": "user", "content": None}], "message 1 has no text"),
        (
            [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}],
            "message 2 is a system message",
        ),
    ],
)
def test_a_conversation_out_of_order_is_refused_with_its_line(
    tmp_path: Path, messages: object, said: str
) -> None:
    assert f"a.jsonl line 1: {said}" in _refusal(
        _write(tmp_path / "a.jsonl", json.dumps({"messages": messages}))
    )


@pytest.mark.parametrize(("name", "sign"), [("a.csv", ","), ("b.csv", ";"), ("c.tsv", "\t")])
def test_csv_is_read_with_its_line_ends_quotes_and_delimiter(tmp_path: Path, name: str, sign: str) -> None:
    header = sign.join(("question", "answer", "source", "focus_area"))
    row = sign.join(("What?", f'"One ""two""{sign}\r\nthree"', "GHR", "Malaria"))
    entry = read_source(_write(tmp_path / name, f"\ufeff{header}\r\n{row}\r\n")).pairs[0]
    assert entry.pair.answer == f'One "two"{sign}\r\nthree'
    assert (entry.pair.group, entry.place) == ("Malaria", "line 2")
    assert (entry.pair.source, entry.pair.license) == ("MedQuAD (GHR)", "CC BY 4.0")


def test_broken_csv_names_the_line(tmp_path: Path) -> None:
    cut = 'question,answer\na,b\n"c\nd","cut off in the middle\nof'
    assert "ends inside the row that begins in line 3" in _refusal(_write(tmp_path / "a.csv", cut))
    assert "line 3 has 1 fields, but the header has 2" in _refusal(
        _write(tmp_path / "b.csv", "question,answer\na,b\nc")
    )
    assert "quotation mark in line 2" in _refusal(_write(tmp_path / "c.csv", 'question,answer\n"a"x,b\n'))
    assert "names a column twice" in _refusal(_write(tmp_path / "d.csv", "answer,answer\na,b\n"))


def test_unknown_columns_are_listed_with_the_keys_to_set(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", "Frage,Antwort,Thema\nWas?,Das.,Malaria\n")
    said = _refusal(path)
    assert "Found: 'Frage', 'Antwort', 'Thema'" in said
    assert "columns.question" in said
    mapping = {"question": "Frage", "answer": "Antwort", "group": "Thema"}
    pair = read_source(path, ReadOptions(columns=mapping, license="CC0")).pairs[0].pair
    assert (pair.question, pair.answer, pair.group, pair.license) == ("Was?", "Das.", "Malaria", "CC0")
    assert "no column 'Fragen'. Did you mean 'Frage'?" in _refusal(path, columns={"question": "Fragen"})
    assert "no field 'anwser'. Did you mean answer?" in _refusal(path, columns={"anwser": "Antwort"})


def test_a_column_without_a_name_is_nobodys_id(tmp_path: Path) -> None:
    """pandas writes its row numbers into one; it must not become id, group or source."""
    pair = read_source(_write(tmp_path / "a.csv", ",question,answer\n0,a,b\n0,c,d\n")).pairs[0].pair
    assert (pair.id, pair.group, pair.source) == ("a.csv#1", "", "a.csv")


def test_nulls_are_refused_with_row_and_field_or_dropped_when_asked(tmp_path: Path) -> None:
    rows = [*ROWS, {"question": "Why?", "answer": None}, {"question": "Who?"}]
    path = _write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    said = _refusal(path)
    assert "line 3, field 'answer' (answer); line 4, field 'answer' (answer)" in said
    source = read_source(path, ReadOptions(drop_null=True))
    assert (source.facts.rows, source.facts.unanswered) == (2, 2)
    number = _write(tmp_path / "b.jsonl", '{"question": "q", "answer": 5}')
    assert "line 1: the answer (column 'answer') is a int, not text" in _refusal(number)


def test_an_id_that_comes_twice_is_refused_with_both_places(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", "id,question,answer\n1,a,b\n2,c,d\n1,e,f\n")
    assert "the id '1' twice: line 2 and line 4" in _refusal(path)
    assert len(read_source(path, ReadOptions(columns={"id": ""})).pairs) == 3


def test_broken_json_names_the_line(tmp_path: Path) -> None:
    lines = '{"question": "a", "answer": "b"}\n{"question": "c", "answer": \n'
    assert "broken JSON in line 2" in _refusal(_write(tmp_path / "a.jsonl", lines))
    assert "broken JSON in line 3" in _refusal(
        _write(tmp_path / "b.json", '[\n{"question": "a", "answer": "b"},\n{"question": ')
    )
    assert "row 2 is a str" in _refusal(
        _write(tmp_path / "c.json", '[{"question": "a", "answer": "b"}, "x"]')
    )
    assert "not a list of questions" in _refusal(_write(tmp_path / "d.json", '{"a": {"b": 1},\n"c": 2}'))
    assert "empty list" in _refusal(_write(tmp_path / "e.json", "[]"))
    assert "nested too deep" in _refusal(_write(tmp_path / "f.json", "[" * 100_000))


def test_files_that_are_no_text_are_refused_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "never downloads" in _refusal(tmp_path / "owner" / "name")
    assert "is empty" in _refusal(_write(tmp_path / "a.csv", b""))
    assert "is empty" in _refusal(_write(tmp_path / "b.csv", b"\xef\xbb\xbf \n"))
    assert "byte 0xe9 in line 2" in _refusal(_write(tmp_path / "c.csv", b"question,answer\ncaf\xe9,b\n"))
    assert "UTF-16" in _refusal(_write(tmp_path / "d.csv", "question,answer".encode("utf-16")))
    assert "is binary" in _refusal(_write(tmp_path / "e.csv", b"question\x00"))
    with zipfile.ZipFile(tmp_path / "f.csv", "w") as archive:
        archive.writestr("x", "y")
    assert "ZIP archive or an Excel workbook" in _refusal(tmp_path / "f.csv")
    assert "pickle" in _refusal(_write(tmp_path / "g.json", pickle.dumps(ROWS)))
    assert "pickle" in _refusal(_write(tmp_path / "h.pkl", b"x"))
    assert "kind that edgemed does not know" in _refusal(_write(tmp_path / "i.docx", b"hello"))
    assert "holds nothing that edgemed reads (x.txt)" in _refusal(
        _write(tmp_path / "j" / "x.txt", b"x").parent
    )
    monkeypatch.setattr(plain_file, "MAX_BYTES", 10)
    assert "holds more than" in _refusal(_write(tmp_path / "k.csv", b"question,answer\n"))
    assert "holds more than" in _refusal(_write(tmp_path / "l.csv.xz", lzma.compress(b"a" * 1000)))


def test_compressed_files_are_read_and_damaged_ones_refused(tmp_path: Path) -> None:
    data = "\n".join(map(json.dumps, ROWS)).encode()
    assert _texts(read_source(_write(tmp_path / "a.jsonl.xz", lzma.compress(data)))) == ROWS
    assert _texts(read_source(_write(tmp_path / "b.jsonl.gz", gzip.compress(data)))) == ROWS
    for name, packed in (("c.jsonl.gz", gzip.compress(data)), ("d.jsonl.xz", lzma.compress(data))):
        assert "cannot be unpacked" in _refusal(_write(tmp_path / name, packed[:-20]))
    with tarfile.open(tmp_path / "e.json.gz", "w:gz") as archive:
        archive.add(tmp_path / "a.jsonl.xz", "a")
    assert "tar archive" in _refusal(tmp_path / "e.json.gz")


def test_parquet_and_saved_datasets_are_read_and_damage_is_named(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.Table.from_pylist(ROWS)
    parquet.write_table(table, tmp_path / "a.parquet")
    assert _texts(read_source(tmp_path / "a.parquet")) == ROWS
    cut = _write(tmp_path / "b.parquet", (tmp_path / "a.parquet").read_bytes()[:-30])
    assert "not a sound Parquet file" in _refusal(cut)
    latin = _write(
        tmp_path / "d.parquet", (tmp_path / "a.parquet").read_bytes().replace(b"mosquitoes", b"mosquito\xe9s")
    )
    assert "not a sound Parquet file" in _refusal(latin)
    nulls = pyarrow.table({"question": ["a", "b"], "answer": ["c", None]})
    parquet.write_table(nulls, tmp_path / "c.parquet")
    assert "row 2, field 'answer' (answer)" in _refusal(tmp_path / "c.parquet")

    saved = tmp_path / "saved" / "train"
    saved.mkdir(parents=True)
    with (
        pyarrow.OSFile(str(saved / "data.arrow"), "wb") as file,
        pyarrow.ipc.new_stream(file, table.schema) as out,
    ):
        out.write_table(table)
    _write(saved / "state.json", json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    _write(saved.parent / "dataset_dict.json", json.dumps({"splits": ["train"]}))
    assert _texts(read_source(saved.parent)) == _texts(read_source(saved)) == ROWS
    assert "Name the folder" in _refusal(saved / "data.arrow")
    ends = [len(row["answer"]) for row in ROWS]
    lengths = struct.pack("<3i", 0, ends[0], sum(ends))
    whole = (saved / "data.arrow").read_bytes()
    assert lengths in whole
    _write(saved / "data.arrow", whole.replace(lengths, struct.pack("<3i", 0, 2**30, -5)))
    assert "not a sound Arrow file" in _refusal(saved)  # it ended the process before
    _write(saved / "state.json", json.dumps({"_data_files": [{"filename": "../../secret.arrow"}]}))
    assert "lists a file outside itself" in _refusal(saved)
    _write(saved / "state.json", json.dumps({"_data_files": [{"filename": "gone.arrow"}]}))
    assert "not a sound Arrow file" in _refusal(saved)


def test_pairs_come_back_from_json_lines_as_they_went(tmp_path: Path) -> None:
    pairs = [
        QAPair(id="1", question="q", answer="a\u2028b", system="s", group="g", turns=(("x", "y"),)),
        QAPair(id="2", question="क्या?", answer="हाँ"),
    ]
    path = _write(tmp_path / "train.jsonl", encode_pairs(pairs))
    assert read_pairs(path) == pairs
    assert [entry.pair for entry in read_source(path).pairs] == [
        msgspec.structs.replace(pair, source=pair.source or "train.jsonl") for pair in pairs
    ]
    _write(path, encode_pairs(pairs) + b'{"id": "3", "question": "q", "anwser": "a"}\n')
    with pytest.raises(DataError, match=r"Line 3 of .*unknown field `anwser`"):
        read_pairs(path)
    _write(path, encode_pairs([pairs[0], pairs[0]]))
    with pytest.raises(DataError, match=r"Line 2 of .* has the id '1' of line 1"):
        read_pairs(path)


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("medquad_xml", 32),
        ("medquad_kaggle.csv", 60),
        ("medical_meadow_wikidoc_patient_information.json", 60),
        ("paper_instruct.jsonl", 60),
        ("chat_messages.jsonl", 60),
        ("paper_train-00000-of-00001.parquet", 60),
    ],
)
def test_the_real_shapes_are_read(name: str, rows: int) -> None:
    path = shared_path("data", "shapes", name)
    if path.suffix == ".parquet":
        pytest.importorskip("pyarrow")
    source = read_source(path)
    assert source.facts.rows == rows
    assert all(entry.pair.question and entry.pair.answer for entry in source.pairs)
    assert source.facts.license.startswith("CC BY")


def test_the_same_rows_in_five_shapes_are_the_same_pairs() -> None:
    pytest.importorskip("pyarrow")
    shapes = shared_path("data", "shapes")
    lines = _texts(read_source(shapes / "paper_instruct.jsonl"))
    assert lines == _texts(read_source(shapes / "chat_messages.jsonl"))
    assert lines == _texts(read_source(shapes / "paper_train-00000-of-00001.parquet"))


def test_a_real_saved_dataset_is_read(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    archive = shared_path("data", "shapes", "medical_mistral_instruct_dataset_short.save_to_disk.tar.xz")
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
    source = read_source(tmp_path / "data" / "processed_data" / "medical_mistral_instruct_dataset_short")
    assert (source.facts.rows, source.facts.shape) == (2000, "save_to_disk")
    same = read_source(shared_path("data", "paper_2000_instruct.jsonl.xz"))
    assert _texts(source) == _texts(same)
