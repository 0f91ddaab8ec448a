"""The corpus: its files, its documents in pieces, and its ids on the disk."""

import gzip
import json
import random

import pytest
from tiny import make_tokenizer

from transformer import corpus as corpus_module
from transformer.corpus import Corpus, CorpusWriter, corpus_files, documents, read_blocks, tokenize_block
from transformer.file_utils import UserError

TOKENIZER = make_tokenizer()
TEXT = "the film\nis good .\n\n\na song\n \t\r\nwarm plot\nthe actor\r\n\n"
DOCUMENTS = [["the film", "is good ."], ["a song"], ["warm plot", "the actor"]]


def read(*files):
    """All documents, with each sentence's outer spaces taken away."""
    found = (document for block in read_blocks(list(files)) for document in documents(block))
    return [[sentence.strip() for sentence in document] for document in found]


def error_of(*files):
    with pytest.raises(UserError) as caught:
        read(*files)
    return str(caught.value)


@pytest.fixture(params=[1, 5, 1 << 18])
def block_bytes(request, monkeypatch):
    monkeypatch.setattr(corpus_module, "BLOCK_BYTES", request.param)


def test_documents_are_found_whatever_the_size_of_the_blocks(tmp_path, block_bytes):
    (tmp_path / "a.txt").write_bytes(TEXT.encode())
    assert read(tmp_path / "a.txt") == DOCUMENTS


def test_a_file_s_end_ends_a_document(tmp_path, block_bytes):
    (tmp_path / "a.txt").write_text("the film")
    (tmp_path / "b.txt").write_text("a song\n")
    assert read(tmp_path / "a.txt", tmp_path / "b.txt") == [["the film"], ["a song"]]


@pytest.mark.parametrize("size", [1, 5, 23, 1 << 18])
def test_a_document_that_is_too_long_counts_as_several_cut_at_the_same_places_from_anywhere(
    tmp_path, monkeypatch, size
):
    monkeypatch.setattr(corpus_module, "LONGEST", 20)
    monkeypatch.setattr(corpus_module, "BLOCK_BYTES", size)
    lines = [f"line {number}" for number in range(9)]
    (tmp_path / "a.txt").write_text("\n".join(["a song", "", *lines, "", "the film", "is", "", *lines[:4]]) + "\n")
    expected = [["a song"], lines[:3], lines[3:6], lines[6:], ["the film", "is"], lines[:3], [lines[3]]]
    assert read(tmp_path / "a.txt") == expected
    blocks = list(read_blocks([tmp_path / "a.txt"]))
    for block in blocks:
        rest = [document for later in read_blocks([tmp_path / "a.txt"], block.next) for document in documents(later)]
        assert rest == expected[len(expected) - len(rest) :] and len(rest) < len(expected)


@pytest.mark.parametrize("size", [1, 1 << 18])
def test_a_line_that_is_too_long_is_cut_behind_a_character_at_the_same_places_from_anywhere(
    tmp_path, monkeypatch, size
):
    monkeypatch.setattr(corpus_module, "LONGEST", 20)
    monkeypatch.setattr(corpus_module, "BLOCK_BYTES", size)
    words, path = " ".join(["film"] * 9), tmp_path / "a.txt"
    path.write_text(f"a song\n{words}\n\n{'电影' * 9}\n\n{'a' * 20}\nb\n\nthe film")
    expected = [["a song", "film film film film"], ["film film film film"], ["film"]]
    expected += [["电影电影电影电"], ["影电影电影电影"], ["电影电影"], ["a" * 20], ["b"], ["the film"]]
    assert read(path) == expected
    for block in read_blocks([path]):
        rest = [document for later in read_blocks([path], block.next) for document in documents(later)]
        assert [[line.strip() for line in document] for document in rest] == expected[len(expected) - len(rest) :]
    path.write_bytes(b"\x80" * 50)
    assert f"{path} line 1: not UTF-8 text" in error_of(path)


