"""Word vectors: read from text (GloVe's format or word2vec's), kept in binary, and asked for the nearest words.

Text is read in blocks of bytes on two threads. A block whose lines are all plain, a word and the numbers, is cut and
checked as a whole; a block with anything else in it goes line by line.
"""

import contextlib
import io
import os
import re
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch

from transformer.files import UserError, atomic_write
from transformer.tokenization import CJK

TEXT_BLOCK = 8 << 20  # of text that one thread reads at once
THREADS = 2
COPY_FORMAT = 2  # copies of another one are made anew: normalising rounds differently
CACHED_BYTES = 16 << 20  # from this size on, a text of vectors gets a binary copy
COSINES = 16 << 20  # cosines computed at once: 64 MB
SPARE = 16  # neighbours beyond those asked for that are compared in float64

CHINESE_WORD = re.compile(f"[{CJK}]{{2,8}}")  # what characters are joined to
NUMBER = re.compile(rb"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
EXPONENT = re.compile(rb"[eE][+-]?\d+(?=\n)")

# What each character of numbers is (the lower four bits) and what may not come after it (the upper four). A digit is 0,
# it may come after all; other characters may come after nothing but an e, and what comes there is EXPONENT's to check.
_END, _E, _SIGN, _DOT = 1, 2, 4, 8
_KIND = {
    **dict.fromkeys(b"0123456789", (0, _SIGN)),
    ord("."): (_DOT, _DOT | _SIGN),
    ord("\n"): (_END, _END | _E),
    **dict.fromkeys(b"+-", (_SIGN, _SIGN | _END | _E)),
    **dict.fromkeys(b"eE", (_E, 0)),
}
KINDS = bytes(kind | never_next << 4 for kind, never_next in (_KIND.get(code, (15, 0)) for code in range(256)))


class WordVectors:
    """Word vectors, normalised, and their nearest neighbours by cosine."""

    def __init__(self, path, keep_copy=True):
        """Read vectors from text, or from the binary copy beside it, which is made where the text is large.

        Raises UserError: a missing or empty file, a line of another length, no numbers, not UTF-8.
        """
        if not Path(path).is_file():
            raise UserError(f"{path}: no such file; `python -m transformer.file_utils glove` fetches GloVe's vectors")
        status = os.stat(path)
        source = (status.st_size, status.st_mtime_ns, COPY_FORMAT)
        found = read_copy(f"{path}.npz", source)
        self.words, self.vectors = found or read_vectors(path)  # of a word that comes twice, the first; then ""
        if found is None and keep_copy and status.st_size >= CACHED_BYTES:
            write_copy(f"{path}.npz", source, self.words, self.vectors)
        self.index = {word: row for row, word in enumerate(self.words) if word}
        self.chinese_words = frozenset(filter(CHINESE_WORD.fullmatch, (w for w in self.words if not w.isascii())))

    def neighbours(self, words, count, device="cpu"):
        """{word: the `count` words nearest to it, nearest first}; [] for a word without a vector."""
        found = {word: [] for word in words}
        known = [word for word in words if word in self.index]
        vectors = torch.from_numpy(self.vectors).to(device)
        size = max(COSINES // len(self.words), 1)
        for block in (known[start : start + size] for start in range(0, len(known), size)):
            rows = np.array([self.index[word] for word in block])
            cosines = vectors[torch.from_numpy(rows).to(device)] @ vectors.T
            cosines[torch.arange(len(rows)), rows] = -torch.inf
            nearest = cosines.topk(min(count + SPARE, len(self.words))).indices.cpu().numpy()  # (B, count + SPARE)
            # float32 rounds differently in blocks of other sizes: what counts is the order in float64.
            exact = (self.vectors[nearest].astype(np.float64) * self.vectors[rows, None]).sum(axis=2)
            exact[nearest == rows[:, None]] = -np.inf
            order = np.lexsort((nearest, -exact))[:, :count]
            for word, near in zip(block, np.take_along_axis(nearest, order, axis=1).tolist(), strict=True):
                names = map(self.words.__getitem__, near)
                found[word] = [name for name in names if name not in ("", word) and not is_special(name)]
        return found


def is_special(token):
    """[UNK], [PAD], [MASK], [unused7], ...; in word vectors <unk>, </s>."""
    return len(token) > 2 and token[0] + token[-1] in ("[]", "<>")


def read_vectors(path):
    """(words, normalised vectors (words, width) float32) of a text: GloVe's format, or word2vec's with its first line
    of two counts. A word that comes again is "" among the words.

    Raises UserError, with the line: another width than that of the first line with numbers, no numbers, not UTF-8; an
    empty file.
    """
    blocks = read_lines_in_blocks(path)
    line, text = next(blocks, (1, b""))
    text = text.removeprefix(b"\xef\xbb\xbf")  # some files start with a byte-order mark
    first, second, _ = text.split(b"\n", 2) if text.count(b"\n") > 1 else (b"", b"", b"")
    # word2vec's first line: how many words there are, and how many numbers each has.
    if re.fullmatch(rb"\d+ \d+ *", first) and first.split()[1] == b"%d" % count_numbers(second):
        line, text = line + 1, text[len(first) + 1 :]
    width = next(filter(None, map(count_numbers, io.BytesIO(text))), 1)
    words, vectors, blocks = [], [], chain([(line, text)], blocks)
    with ThreadPoolExecutor(THREADS) as pool:
        while several := list(islice(blocks, 2 * THREADS)):  # only so many at once in memory
            for found, numbers in pool.map(lambda block: parse_block(*block, width, path), several):
                words += found
                vectors.append(numbers)
    if not words:
        raise UserError(f"{path}: the file is empty")
    first_rows = dict(zip(reversed(words), range(len(words) - 1, -1, -1), strict=True))
    if len(first_rows) < len(words):
        words = [word if first_rows[word] == row else "" for row, word in enumerate(words)]
    vectors = np.concatenate(vectors)
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))[:, None]
    vectors /= np.where(norms == 0, 1, norms)
    return words, vectors


