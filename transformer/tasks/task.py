"""A task: its table row, and its files, read one row at a time."""

import hashlib
import json
import logging
import math
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from textwrap import shorten
from typing import NamedTuple

from transformer.downloads import fetch_advice
from transformer.files import UserError
from transformer.flags import EVALUATION, INTERMEDIATE, OUTPUTS, PREDICTION, SAMPLE_TASK, STUDENTS, at_root
from transformer.tables import SUFFIXES, decode_lines, open_table, read_lines
from transformer.tasks.classification import CLASSIFICATION
from transformer.tasks.kind import Kind

STANDARD_INPUT = "-"
MOST_SHOWN = 20  # labels in the line that describes a task


@dataclass(frozen=True)
class Task:
    """One task. `labels`: as in its files, () if it has no classes; `label_names`: other names that teachers may use;
    the first of `metrics` selects the best model."""

    name: str
    text_columns: tuple
    label_column: str = "label"
    labels: tuple = ("0", "1")
    metrics: tuple = ("acc",)
    epochs: float | None = None  # of the intermediate step; None = the step's default
    max_seq_length: int = 128
    windows: dict = field(default_factory=dict)  # {flag: value} of what it has of its own to say on windows
    tries: int | None = None  # N of augmentation; None = the step's default
    label_names: tuple = ()
    columns: tuple = ()  # column names, for files without a header
    other_columns: dict = field(default_factory=dict)  # {column: its name in files that name it differently}
    train_file: str = "train.tsv"
    dev_files: tuple = ("dev.tsv",)
    test_files: tuple = ("test.tsv",)
    source: str = ""  # its files' name in step 0 and their folder; "" for a task of the user's own
    published: dict = field(default_factory=dict)  # {file that step 0 does not have: the page that has it}
    trained_as: str | None = None  # for a task without training data: the task whose models do it
    ignored_labels: tuple = ()  # rows with these are left out
    skip_short_rows: bool = False
    kind: Kind = CLASSIFICATION
    score_range: tuple = (-math.inf, math.inf)  # written predictions are clipped to it
    separator: str | None = None  # between the labels of a row, where it can have several
    thresholds: tuple = ()  # of the probabilities of such labels, for one model's outputs, see `as_in`
    null_threshold: float | None = None  # likewise of no answer, see `spans`
    dev_fraction: float | None = None  # without a dev file: the part of the training rows that stands for it
    rows: int | None = None  # in the training file, where its labels were looked for
    warnings: tuple = ()  # what may have been misunderstood

    @property
    def num_labels(self):
        """The number of outputs of a head for this task."""
        return self.kind.num_outputs(self)

    def announce(self, stage, here):
        """Log what starts, how the task's files were understood, and what may be wrong about it. `here`: Processes."""
        logging.info("%s: %s on %s", stage, self.name, here)
        logging.info("%s", self.describe())
        for warning in self.warnings if here.first else ():
            logging.warning("warning: %s", warning)

    def describe(self):
        """``text: `text`; label: `label`; 3 classes: no, yes, maybe; 212 rows``."""
        texts = ", ".join(f"`{name}`" for name in self.text_columns)
        more = ", ..." if len(self.labels) > MOST_SHOWN else ""
        shown = (label if label.strip() else repr(label) for label in self.labels[:MOST_SHOWN])
        classes = f"{len(self.labels)} classes: {', '.join(shown)}{more}"
        parts = [f"text: {texts}; label: `{self.label_column}`"]
        parts.append(classes if self.labels else type(self.kind).__name__.lower())
        parts += [f"any number of them a row, with {self.separator!r} between"] if self.separator else []
        parts += [f"{self.rows} rows"] if self.rows else []
        parts += [f"{self.dev_fraction:g} of them for dev"] if self.dev_fraction else []
        return "; ".join(parts)

    @property
    def titles(self):
        """The labels' names in models and reports."""
        return self.label_names or self.labels

    @property
    def settings(self):
        """(name, {flag: value, or {step: value}}): the row's defaults for a run's settings."""
        epochs = None if self.epochs is None else float(self.epochs)
        folder = at_root(self.source or self.name)
        own = {"max_seq_length": self.max_seq_length, "num_train_epochs": epochs, "N": self.tries, **self.windows}
        if self.name != SAMPLE_TASK:  # whose students have the plain folders, those of the published commands
            student, steps = self.trained_as or self.name, (INTERMEDIATE, PREDICTION, EVALUATION)
            own["student_model"] = {step: at_root(f"{STUDENTS[step]}/{student}") for step in steps[1:]}
            own["output_dir"] = {step: at_root(f"{OUTPUTS[step]}/{self.name}") for step in steps}
        return self.name, own | {"data_dir": folder}

    def card(self, lengths):
        """What a finished model's config.json tells of the task, see `own_tasks.stored_task`."""
        known = {"name": self.name, "text": list(self.text_columns), "label": self.label_column}
        known |= {"separator": self.separator} if self.separator else {}
        return known | {name: getattr(lengths, name) for name in self.kind.lengths}

    def as_in(self, config):
        """The task as the model with this `BertConfig` does it: with the thresholds that were chosen for it, if any."""
        said = config.__dict__.get("task")
        said = said if isinstance(said, dict) else {}
        return replace(self, thresholds=tuple(said.get("thresholds", ())), null_threshold=said.get("null_threshold"))

    def check_training(self):
        """Raise UserError if the task has no training data."""
        if self.trained_as:
            raise UserError(f"--task_name {self.name}: nothing to train on; {self.trained_as}'s models do this task")

    def check_file(self, path):
        """Raise UserError if one of the task's files is missing, with the command that brings it."""
        set_aside = self.dev_fraction and path.name in self.dev_files
        if path.is_file() or set_aside:
            return
        advice = ""
        if path.name in self.published:
            advice = f"; it is published at {self.published[path.name]}"
        elif self.source and path.name in (self.train_file, *self.dev_files, *self.test_files):
            advice = f"; {fetch_advice(self.source, self.source)}"
        elif not self.source and path.name in self.dev_files:
            advice = f"; put one there, or give every step --dev_fraction 0.1, which takes a tenth of {self.train_file}"
        elif not self.source and path.name in self.test_files:
            advice = f"; put one there, with the columns {', '.join(self.text_columns)}; it needs no labels"
        raise UserError(f"{path}: no such file{advice}")

    @property
    def augmented_file(self):
        """The name of stage 1's output, beside the training file."""
        path = Path(self.train_file)
        return f"{path.stem}_aug{self.kind.augmented.get(path.suffix, path.suffix)}"

    @property
    def submissions(self):
        """The GLUE site's names for the prediction files, or the kind's own, one per test file."""
        stem, parts = self.kind.submission or self.name, ("",) if len(self.test_files) == 1 else ("-m", "-mm")
        return [f"{stem}{part}{self.kind.suffix}" for part in parts]


