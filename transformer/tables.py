"""Tables of text: tab-separated, comma-separated, and JSON Lines, read a row at a time and written back as they were.

TSV is read and written without quoting, as GLUE's files are: a quote is a character like any other, so text with quotes
comes back as it went out. The reference quotes when it writes and not when it reads. CSV has the usual quoting.
Each table has `header` (its header line, None without one), `names` of its columns, `key(name)`: where a row has that
column, and `line(row)`: a row as text. Iterating yields (number of the row's first line, row), the header left out.
"""

import csv
import io
import itertools
import json
import sys
from pathlib import Path

from transformer.files import UserError

SUFFIXES = (".tsv", ".csv", ".jsonl", ".json")  # of tables; a .json file holds an object a line too


def open_table(path, columns=(), wanted=()):
    """The table in a file, by its suffix. Raises UserError: a missing or empty file, a first line that is none.

    Args: columns: names of the columns where a TSV file has no header, one whose first line lacks some of `wanted`.
    """
    suffix = Path(path).suffix
    if suffix in (".jsonl", ".json"):
        return JsonLines(path)
    return CommaSeparated(path) if suffix == ".csv" else TabSeparated(path, columns, wanted)


def read_lines(path):
    """Yield (line number, text without its end); UserError for a missing file or one that is not UTF-8."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                # utf-8-sig on the first line only: some official files start with a byte-order mark.
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path} line {number}: not UTF-8 text ({error.reason} at byte {error.start})"
                ) from None


class Table:
    """What the kinds of tables share; they have `_rows`, which yields the first line too, and `line`."""

    def __init__(self, path):
        self.path = path
        _, first = next(self._rows(), (0, None))
        if first is None:
            raise UserError(f"{path}: the file is empty")
        self.names, self.header = list(first), self.line(first)

    def key(self, name):
        return self.names.index(name)

    def __iter__(self):
        return itertools.islice(self._rows(), self.header is not None, None)


class TabSeparated(Table):
    def __init__(self, path, columns, wanted):
        super().__init__(path)
        # A file without header is one whose first line lacks the columns' names: CoLA's train and dev, not its test.
        if columns and not set(wanted) <= set(self.names):
            self.names, self.header = list(columns), None

    def _rows(self):
        for number, text in read_lines(self.path):
            if text or number == 1:  # a trailing empty line is no row
                yield number, text.split("\t")

    @staticmethod
    def line(row):
        return "\t".join(row)


class CommaSeparated(Table):
    def _rows(self):
        csv.field_size_limit(min(sys.maxsize, (1 << 31) - 1))  # the module's own limit is 128 KiB a field
        rows, before = csv.reader((f"{text}\n" for _, text in read_lines(self.path)), strict=True), 0
        try:
            for row in rows:
                if row:
                    yield before + 1, row
                before = rows.line_num
        except csv.Error as error:
            raise UserError(f"{self.path} line {before + 1}: not comma-separated text ({error})") from None

    @staticmethod
    def line(row):
        text = io.StringIO()
        csv.writer(text, lineterminator="\r\n").writerow(row)  # what it would end a line with, it quotes in a field
        return text.getvalue().removesuffix("\r\n")


class JsonLines(Table):
    """An object a line; `names` are the first one's fields."""

    def __init__(self, path):
        super().__init__(path)
        self.header = None

    def key(self, name):
        return name

    def _rows(self):
        for number, text in read_lines(self.path):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
                if "\\u" in text:  # half of a surrogate pair is no text, and could not be written again
                    self.line(row).encode()
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise UserError(f"{self.path} line {number}: expected a JSON object")
            yield number, row

    @staticmethod
    def line(row):
        return json.dumps(row, ensure_ascii=False)