def read_lines_in_blocks(path):
    """Yield (number of the first line, text): whole lines in bytes, each with its end, however they end in the file."""
    line = 1
    with open(path, "rb") as file:
        while text := file.read(TEXT_BLOCK):
            text += file.readline()
            if not text.endswith(b"\n"):
                text += b"\n"
            yield line, re.sub(rb"\r+\n", b"\n", text) if b"\r" in text else text
            line += text.count(b"\n")


def count_numbers(line):
    """How many things follow the first one in a line; 0 for an empty line."""
    line = line.rstrip(b" \n")
    return line.count(b" ") if line[:1] != b" " else 0


def parse_block(first_line, text, width, path):
    """(words, numbers (words, width) float32) of some lines."""
    plain = plain_lines(text, width)
    if plain is None and b" \n" in text:  # as fastText writes lines
        plain = plain_lines(text.replace(b" \n", b"\n"), width)
    if plain is None:
        words, numbers, lines = split_lines(first_line, text, width, path)
    else:
        words, numbers = plain
        lines = range(first_line, first_line + len(words))
    return words, parse_numbers(numbers, width, lines, path)


def plain_lines(text, width):
    """(words, their numbers, a line each) where every line is a word and `width` things with one space before each;
    None where one is not."""
    codes = np.frombuffer(text, dtype=np.uint8)
    ends, spaces = np.flatnonzero(codes == ord("\n")), np.flatnonzero(codes == ord(" "))
    if not len(ends) or len(spaces) != width * len(ends):
        return None
    starts, spaces = np.concatenate([[0], ends[:-1] + 1]), spaces.reshape(len(ends), width)
    if not ((starts < spaces[:, 0]) & (spaces[:, -1] < ends - 1)).all():
        return None
    starts, firsts, ends = starts.tolist(), spaces[:, 0].tolist(), ends.tolist()
    try:
        words = b"\n".join([text[start:end] for start, end in zip(starts, firsts, strict=True)]).decode().split("\n")
    except UnicodeDecodeError:
        return None
    numbers = b"\n".join([b"", *(text[start + 1 : end] for start, end in zip(firsts, ends, strict=True)), b""])
    return words, numbers.replace(b" ", b"\n")


