"""Tables of text: tab-separated, comma-separated, and JSON Lines, read row by row and written back unchanged.

TSV has no quoting, as in GLUE's files: a quote is an ordinary character. (The reference quotes when it writes but not
when it reads.) CSV has the usual quoting. Each table has `header` (its header line or None), the `names` of its
columns, `key(name)`: the index of a column in a row, and `line(row)`: a row as text. Iterating yields (number of the
row's first line, row) without the header.
"""

import csv
import functools
import io
import itertools
import json
import re
from pathlib import Path

from transformer.files import UserError
from transformer.json_file import Field, check, check_depth, parse_json, read_json

SUFFIXES = (".tsv", ".csv", ".jsonl", ".json", ".conll", ".txt")  # .json: an object a line too, or one of SQuAD's files

LONGEST_ROW = 1 << 24  # bytes
NOT_TEXTS = "a .txt file here has a token and its tag on each line, in CoNLL's layout; texts with labels go into .tsv, "
NOT_TEXTS += ".csv or .jsonl"
DOCUMENT_START = "-DOCSTART-"  # in CoNLL's files the token of a line that is no sentence

# (name, character, suffix of the files that have it between their columns)
SEPARATORS = (("tabs", "\t", ".tsv"), ("commas", ",", ".csv"), ("semicolons", ";", ".csv"))


def open_table(path, columns=(), wanted=()):
    """The table in a file, by its suffix. Raises UserError for a missing, empty or malformed file. `columns`: names for
    a TSV file without header, that is, whose first line lacks some of `wanted`."""
    suffix = Path(path).suffix
    if suffix in (".jsonl", ".json"):
        return Squad(path) if suffix == ".json" and Squad.is_in(path) else JsonLines(path)
    if suffix in (".conll", ".txt"):
        return Columns(path)
    return CommaSeparated(path) if suffix == ".csv" else TabSeparated(path, columns, wanted)


