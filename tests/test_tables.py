"""Tables of text in their three kinds: read a row at a time, written back as they were."""

import json

import pytest

from transformer import tables
from transformer.file_utils import UserError
from transformer.tables import open_table

TEXTS = ['a "good" film', "two\tcolumns", "one, two", "first\nsecond", "'", "", "ende ü 好", "\\n"]


def write(path, text):
    path.write_bytes(text.encode())
    return path


def test_csv_comes_back_with_its_quotes_commas_and_line_ends(tmp_path):
    table = open_table(write(tmp_path / "a.csv", 'id,text\n1,"a ""good"" film, twice"\n2,"first\nsecond"\n\n3,end\n'))
    assert table.header == "id,text" and table.names == ["id", "text"] and table.key("text") == 1
    rows = list(table)
    assert rows == [(2, ["1", 'a "good" film, twice']), (3, ["2", "first\nsecond"]), (6, ["3", "end"])]
    assert table.line(rows[0][1]) == '1,"a ""good"" film, twice"'


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl"])
def test_a_row_of_more_than_the_limit_is_refused_in_its_line(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(tables, "LONGEST_ROW", 1 << 20)
    texts = {".jsonl": '{{"text": "{}"}}\n'}.get(suffix, "text\n{}\n")
    assert len(list(open_table(write(tmp_path / f"a{suffix}", texts.format("a" * 1_000_000))))) == 1
    line = 2 - (suffix == ".jsonl")
    with pytest.raises(UserError, match=rf"a{suffix} line {line}: more than 1 MB; expected a row"):
        list(open_table(write(tmp_path / f"a{suffix}", texts.format("a" * (1 << 21)))))


def test_a_quote_that_never_closes_is_followed_up_to_the_limit_only(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "LONGEST_ROW", 1000)
    path = write(tmp_path / "a.csv", 'text\n"' + "a line\n" * 1000)
    with pytest.raises(UserError, match=r"a.csv line 2: not comma-separated text \(field larger than field limit"):
        list(open_table(path))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_any_text_survives_writing_and_reading(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    rows = [["x", text, "1"] for text in TEXTS]
    if suffix == ".csv":
        table = open_table(write(path, "id,text,label\nx,y,1\n"))
        lines = [table.header, *map(table.line, rows)]
    else:
        rows = [dict(zip(("id", "text", "label"), row, strict=True)) for row in rows]
        table = open_table(write(path, '{"id": "x"}\n'))
        lines = map(table.line, rows)
    write(path, "".join(f"{line}\n" for line in lines))
    assert [row for _, row in open_table(path)] == rows


def test_windows_line_ends_and_byte_order_marks_are_no_text(tmp_path):
    assert list(open_table(write(tmp_path / "a.csv", "\ufefftext,label\r\na,1\r\n"))) == [(2, ["a", "1"])]
    assert open_table(tmp_path / "a.csv").names == ["text", "label"]
    assert list(open_table(write(tmp_path / "a.jsonl", '\ufeff{"text": "a"}\r\n\r\n'))) == [(1, {"text": "a"})]


def test_json_objects_keep_what_the_task_does_not_read(tmp_path):
    row = {"id": 7, "text": "好 film", "label": True, "more": {"list": [1, None]}}
    path = write(tmp_path / "a.json", json.dumps(row) + "\n")
    table = open_table(path)
    assert table.header is None and table.names == list(row)
    [(_, found)] = table
    assert found == row and json.loads(table.line(found)) == row and "好" in table.line(found)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "a.csv: the file is empty"),
        ("a.csv", 'text,label\na,1\n"b,1\n', "a.csv line 3: not comma-separated text"),
        ("a.csv", 'text,label\n"a"b,1\n', "a.csv line 2: not comma-separated text"),
        ("a.csv", "text,label\na\rb,1\n", "a.csv line 2: not comma-separated text"),
        ("a.jsonl", "\n \n", "a.jsonl: the file is empty"),
        ("a.jsonl", '{"text": "a"}\n[1]\n', "a.jsonl line 2: expected a JSON object"),
        ("a.jsonl", '{"text": "a"\n', r"a.jsonl line 1: not valid JSON \(Expecting"),
        ("a.jsonl", '{"text": "\\ud800"}\n', "a.jsonl line 1: has half of a surrogate pair"),
        ("a.jsonl", '{"a": ' * 100_000, r"a.jsonl line 1: not valid JSON \(too many objects or lists"),
    ],
)
def test_what_is_no_table_is_named_with_its_line(tmp_path, name, text, message):
    write(tmp_path / name, text)
    with pytest.raises(UserError, match=message):
        list(open_table(tmp_path / name))


def test_a_csv_file_may_have_semicolons_and_keeps_them(tmp_path):
    table = open_table(write(tmp_path / "a.csv", 'text;label\n"a; b, c";1\nd, e;0\n'))
    assert table.header == "text;label" and [row for _, row in table] == [["a; b, c", "1"], ["d, e", "0"]]
    assert [table.line(row) for _, row in table] == ['"a; b, c";1', "d, e;0"]
    # Commas in the first line separate, whatever else is there.
    assert open_table(write(tmp_path / "b.csv", "a;b,c\n1,2\n")).names == ["a;b", "c"]


def test_columns_are_found_in_any_case_and_an_exact_name_first(tmp_path):
    table = open_table(write(tmp_path / "a.csv", " Text,TEXT,label\na,b,c\n"))
    assert [table.find("text"), table.find("TEXT"), table.find("LABEL")] == [" Text", "TEXT", "label"]
    assert table.find("x", "label") == "label" and table.find("x", None) is None


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.tsv", "text,label\n", "commas seem to separate its columns; such a file's name is a.csv"),
        ("a.tsv", "text;label\n", "semicolons seem to separate its columns; such a file's name is a.csv"),
        ("a.csv", "text\tlabel\n", "tabs seem to separate its columns; such a file's name is a.tsv"),
        ("a.csv", '"text, all of it"\n', "found text, all of it"),
        ("a.tsv", "text\tlabel\n", "found text, label"),
    ],
)
def test_a_separator_of_another_suffix_is_told(tmp_path, name, text, told):
    assert open_table(write(tmp_path / name, text)).told == told


def test_a_csv_field_may_be_as_long_as_it_likes(tmp_path):
    path = write(tmp_path / "a.csv", f"text,label\n{'word ' * 60_000},1\n")
    [(_, row)] = open_table(path)
    assert len(row[0]) == 300_000
