"""Word vectors: read from text (GloVe's or word2vec's format) and searched for the nearest words."""

import contextlib
import re
from pathlib import Path

import numpy as np
import torch

from transformer.downloads import advice_on
from transformer.files import UserError
from transformer.tokenization import CJK

TEXT_BLOCK = 8 << 20  # bytes of text parsed at once
COSINES = 16 << 20  # computed at once: 64 MB
SPARE = 16  # additional neighbours that are compared in float64

CHINESE_WORD = re.compile(f"[{CJK}]{{2,8}}")  # words that characters are joined to
NUMBER = re.compile(rb"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")


class WordVectors:
    """Normalized word vectors and their nearest neighbours by cosine.

    `path`: the text; `limit`: read only so many words, 0 = all. Raises UserError: a missing or empty file, not UTF-8, a
    line without numbers or with another count of them.
    """

    def __init__(self, path, limit=0):
        if not Path(path).is_file():
            advice = advice_on(path)
            raise UserError(f"{path}: no such file" + (f"; {advice}" if advice else ""))
        self.words, self.vectors = read_vectors(path, limit)
        self.index = {word: row for row, word in enumerate(self.words) if word}
        self.chinese_words = frozenset(filter(CHINESE_WORD.fullmatch, (w for w in self.words if not w.isascii())))

    def neighbours(self, words, count, device="cpu"):
        """{word: its `count` nearest words, nearest first}; [] for a word without a vector."""
        found = {word: [] for word in words}
        known = [word for word in words if word in self.index]
        vectors = torch.from_numpy(self.vectors).to(device)
        size = max(COSINES // len(self.words), 1)
        for block in (known[start : start + size] for start in range(0, len(known), size)):
            rows = np.array([self.index[word] for word in block])
            cosines = vectors[torch.from_numpy(rows).to(device)] @ vectors.T
            cosines[torch.arange(len(rows)), rows] = -torch.inf
            nearest = cosines.topk(min(count + SPARE, len(self.words))).indices.cpu().numpy()  # (B, count + SPARE)
            # The rounding of float32 depends on the block's size, so the order comes from float64.
            exact = (self.vectors[nearest].astype(np.float64) * self.vectors[rows, None]).sum(axis=2)
            exact[nearest == rows[:, None]] = -np.inf
            order = np.lexsort((nearest, -exact))[:, :count]
            for word, near in zip(block, np.take_along_axis(nearest, order, axis=1).tolist(), strict=True):
                names = [self.words[row] for row in near]
                found[word] = [name for name in names if name not in ("", word) and not is_special(name)]
        return found


def is_special(token):
    """True for [UNK], [PAD], [MASK], [unused7], ... and for <unk>, </s> in word vectors."""
    return len(token) > 2 and token[0] + token[-1] in ("[]", "<>")


def read_vectors(path, limit=0):
    """(words, normalized vectors (words, width) float32) of a text: GloVe's format, or word2vec's, which starts with a
    line of two counts. A repeated word becomes "". `limit`, UserError: as for `WordVectors`."""
    words, vectors, width = [], [], None
    for lines in filter(None, read_blocks(path)):
        lines = lines[: limit - len(words)] if limit else lines
        if not lines:
            break
        width = width or next(filter(None, (text.count(b" ") for _, text in lines)), 1)
        rows = [(line, *split_line(text, width, f"{path} line {line}")) for line, text in lines]
        numbers = parse_numbers([values for _, _, values in rows])
        if numbers is None:
            line = next(line for line, _, values in rows if parse_numbers([values]) is None)
            raise UserError(f"{path} line {line}: expected a word and {width} numbers")
        words += [word for _, word, _ in rows]
        vectors.append(numbers)
    if not words:
        raise UserError(f"{path}: the file is empty")
    first_rows, vectors = {}, np.concatenate(vectors)
    words = [word if first_rows.setdefault(word, row) == row else "" for row, word in enumerate(words)]
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))[:, None]
    vectors /= np.where(norms == 0, 1, norms)
    return words, vectors


def read_blocks(path):
    """Yield lists of (line number, bytes of the line) of the lines that start with a word; without byte-order mark,
    the trailing spaces of fastText and word2vec's first line."""
    first_line = 1
    with open(path, "rb") as file:
        if file.read(3) != b"\xef\xbb\xbf":  # the byte-order mark
            file.seek(0)
        while block := file.read(TEXT_BLOCK):
            block += file.readline(TEXT_BLOCK)
            if len(block) == 2 * TEXT_BLOCK and not block.endswith(b"\n"):
                line = first_line + block.count(b"\n")
                raise UserError(f"{path} line {line}: more than {TEXT_BLOCK >> 20} MB; expected a word and its numbers")
            block = block.removesuffix(b"\n").split(b"\n")
            lines = [b"" if line.startswith(b" ") else line.rstrip(b"\r").rstrip(b" ") for line in block]
            counts = re.fullmatch(rb"\d+ (\d+)", lines[0]) if first_line == 1 and len(lines) > 1 else None
            if counts and counts[1] == b"%d" % lines[1].count(b" "):
                lines[0] = b""
            yield [(line, text) for line, text in enumerate(lines, first_line) if text]
            first_line += len(lines)


def split_line(text, width, place):
    """(word, bytes of its `width` values). Raises UserError: another count of values, a word that is not UTF-8."""
    word, _, values = text.partition(b" ")
    count = text.count(b" ")
    if count > width:
        # Some of GloVe's words contain spaces; a number among the parts means that there are too many values.
        long_word = text.rsplit(b" ", width)[0]
        if not any(map(NUMBER.fullmatch, long_word.split(b" ")[1:])):
            word, values, count = long_word, text[len(long_word) + 1 :], width
    if count != width:
        raise UserError(f"{place}: {count} numbers after the word, expected {width}")
    try:
        return word.decode(), values
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def parse_numbers(lines):
    """The values of some lines (bytes) as float32 (lines, width); None if one is not a finite number."""
    if b"".join(lines).translate(None, b"0123456789+-.eE "):  # NumPy would skip tabs and the like
        return None
    with contextlib.suppress(ValueError), np.errstate(over="ignore"):
        numbers = np.loadtxt(lines, delimiter=" ", comments=None, ndmin=2).astype(np.float32)  # infinity if too large
        return numbers if np.isfinite(numbers).all() else None