def read_lines(path):
    """Yield (line number, text without line end). Raises UserError for a missing file and text that is not UTF-8."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    with open(path, "rb") as file:
        yield from decode_lines(file, path)


def decode_lines(file, name):
    """The same of an open binary file. `name`: for errors."""
    for number, raw in enumerate(iter(lambda: file.readline(LONGEST_ROW + 1), b""), 1):
        if len(raw) > LONGEST_ROW:
            raise UserError(f"{name} line {number}: more than {LONGEST_ROW >> 20} MB; expected a row of a table")
        try:
            # utf-8-sig on the first line only: some official files start with a byte-order mark.
            yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            reason = f"{error.reason} at byte {error.start}"
            raise UserError(f"{name} line {number}: not UTF-8 text ({reason})") from None


class Table:
    """What the tables share. A subclass has `_rows`, which yields the first line too, and `line`."""

    unit = "line"  # what the numbers of rows count
    quoting = ""  # what a row with too many columns may lack
    objects = False  # whether a row is an object, which has keys and no header

    def __init__(self, path):
        self.path = path
        _, first = next(self._rows(), (0, None))
        if first is None:
            raise UserError(f"{path}: the file is empty")
        self.names, self.header = list(first), None if self.objects else self.line(first)

    @functools.cached_property
    def first(self):
        """The first row, or None."""
        return next(iter(self), (0, None))[1]

    def key(self, name):
        return name if self.objects else self.names.index(name)

    def find(self, *columns):
        """The name in this table of the first of `columns` that is there, in upper or lower case; None without one."""
        same = {name.strip().lower(): name for name in reversed(self.names)}
        exact = [column for column in columns if column in self.names]
        return [*exact, *(same[each.lower()] for each in columns if each and each.lower() in same), None][0]

    @property
    def misnamed(self):
        """One line about a first line that looks separated by what its suffix does not mean; "" for others."""
        path = Path(self.path)
        for name, character, suffix in SEPARATORS:
            if len(self.names) == 1 and character in self.names[0] and suffix != path.suffix:
                return f"{name} seem to separate its columns; such a file's name is {path.stem}{suffix}"
        return ""

    @property
    def told(self):
        """What to say where a column is missing: the columns found, or that the file is `misnamed`."""
        return self.misnamed or f"found {', '.join(name[:60] for name in self.names[:12])}"

    def __iter__(self):
        return itertools.islice(self._rows(), self.header is not None, None)


class TabSeparated(Table):
    def __init__(self, path, columns, wanted):
        super().__init__(path)
        # CoLA's train and dev files have no header, its test file has one.
        if columns and not set(wanted) <= set(self.names):
            self.names, self.header = list(columns), None

    def _rows(self):
        for number, text in read_lines(self.path):
            if text or number == 1:  # a trailing empty line is not a row
                yield number, text.split("\t")

    @staticmethod
    def line(row):
        return "\t".join(row)


class CommaSeparated(Table):
    """Separated by semicolons, as spreadsheets in many languages write it, if the first line has those and no comma."""

    def __init__(self, path):
        first = next((text for _, text in read_lines(path) if text), "")
        self.delimiter = ";" if ";" in first and "," not in first else ","
        self.quoting = f"; a text with {self.delimiter!r} in it stands in double quotes"
        super().__init__(path)

    def _rows(self):
        csv.field_size_limit(LONGEST_ROW)  # the default is 128 KiB
        lines, before = (f"{text}\n" for _, text in read_lines(self.path)), 0
        rows = csv.reader(lines, delimiter=self.delimiter, strict=True)
        try:
            for row in rows:
                if row:
                    yield before + 1, row
                before = rows.line_num
        except csv.Error as error:
            raise UserError(f"{self.path} line {before + 1}: not comma-separated text ({error})") from None

    def line(self, row):
        text = io.StringIO()
        # "\r\n", so that it quotes fields with "\r" or "\n" in them.
        csv.writer(text, delimiter=self.delimiter, lineterminator="\r\n").writerow(row)
        return text.getvalue().removesuffix("\r\n")


class Columns(Table):
    """CoNLL's layout: a token a line, its tag in the last of its columns, an empty line after each sentence. A row is a
    sentence, {"tokens": [...], "tags": [...]}, without "tags" where there is one column."""

    objects = True

    @property
    def misnamed(self):
        return NOT_TEXTS if Path(self.path).suffix == ".txt" else ""

    @staticmethod
    def _split(text):
        # Not split(), which takes a no-break space inside a token for the end of a column.
        return text.split("\t") if "\t" in text else [column for column in text.split(" ") if column]

    def _rows(self):
        start, found = 0, []
        texts = (text for _, text in read_lines(self.path) if not text.startswith("#"))
        first = next((text for text in texts if self._split(text)[:1] not in ([], [DOCUMENT_START])), "")
        width = len(self._split(first))
        for number, text in itertools.chain(read_lines(self.path), [(0, "")]):
            columns = self._split(text)
            if first and text.startswith("#") and (len(columns) != width or ("\t" in text) != ("\t" in first)):
                continue  # a comment, as in CoNLL-U
            if columns and columns[0] != DOCUMENT_START:
                width = width or len(columns)
                if len(columns) != width:
                    told = [f"{len(columns)} columns, expected {width}", self.misnamed]
                    raise UserError(f"{self.path} line {number}: {'; '.join(filter(None, told))}")
                start = start or number
                found.append((columns[0], columns[-1])[:width])
            elif found:
                yield start, dict(zip(("tokens", "tags"), map(list, zip(*found, strict=True)), strict=False))
                start, found = 0, []

    @staticmethod
    def line(row):
        return "".join("\t".join(columns) + "\n" for columns in zip(*row.values(), strict=True))


class JsonLines(Table):
    """An object per line; `names` are the fields of the first one."""

    objects = True

    def _rows(self):
        for number, text in read_lines(self.path):
            if not text.strip():
                continue
            row = parse_json(text, self.path, number)
            check_depth(row, text, self.path, number)
            if "\\u" in text:
                self._check_characters(self.line(row), number)
            yield number, row

    def _check_characters(self, text, number):
        try:
            text.encode()
        except UnicodeEncodeError:  # "\ud83d" alone is valid JSON, but no text
            told = "has half of a surrogate pair (\\ud800 to \\udfff), expected whole characters"
            raise UserError(f"{self.path} {self.unit} {number}: {told}") from None

    @staticmethod
    def line(row):
        return json.dumps(row, ensure_ascii=False)


OBJECTS = Field("a list of objects", (list,), of=Field("an object", (dict,)), needed=True)
NOT_EMPTY = Field("a text that is not empty", low=1, needed=True)
QUESTION = {"id": NOT_EMPTY, "question": Field("a text", needed=True)}
SQUAD_START = re.compile(rb'(\xef\xbb\xbf)?\s*\{(\s*"\w+"\s*:\s*("[^"]*"|[\d.]+)\s*,)*\s*"data"\s*:\s*\[')


class Squad(JsonLines):
    """SQuAD's official layout, one object with paragraphs and their questions. A row is a question, {"id", "question",
    "context"} and, where the file has them, "answers" and "is_impossible". Its "line" is its id."""

    unit, largest = "question", 1 << 28  # bytes

    def __init__(self, path):
        self.data = read_json(path, {"data": OBJECTS}, self.largest)["data"]
        super().__init__(path)

    @staticmethod
    def is_in(path):
        """Whether a JSON file begins as one of this layout."""
        with open(path, "rb") as file:
            return bool(SQUAD_START.match(file.read(4096)))

    def _rows(self):
        seen = set()
        for number, article in enumerate(self.data, 1):
            check(article, {"paragraphs": OBJECTS}, f"{self.path} data {number}")
            for paragraph in article["paragraphs"]:
                where = f"{self.path} data {number}, a paragraph"
                check(paragraph, {"context": NOT_EMPTY, "qas": OBJECTS}, where)
                for found in paragraph["qas"]:
                    check(found, QUESTION, f"{self.path} question {str(found.get('id', '?'))[:60]}")
                    if found["id"] in seen:
                        raise UserError(f"{self.path} question {found['id']}: its id occurs twice, expected it once")
                    seen.add(found["id"])
                    kept = {key: found[key] for key in ("answers", "is_impossible") if key in found}
                    if kept.get("answers") is None and ("answers" in kept or kept.get("is_impossible") is True):
                        kept["answers"] = []
                    row = {"id": found["id"], "question": found["question"], "context": paragraph["context"], **kept}
                    self._check_characters(f"{row['question']}{row['context']}", found["id"])
                    yield found["id"], row