def split_lines(first_line, text, width, path):
    """(words, their numbers, a line each, and the lines' numbers): empty lines left out, words may have spaces inside.

    Raises UserError for a line of another width, or one that is not UTF-8.
    """
    words, numbers, lines = [], [b""], []
    for line, row in enumerate(text.split(b"\n")[:-1], first_line):
        row = row.rstrip(b" ")
        word, _, values = row.partition(b" ")
        if not word:
            continue
        count = values.count(b" ") + 1
        if count > width:
            # Some of GloVe's words have spaces inside; numbers there mean that there are more than there should be.
            *parts, rest = row.split(b" ", count - width + 1)
            if not any(map(NUMBER.fullmatch, parts[1:])):
                word, values, count = b" ".join(parts), rest, width
        if count != width or not values:
            raise UserError(f"{path} line {line}: {count if values else 0} numbers after the word, expected {width}")
        try:
            words.append(word.decode())
        except UnicodeDecodeError as error:
            raise UserError(f"{path} line {line}: not UTF-8 text ({error.reason} at byte {error.start})") from None
        numbers.append(values)
        lines.append(line)
    return words, b"\n".join([*numbers, b""]).replace(b" ", b"\n"), lines


def parse_numbers(text, width, lines, path):
    """The numbers of some lines as float32 (lines, width). Raises UserError naming the line that is not all numbers.

    Args: text: a number a line, and an end of line before the first; lines: the lines' numbers in the file.
    """
    from scipy.io import mmread  # late: a fifth of a second

    # The reader of Matrix Market's text (a number a line) is five times as fast as NumPy's. It passes over whatever
    # follows a number, so what may be no number goes the slow way.
    if lines and well_formed(text):
        header = b"%%%%MatrixMarket matrix array real general\n%d 1" % (width * len(lines))
        with contextlib.suppress(ValueError), np.errstate(over="ignore"):
            numbers = mmread(io.BytesIO(header + text)).astype(np.float32)
            if np.isfinite(numbers).all():
                return numbers.reshape(len(lines), width)
    texts, numbers = text.split(b"\n")[1:-1], np.zeros((len(lines), width), dtype=np.float32)
    for row, line in enumerate(lines):
        values = texts[row * width : (row + 1) * width]
        if all(map(NUMBER.fullmatch, values)):
            with np.errstate(over="ignore"):
                numbers[row] = [float(value) for value in values]
            if np.isfinite(numbers[row]).all():
                continue
        raise UserError(f"{path} line {line}: expected a word and {width} numbers")
    return numbers


def well_formed(text):
    """Whether a text (bytes) is numbers, each between two ends of line, but for "." and its like, which are refused by
    every parser."""
    kinds = np.frombuffer(text.translate(KINDS), dtype=np.uint8)
    if (kinds[:-1] >> 4 & kinds[1:]).any() or b".." in text.translate(None, b"0123456789+-eE"):
        return False
    return all(EXPONENT.match(text, place) for letter in (b"e", b"E") for place in find_all(text, letter))


def find_all(text, part):
    place = text.find(part)
    while place >= 0:
        yield place
        place = text.find(part, place + 1)


def write_copy(path, source, words, vectors):
    """Keep vectors in binary; a folder that cannot be written goes without."""
    with contextlib.suppress(UserError), atomic_write(path, "wb", durable=False) as file:
        text = np.frombuffer("\n".join(words).encode(), dtype=np.uint8)
        np.savez(file, source=np.array(source), words=text, vectors=vectors)


def read_copy(path, source):
    """(words, vectors) of the binary copy of a text; None where it is missing, damaged, or of another text."""
    try:
        with np.load(path, allow_pickle=False) as copy:
            if copy["source"].tolist() != list(source):
                return None
            words, vectors = copy["words"].tobytes().decode().split("\n"), copy["vectors"]
    except Exception:  # a damaged file raises many kinds; the text is there to be read
        return None
    return (words, vectors) if vectors.dtype == np.float32 and len(words) == len(vectors) else None
