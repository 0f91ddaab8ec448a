"""Word vectors: what is read from text and what is refused, the nearest words."""

import random

import numpy as np
import pytest

from transformer import vectors
from transformer.file_utils import UserError
from transformer.vectors import WordVectors


def test_neighbours_are_the_nearest_by_cosine_without_the_word(tmp_path):
    path = tmp_path / "glove.txt"
    path.write_text("east 2 0\nnorth 0 1\nalmost 5 1\nwest -1 0\nfar 100 90\n")
    assert WordVectors(path).neighbours(["east"], 3)["east"] == ["almost", "far", "north"]
    assert WordVectors(path).neighbours(["east"], 99)["east"] == ["almost", "far", "north", "west"]
    assert WordVectors(path).neighbours(["unknown"], 3)["unknown"] == []


def test_words_with_spaces_and_empty_lines_are_read(tmp_path):
    (tmp_path / "vectors.txt").write_text("a 1 2 3\n\nat name@domain.com 3 1 4\n. . . 1 1 1\n\n")
    assert WordVectors(tmp_path / "vectors.txt").words == ["a", "at name@domain.com", ". . ."]
    (tmp_path / "more.txt").write_text("a 1 2 3\nb 1 2 3 4\n")
    with pytest.raises(UserError, match="line 2: 4 numbers after the word, expected 3"):
        WordVectors(tmp_path / "more.txt")


def test_special_tokens_are_no_neighbours(tmp_path):
    path = tmp_path / "glove.txt"
    path.write_text("east 2 0\n[UNK] 2 0\n</s> 2 0\n<unk> 2 0\nalmost 5 1\nwest -1 0\n")
    assert WordVectors(path).neighbours(["east"], 4)["east"] == ["almost"]


def test_of_a_word_that_comes_twice_the_first_vector_counts(tmp_path):
    path = tmp_path / "glove.txt"
    path.write_text("east 1 0\nnorth 0 1\neast 0 1\nnear 1 0.1\n")
    assert WordVectors(path).neighbours(["near"], 1)["near"] == ["east"]
    assert "east" not in WordVectors(path).neighbours(["east"], 5)["east"]


def test_a_zero_vector_is_near_to_nothing(tmp_path):
    path = tmp_path / "glove.txt"
    path.write_text("east 1 0\nzero 0 0\nnear 1 0.1\n")
    assert WordVectors(path).neighbours(["east"], 1)["east"] == ["near"]


def test_a_line_of_numbers_only_where_a_block_of_lines_ends_is_named_rightly(tmp_path):
    path = tmp_path / "glove.txt"
    path.write_text("".join(f"w{index} 1 2\n" for index in range(10_003)) + "bad 1 x\n")
    with pytest.raises(UserError, match="line 10004: expected a word and 2 numbers"):
        WordVectors(path)


@pytest.mark.parametrize("block", [16, 17, 18, 23, 64, 1 << 20])
def test_blocks_of_any_size_give_the_same_lines_and_a_line_beyond_two_of_them_is_refused(tmp_path, monkeypatch, block):
    path = tmp_path / "glove.txt"
    monkeypatch.setattr(vectors, "TEXT_BLOCK", block)
    path.write_bytes(b"3 2\neast 1 0\r\nnorth 0 1\n\nnear 0.5 0.25\n\n\nlast 1 1")
    lines = [(2, b"east 1 0"), (3, b"north 0 1"), (5, b"near 0.5 0.25"), (8, b"last 1 1")]
    assert [line for lines in vectors.read_blocks(path) for line in lines] == lines
    path.write_bytes(b"east 1 0\nnorth" + b" 1" * block + b"\n")
    with pytest.raises(UserError, match=rf"glove.txt line 2: more than {block >> 20} MB; expected a word"):
        list(vectors.read_blocks(path))


def random_vectors(path, count=300, width=5, header=""):
    rng = np.random.default_rng(2)
    lines = [" ".join([f"w{row}", *map("{:.4g}".format, rng.normal(size=width))]) for row in range(count)]
    path.write_text(header + "\n".join(lines) + "\n")
    return path


def test_neighbours_do_not_depend_on_the_words_that_are_asked_for_together(tmp_path, monkeypatch):
    path = random_vectors(tmp_path / "vectors.txt")
    words = [f"w{row}" for row in range(0, 300, 7)]
    with open(path, "a") as file:  # many in one place
        file.writelines(f"same{row} 0.1 0.2 0.3 0.4 0.5\n" for row in range(9))
    read = WordVectors(path)
    found = read.neighbours(["same4", *words], 11)
    assert found["same4"][:8] == [f"same{row}" for row in range(9) if row != 4]
    for word in words:
        cosines = read.vectors.astype(np.float64) @ read.vectors[read.index[word]]
        order = [row for row in np.argsort(-cosines, kind="stable") if read.words[row] != word]
        assert found[word] == [read.words[row] for row in order[:11]]
    monkeypatch.setattr(vectors, "COSINES", 2 * 309)
    assert read.neighbours(["same4", *words], 11) == found


def test_numbers_are_rounded_to_float64_and_then_to_float32():
    numbers = [["1", "-0.5", "1e-3"], ["0", "-0.0", "2E+2"], ["0.333333333333333", "5e-39", "12345678.9"]]
    # The last lies just above the middle of two float32 numbers: from float64 it is rounded down, at once it were up.
    for lines in (numbers, [*numbers, ["+3.", "-.5", "1e30"], ["1e-400", "3.4028235e38", "1.00000005960464477540"]]):
        found = vectors.parse_numbers([" ".join(line).encode() for line in lines])
        expected = np.array([[float(number) for number in line] for line in lines]).astype(np.float32)
        assert found.dtype == np.float32 and np.array_equal(found, expected)
    assert found[-1, -1] == 1