def test_a_json_text_that_is_too_long_counts_as_several_and_a_line_of_more_than_the_limit_is_refused(
    tmp_path, monkeypatch, block_bytes
):
    monkeypatch.setattr(corpus_module, "LONGEST", 20)
    path = tmp_path / "a.jsonl"
    texts = ["the film. a song. it is good.", "a" * 45, "b."]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    parts = [["the film.", "a song.", "it"], ["is good."], ["a" * 20], ["a" * 20], ["a" * 5], ["b."]]
    assert read(path) == parts
    monkeypatch.setattr(corpus_module, "LONGEST_LINE", 50)
    assert f"{path} line 2: too long a document, expected less than 5e-05 MB" in error_of(path)


def test_a_byte_order_mark_is_no_text(tmp_path, block_bytes):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfthe film\n\na song\n")
    assert read(tmp_path / "a.txt") == [["the film"], ["a song"]]


def test_only_a_line_feed_ends_a_line(tmp_path):
    (tmp_path / "a.txt").write_text("the\x0bfilm\u2028is\x85good\x1cand\n")
    assert read(tmp_path / "a.txt") == [["the\x0bfilm\u2028is\x85good\x1cand"]]


def test_compressed_text_reads_as_the_text(tmp_path, block_bytes):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
    assert read(tmp_path / "a.txt.gz") == DOCUMENTS


def test_json_lines_are_a_document_a_line_cut_into_sentences(tmp_path, block_bytes):
    lines = [{"text": "The film. Is it good? Yes!\nA song"}, {"id": 3, "text": "好。很好！"}, {"text": ""}]
    text = "\n\n".join(json.dumps(line) for line in lines)
    (tmp_path / "a.jsonl").write_text(text)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    expected = [["The film.", "Is it good?", "Yes!", "A song"], ["好。", "很好！", ""], [""]]
    assert read(tmp_path / "a.jsonl") == read(tmp_path / "b.jsonl.gz") == expected


@pytest.mark.parametrize(
    "line, told",
    [
        ('{"text": 5}', "text is 5, expected the text of a document"),
        ('{"title": "a"}', "'text' is missing, expected the text of a document"),
        ("[]", "expected a JSON object with text"),
        ("{", "not valid JSON ("),
        ("null", "expected a JSON object with text"),
        ("[" * 100_000, "not valid JSON (too many objects or lists"),
        ('{"text": "a", "number": ' + "7" * 5000 + "}", "not valid JSON (Exceeds the limit"),
    ],
)
def test_a_line_that_is_no_document_is_named(tmp_path, line, told, block_bytes):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "a"}}\n\n{line}\n')
    assert f"{tmp_path / 'a.jsonl'} line 3: {told}" in error_of(tmp_path / "a.jsonl")


def test_text_that_is_not_utf_8_is_named_with_line_and_byte(tmp_path, block_bytes):
    (tmp_path / "a.txt").write_bytes(b"the film\n\na\n\nso\xffng\n")
    assert f"{tmp_path / 'a.txt'} line 5: not UTF-8 text (invalid start byte at byte 2)" in error_of(tmp_path / "a.txt")


def test_a_damaged_gzip_file_is_told(tmp_path):
    whole = gzip.compress(TEXT.encode() * 50)
    for data in (whole[:-20], b"no gzip", whole[:30] + b"\0\0\0\0" + whole[34:]):
        (tmp_path / "a.txt.gz").write_bytes(data)
        assert "not a valid gzip file" in error_of(tmp_path / "a.txt.gz")