def label_order(task, names):
    """The task's labels in the order of a model's logits. `names`: its class names by index, or None."""
    # Models from elsewhere order MNLI's classes in other ways, which the reference ignores.
    if not names or len(names) != task.num_labels:
        return task.labels

    def plain(name):
        return name.lower().replace("-", "_").replace(" ", "_")

    for known in (task.labels, task.label_names):
        by_name = dict(zip(map(plain, known), task.labels, strict=False))
        if set(by_name) == set(map(plain, names)):
            return tuple(by_name[plain(name)] for name in names)
    return task.labels  # the names say nothing about this task's classes


def is_dev_row(texts, fraction):
    """Whether a row belongs to the `fraction` of the training rows that is kept for dev."""
    # By the texts alone: every step sets the same rows aside, whatever its --seed and however the file is sorted, and
    # equal rows stay together.
    digest = hashlib.blake2b("\0".join(texts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


class Row(NamedTuple):
    """One row of a task file: line number, unchanged columns (a list; a dictionary for JSON Lines), texts and label."""

    line: int
    columns: list | dict
    texts: tuple
    label: str | None
    id: str | None = None  # what its column `id` says, where the kind of task wants it


def cell(columns, key):
    """What stands in one of a row's columns; None where an object has no such key."""
    return columns.get(key) if isinstance(columns, dict) else columns[key]


class TaskFile:
    """A task's file. Iterating yields its `Row`s; `header` is its header line or None. Where the task has no dev file
    but a `dev_fraction`, the training file and the dev file are the two parts of the training file.

    Args: labelled: whether to read the label column (train, dev) or not (test). Raises UserError for a missing or empty
    file, a missing or duplicate column, a row with a wrong number of columns, an unknown label. After an iteration
    `skipped` counts the rows left out: short ones (only with skip_short_rows) and those with an ignored label.
    `name`, `title`: the file's name or path, and which of its rows; `text_keys`: the keys of the texts in a row.
    """

    def __init__(self, path, task, labelled=True):
        self.path, self.task, self.labelled, self.skipped = Path(path), task, labelled, 0
        task.check_file(self.path)
        self.split = task.dev_fraction is not None and self.path.name in (task.train_file, *task.dev_files)
        self.dev, self.name = self.split and self.path.name in task.dev_files, self.path.name
        if self.split:
            self.path = self.path.with_name(task.train_file)
            self.name = f"{self.path.name}, {'dev rows' if self.dev else 'without dev rows'}"
        self.title = self.path.with_name(self.name)
        wanted = (*task.text_columns, task.label_column) if labelled else task.text_columns
        self.table = open_table(self.path, task.columns, wanted)
        self.header, self.names = self.table.header, self.table.names
        found = [self.table.find(column, task.other_columns.get(column)) for column in wanted]
        for column, name in zip(wanted, found, strict=True):
            if name is None:
                of_task = f" for {task.name}" if task.name else ""
                raise UserError(f"{self.path} line 1: no column {column!r}{of_task}; {self.table.told}")
            if self.names.count(name) > 1:
                raise UserError(f"{self.path} line 1: more than one column {name!r}")
        keys = [self.table.key(name) for name in found]
        self.text_keys, self.label_key = keys[: len(task.text_columns)], keys[-1]
        name = self.table.find("id") if task.kind.by_id else None
        self.id_key = self.table.key(name) if name else None

    def __iter__(self):
        self.skipped = rows = 0
        for line, columns in self.table:
            if isinstance(columns, list) and len(columns) != len(self.names):
                if self.task.skip_short_rows and self.labelled and len(columns) < len(self.names):
                    self.skipped += 1
                    continue
                told = f"{len(columns)} columns, expected {len(self.names)}{self.table.quoting}"
                raise UserError(f"{self.path} line {line}: {told}")
            texts = tuple(self._text(columns, key, line) for key in self.text_keys)
            if self.split and is_dev_row(texts[self.task.kind.telling], self.task.dev_fraction) != self.dev:
                continue
            label = None
            if self.labelled:
                label = self._value(columns, self.label_key, line, self.task.kind.label_types)
                if {*self.task.kind.parts(self.task, label)} & {*self.task.ignored_labels}:
                    self.skipped += 1
                    continue
                try:
                    label = self.task.kind.read_label(self.task, label)
                    self.task.kind.check_row(texts, label)
                except ValueError as error:
                    shown = shorten(repr(label), 200, placeholder=" ...")
                    raise UserError(f"{self.path} {self.table.unit} {line}: label {shown}, expected {error}") from None
            rows += 1
            found = None if self.id_key is None else cell(columns, self.id_key)
            yield Row(line, columns, texts, label, None if found is None else str(found))
        if not rows:
            advice = f" (--dev_fraction {self.task.dev_fraction:g})" if self.split else ""
            raise UserError(f"{self.title}: no rows{advice}")

    def _text(self, columns, key, line):
        value = self._value(columns, key, line, self.task.kind.text_types)
        try:
            return self.task.kind.read_text(value)
        except ValueError as error:
            raise UserError(f"{self.path} {self.table.unit} {line}: field {key!r}, expected {error}") from None

    def _value(self, columns, key, line, kinds):
        """A text, or a list of them where `kinds` has lists. JSON Lines may have 1, 2.5 and true for a text."""
        value = cell(columns, key)
        if isinstance({}, kinds):
            return value  # objects, which the kind checks
        parts = value if isinstance(value, list) else [value]
        plain = all(isinstance(each, str | int) or (isinstance(each, float) and math.isfinite(each)) for each in parts)
        if not isinstance(value, kinds) or not plain:
            kind = "text" if kinds is str else "text or a number"
            kind += ", or a list of them" if isinstance([], kinds) else ""
            told = f"field {key!r} is {json.dumps(value)[:40]}, expected {kind}"
            raise UserError(f"{self.path} {self.table.unit} {line}: {told}")
        parts = [each if isinstance(each, str) else json.dumps(each) for each in parts]
        return parts if isinstance(value, list) else parts[0]


def read_rows(source, task):
    """Yield the `Row`s, without labels, of a table with the task's text columns, or of a file with a text a line (where
    the task has pairs of texts, with a tab between the two). Raises UserError for anything else."""
    if Path(source).suffix in SUFFIXES and Path(source).suffix != ".txt":
        yield from TaskFile(source, replace(task, dev_fraction=None), labelled=False)
        return
    columns = task.text_columns
    name = "standard input" if source == STANDARD_INPUT else source
    lines = read_lines(source) if name == source else decode_lines(sys.stdin.buffer, name)
    for number, text in lines:
        texts = tuple(text.split("\t")) if len(columns) > 1 else (task.kind.read_line(text),)
        if len(texts) != len(columns):
            expected = f"{' and '.join(columns)} with a tab between"
            raise UserError(f"{name} line {number}: {len(texts)} columns, expected {expected}")
        yield Row(number, list(texts), texts, None)


def unlabelled_rows(path, task, held_out=()):
    """Yield the rows of `read_rows` to train on: not those without text, nor those whose texts are in `held_out`, the
    dev rows, which must not come back in this way. Raises UserError where no row is left."""
    taken = left = 0
    for row in read_rows(Path(path), task):  # a Path is not standard input, which could be read only once
        fits = any(map(str.strip, row.texts)) and row.texts not in held_out
        taken, left = taken + fits, left + (not fits)
        if fits:
            yield row
    if left:
        logging.info("%s: %d rows left out, empty or in the dev set", path, left)
    if not taken:
        raise UserError(f"{path}: no texts to train on")
