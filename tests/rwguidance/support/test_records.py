"""The one reader of tables of texts: every format gives the same rows, and refuses by the line."""

import json
from random import Random

import pyarrow
import pytest
from pyarrow import parquet

from rwguidance.support.records import SUFFIXES, read_records

ROWS = [("a cat, asleep", "animal"), ('"émeu", the word', "text")]
CSV = 'Prompt,Kind,\n"a cat, asleep",animal,1\n\n"""émeu"", the word",text,2\n'
TSV = 'Prompt\tKind\na cat, asleep\tanimal\n\n"émeu", the word\ttext\n'
OBJECTS = [{"prompt": prompt, "kind": kind, "n": 1} for prompt, kind in ROWS]
TEXTS = {
    "p.csv": CSV,
    "p.TSV": TSV,
    "p.json": json.dumps(OBJECTS, indent=1),
    "p.jsonl": "\n\n".join(map(json.dumps, OBJECTS)),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("name", TEXTS)
def test_rows_do_not_depend_on_the_format(tmp_path, name, encoding):
    (tmp_path / name).write_text(TEXTS[name].replace("\n", "\r\n"), encoding=encoding, newline="")
    records = list(read_records(tmp_path / name, "PROMPT", "kind"))
    assert [(r.text("prompt"), r.text(" Kind")) for r in records] == ROWS


def test_parquet_without_its_pictures(tmp_path):
    columns = {"caption": [prompt for prompt, _ in ROWS], "jpg_0": [b"\xff\xd8", None]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "p.parquet")
    records = list(read_records(tmp_path / "p.parquet", "caption"))
    assert [record.values for record in records] == [{"caption": prompt} for prompt, _ in ROWS]
    assert [record.line for record in records] == [1, 2]
    with pytest.raises(ValueError, match=r"p\.parquet: expected the column 'jpg_0', got 'caption'"):
        list(read_records(tmp_path / "p.parquet", "jpg_0"))
    parquet.write_table(pyarrow.table({"caption": ["a", None]}), tmp_path / "none.parquet")
    first, second = read_records(tmp_path / "none.parquet", "caption")
    assert first.text("caption") == "a"
    with pytest.raises(ValueError, match=r"row 2: 'caption' must be a string, got None"):
        second.text("caption")
    for kind in (pyarrow.string(), pyarrow.large_string()):
        column = pyarrow.array(["a", None, "a"], pyarrow.dictionary(pyarrow.int8(), kind))
        numbers = pyarrow.array([1, 2, 1]).dictionary_encode()
        table = pyarrow.table({"caption": column, "number": numbers})
        parquet.write_table(table, tmp_path / "kinds.parquet")
        records = list(read_records(tmp_path / "kinds.parquet", "caption"))
        assert [record.values for record in records] == [{"caption": v} for v in ("a", None, "a")]
    (tmp_path / "torn.parquet").write_bytes((tmp_path / "p.parquet").read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"torn\.parquet: not Parquet"):
        list(read_records(tmp_path / "torn.parquet", "caption"))


@pytest.mark.parametrize(
    ("name", "text"), [("p.txt", "\n a cat \n\nb\n"), ("p.json", '["a cat ", "b"]')]
)
def test_plain_texts_are_the_column_that_is_asked_for(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert [r.text("words") for r in read_records(tmp_path / name, "words")] == ["a cat", "b"]
    with pytest.raises(ValueError, match=r"expected the columns 'words', 'kind', got 'words'"):
        list(read_records(tmp_path / name, "words", "kind"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "p.tsv",
            "prompt\tkind\na\n",
            r"line 2: expected 2 cells \(prompt, kind\), got 1$",
        ),
        ("p.tsv", "text\na\n", r"p\.tsv, line 1: expected the column 'prompt', got 'text'"),
        ("p.csv", "Prompt,prompt\na,b\n", r"line 1: the column 'prompt' comes twice"),
        ("p.json", '{"prompt": "a"}', r'p\.json: expected a list of texts, .* got \{"prompt": "a'),
        ("p.json", '["a", 3]', r"p\.json, entry 2: expected a list of texts, or of objects .* 3$"),
        ("p.json", '[{"text": "a"}]', r"entry 1: expected the column 'prompt', got 'text'"),
        ("p.json", "[", r"p\.json: not JSON, Expecting value"),
        ("p.json", "[" * 100_000, r"p\.json: nested too deeply"),
        ("p.json", "9" * 5000, r"p\.json: not JSON, Exceeds the limit"),
        ("p.jsonl", '{"prompt": "\\ud800"}', r"line 1: 'prompt' holds half of a surrogate pair"),
        ("p.xml", "a", r"prompts must be in a file \.csv, \.json, .*, got .*p\.xml"),
    ],
)
def test_what_is_malformed_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        [record.text("prompt") for record in read_records(tmp_path / name, "prompt")]


def test_of_several_columns_the_first_is_the_example(tmp_path):
    (tmp_path / "p.jsonl").write_text("[]")
    with pytest.raises(ValueError, match=r'an object like \{"prompt": "a cat"\}, got \[\]'):
        list(read_records(tmp_path / "p.jsonl", "prompt", "kind"))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_is_absent_is_named(tmp_path, suffix):
    with pytest.raises(FileNotFoundError, match=rf"no file of prompts at .*absent\{suffix}"):
        list(read_records(tmp_path / f"absent{suffix}", "prompt"))


def test_a_damaged_table_of_parquet_is_refused_by_name(tmp_path):
    file = tmp_path / "p.parquet"
    parquet.write_table(pyarrow.table({"prompt": [f"a cat {i}" for i in range(50)]}), file)
    whole, random, refused = file.read_bytes(), Random(0), []
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[random.randrange(len(whole))] ^= 1 << random.randrange(8)
        file.write_bytes(damaged)
        try:
            list(read_records(file, "prompt"))
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) > 50
    assert all(str(file) in message for message in refused)