def test_a_folder_gives_its_corpus_files_in_order(tmp_path):
    for name in ("b.txt", "a.jsonl.gz", "sub/c.txt.gz", "notes.md", "sub/d.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    names = [path.relative_to(tmp_path).as_posix() for path in corpus_files([str(tmp_path)])]
    assert names == ["a.jsonl.gz", "b.txt", "sub/c.txt.gz", "sub/d.jsonl"]
    assert corpus_files([str(tmp_path / "notes.md"), str(tmp_path / "b.txt")]) == [
        tmp_path / "notes.md",
        tmp_path / "b.txt",
    ]


def test_a_folder_without_corpus_files_and_a_missing_file_are_told(tmp_path):
    with pytest.raises(UserError, match="no corpus files in it"):
        corpus_files([str(tmp_path)])
    with pytest.raises(UserError, match="absent.txt: no such file"):
        corpus_files([str(tmp_path / "absent.txt")])


# --- the ids


def add_blocks(writer, files, blocks=None, limit=None):
    for number, block in enumerate(read_blocks(files, tuple(writer.position))):
        if number == blocks:
            return
        writer.add(*tokenize_block(TOKENIZER, "H", block), block.next, limit)


def document(corpus, index):
    ids, bounds = corpus.document(index)
    return ids.tolist(), bounds


def everything(folder):
    corpus = Corpus(folder, "H")
    return [document(corpus, index) for index in range(len(corpus))]


@pytest.fixture
def files(tmp_path):
    rng = random.Random(5)
    for name in ("a.txt", "b.txt.gz", "c.jsonl"):
        texts = [" ".join(rng.choices(["film", "good", "the", "plots", "."], k=rng.randint(1, 9))) for _ in range(23)]
        text = "".join(f"{text}\n{rng.choice(['', chr(10)])}" for text in texts)
        if name == "c.jsonl":
            text = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        data = text.encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return [tmp_path / name for name in ("a.txt", "b.txt.gz", "c.jsonl")]


def test_the_mapped_ids_are_the_documents_ids(files, tmp_path):
    writer = CorpusWriter(tmp_path, "H", {})
    add_blocks(writer, files)
    writer.finish()
    expected = [[TOKENIZER.ids(sentence) for sentence in document] for document in read(*files)]
    found = [
        [ids[start:stop] for start, stop in zip(bounds, bounds[1:], strict=False)]
        for ids, bounds in everything(tmp_path)
    ]
    assert found == [[ids for ids in document if ids] for document in expected]
    assert writer.num_documents == len(expected)
    assert writer.num_ids == sum(len(ids) for document in expected for ids in document)


def test_a_killed_writer_goes_on_behind_what_it_saved(files, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_module, "BLOCK_BYTES", 64)
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    whole.mkdir()
    torn.mkdir()
    writer = CorpusWriter(whole, "H", {})
    add_blocks(writer, files)
    writer.finish()
    for blocks in (3, 4, 5):  # each in a writer of its own, which dies with things unsaved
        writer = CorpusWriter(torn, "H", {})
        add_blocks(writer, files, blocks)
        writer.save()
        add_blocks(writer, files, 2)
        for file in writer.files:
            file.close()
    writer = CorpusWriter(torn, "H", {})
    assert tuple(writer.position) > (0, 0, 1)
    add_blocks(writer, files)
    writer.finish()
    assert everything(torn) == everything(whole)
    assert CorpusWriter(torn, "H", {}).complete


def test_ids_of_another_origin_are_not_used(files, tmp_path):
    writer = CorpusWriter(tmp_path, "H", {"limit": 3})
    add_blocks(writer, files, limit=3)
    writer.finish()
    assert CorpusWriter(tmp_path, "H", {"limit": 3}).num_documents == 3
    other = CorpusWriter(tmp_path, "H", {"limit": 4})
    assert (other.complete, other.num_documents, other.num_ids) == (False, 0, 0)
    CorpusWriter.remove(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in files}


def test_released_pages_come_back(files, tmp_path):
    writer = CorpusWriter(tmp_path, "H", {})
    add_blocks(writer, files)
    writer.finish()
    corpus = Corpus(tmp_path, "H")
    before = document(corpus, 3)
    corpus.release()
    assert document(corpus, 3) == before


def test_random_sentences_are_a_run_of_another_document(files, tmp_path):
    writer = CorpusWriter(tmp_path, "H", {})
    add_blocks(writer, files)
    writer.finish()
    corpus, rng = Corpus(tmp_path, "H"), random.Random(3)
    texts = {index: document(corpus, index)[0] for index in range(len(corpus)) if index != 2}
    for _ in range(200):
        found = corpus.random_sentences(2, 5, rng)
        runs = {index: [i for i in range(len(ids)) if ids[i : i + len(found)] == found] for index, ids in texts.items()}
        assert found and any(runs.values())
        assert len(found) >= 5 or any(texts[index][-len(found) :] == found for index in runs)