def odd_text(rng, rows):
    """[(word, three numbers)] and a text of them: words with spaces or accents, empty lines, each of the line ends."""
    words, lines = [], []
    for row in range(rows):
        names = f"w{row}", f"wörd{row}", f"a b{row}", f". .w{row}", "again"
        words.append(rng.choice(names, p=[0.9, 0.07, 0.01, 0.01, 0.01]))
        numbers = [f"{number:.3g}" for number in rng.normal(size=3) * 10.0 ** rng.integers(-9, 9, 3)]
        lines.append((words[-1], numbers))
    ends = rng.choice(["\n", "\r\n", "\r\r\n", " \n", "  \n", "\n\n"], rows, p=[0.95, 0.01, 0.01, 0.01, 0.01, 0.01])
    return lines, "".join(f"{word} {' '.join(numbers)}{end}" for (word, numbers), end in zip(lines, ends, strict=True))


@pytest.mark.parametrize("size", [40, 700, 1 << 20])
@pytest.mark.parametrize("header", ["", "\ufeff", "500 3\n", "500 3 \r\n"])
def test_text_is_read_alike_in_blocks_of_any_size(tmp_path, monkeypatch, size, header):
    monkeypatch.setattr(vectors, "TEXT_BLOCK", size)
    lines, text = odd_text(np.random.default_rng(5), 500)
    (tmp_path / "odd.txt").write_bytes((header + text[: -1 if size == 700 else None]).encode())
    read = WordVectors(tmp_path / "odd.txt")
    expected = np.array([numbers for _, numbers in lines], dtype=np.float64)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(read.vectors, expected, rtol=1e-5, atol=1e-7)
    first = {word: row for row, (word, _) in reversed(list(enumerate(lines)))}
    assert read.words == [word if first[word] == row else "" for row, (word, _) in enumerate(lines)]
    assert read.index == first


def test_fasttext_s_lines_end_in_a_space(tmp_path):
    plain = WordVectors(random_vectors(tmp_path / "plain.txt"))
    (tmp_path / "fasttext.vec").write_text((tmp_path / "plain.txt").read_text().replace("\n", " \n"))
    read = WordVectors(tmp_path / "fasttext.vec")
    assert read.words == plain.words and np.array_equal(read.vectors, plain.vectors)


def test_a_text_without_words_or_without_numbers_is_refused(tmp_path):
    for text, message in (
        ("\n \n\n", "the file is empty"),
        ("word\nother\n", "line 1: 0 numbers"),
        ("1 1\n", None),
        ("a 1 2\nb \xff 3\n", "line 2: expected a word and 2 numbers"),
        ("a 1 2\n\xff 2 3\n", "line 2: not UTF-8"),
        ("1 " + "9" * 5000 + "\nw 1 2\n", "line 2: 2 numbers after the word, expected 1"),
        ("a 1 2\nb 1 \n", "line 2: 1 numbers after the word, expected 2"),
        ("2 002\nw 1 2\n", "line 2: 2 numbers after the word, expected 1"),
    ):
        (tmp_path / "vectors.txt").write_bytes(text.encode("latin-1"))
        if message is None:
            assert WordVectors(tmp_path / "vectors.txt").words == ["1"]
            continue
        with pytest.raises(UserError, match=message):
            WordVectors(tmp_path / "vectors.txt")


@pytest.mark.parametrize(
    "number",
    [
        "x",
        "nan",
        "inf",
        "",
        "1e99",
        "--1",
        "1\t1",
        "1.2.3",
        "1-2",
        "5e",
        "1e+",
        "1+1",
        "5e.5",
        "1e5e5",
        "-",
        ".",
        "1_0",
    ],
)
def test_what_is_no_number_is_named_with_its_line(tmp_path, number):
    (tmp_path / "vectors.txt").write_text(f"a 1 2 3\nb 3 {number} 4\n")
    with pytest.raises(UserError, match="line 2: expected a word and 3 numbers"):
        WordVectors(tmp_path / "vectors.txt")


def test_numbers_are_read_only_where_each_is_one():
    rng = random.Random(6)
    for _ in range(5_000):
        number = "".join(rng.choices("0019..+-eEx", k=rng.randint(1, 7))).encode()
        found = vectors.parse_numbers([b"5 -5", b"3 " + number])
        with np.errstate(over="ignore"):
            valid = bool(vectors.NUMBER.fullmatch(number)) and np.isfinite(np.float32(float(number)))
        assert (found is not None) == valid, number


def test_the_first_line_of_word2vec_s_text_is_passed_over(tmp_path):
    plain = WordVectors(random_vectors(tmp_path / "plain.txt"))
    other = WordVectors(random_vectors(tmp_path / "word2vec.txt", header="300 5\n"))
    assert other.words == plain.words and np.array_equal(other.vectors, plain.vectors)
    (tmp_path / "narrow.txt").write_text("1 2\nw 3\n")
    assert WordVectors(tmp_path / "narrow.txt").words == ["1", "w"]  # vectors of one number


def test_only_the_first_words_are_read(tmp_path, monkeypatch):
    path = random_vectors(tmp_path / "vectors.txt")
    with open(path, "a") as file:
        file.write("w3 1 2 3 4 5\n词语 5 4 3 2 1\n")
    every = WordVectors(path)
    assert len(every.words) == 302 and every.chinese_words == {"词语"}
    monkeypatch.setattr(vectors, "TEXT_BLOCK", 100)  # several blocks
    for count in (1, 7, 302, 303):
        some = WordVectors(path, count)
        assert some.words == every.words[:count] and np.array_equal(some.vectors, every.vectors[:count])
    assert [each.name for each in tmp_path.iterdir()] == ["vectors.txt"]
