"""The tasks of GLUE in one table, their rows, and their metrics.

A task is a row of TASKS: which columns hold the text and the label, the labels in the order of the logits, the metrics
(the first selects the best model), and the reference's epochs of the intermediate step and sequence length.
Files are the official archives'. Tasks of one's own (`own_tasks`) are such rows too.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from transformer.files import UserError
from transformer.tables import open_table

ENTAILMENT = ("entailment", "not_entailment")
MNLI_LABELS = ("contradiction", "entailment", "neutral")


@dataclass(frozen=True)
class Task:
    """One task. `labels` are those of the files, () for regression; `label_names` what teachers may call them."""

    name: str
    text_columns: tuple
    label_column: str
    labels: tuple
    metrics: tuple
    epochs: float | None  # of the intermediate step; None = the step's default
    max_seq_length: int
    label_names: tuple = ()
    columns: tuple = ()  # of files without a header row
    other_columns: dict = field(default_factory=dict)  # {column: its name in some other file}
    train_file: str = "train.tsv"
    dev_files: tuple = ("dev.tsv",)
    test_files: tuple = ("test.tsv",)
    trained_as: str | None = None  # the task whose models do this one, which has no training data
    ignored_labels: tuple = ()  # of rows that are left out
    skip_short_rows: bool = False

    @property
    def regression(self):
        return not self.labels

    @property
    def num_labels(self):
        return max(len(self.labels), 1)

    @property
    def augmented_file(self):
        """What stage 1 writes beside the training file."""
        path = Path(self.train_file)
        return f"{path.stem}_aug{path.suffix}"

    @property
    def submissions(self):
        """The file of predictions for each test file, as the GLUE site calls them."""
        if len(self.test_files) == 1:
            return (f"{self.name}.tsv",)
        return tuple(f"{self.name}-{part}.tsv" for part in ("m", "mm"))

    def column_in(self, names, column):
        """The name that one of the task's columns has among `names`, or None."""
        other = self.other_columns.get(column)
        return column if column in names else other if other in names else None


SENTENCES = ("sentence1", "sentence2")
TASKS = {
    task.name.lower(): task
    for task in (
        Task(
            "CoLA",
            ("sentence",),
            "label",
            ("0", "1"),
            ("mcc",),
            50,
            64,
            ("unacceptable", "acceptable"),
            columns=("source", "label", "mark", "sentence"),
        ),
        Task("SST-2", ("sentence",), "label", ("0", "1"), ("acc",), 10, 64, ("negative", "positive")),
        Task(
            "MRPC",
            ("#1 String", "#2 String"),
            "Quality",
            ("0", "1"),
            ("acc", "f1"),
            20,
            128,
            ("not_equivalent", "equivalent"),
        ),
        Task("STS-B", SENTENCES, "score", (), ("corr", "pearson", "spearmanr"), 20, 128),
        # Some rows of the official QQP files lack columns; they are skipped and counted.
        Task(
            "QQP",
            ("question1", "question2"),
            "is_duplicate",
            ("0", "1"),
            ("acc", "f1"),
            5,
            128,
            ("not_duplicate", "duplicate"),
            skip_short_rows=True,
        ),
        # Matched and mismatched are two dev sets; the first one selects the model.
        Task(
            "MNLI",
            SENTENCES,
            "gold_label",
            MNLI_LABELS,
            ("acc",),
            5,
            128,
            dev_files=("dev_matched.tsv", "dev_mismatched.tsv"),
            test_files=("test_matched.tsv", "test_mismatched.tsv"),
        ),
        Task("QNLI", ("question", "sentence"), "label", ENTAILMENT, ("acc",), 10, 128),
        Task("RTE", SENTENCES, "label", ENTAILMENT, ("acc",), 20, 128),
        Task("WNLI", SENTENCES, "label", ("0", "1"), ("acc",), 20, 128, ("not_entailment", "entailment")),
        # The diagnostic set: MNLI's models answer it. Its labels are published apart, under other columns' names.
        Task(
            "AX",
            SENTENCES,
            "label",
            MNLI_LABELS,
            ("mcc",),
            None,
            128,
            trained_as="MNLI",
            other_columns={"sentence1": "Premise", "sentence2": "Hypothesis", "label": "Label"},
            dev_files=("diagnostic-full.tsv",),
            test_files=("AX.tsv",),
        ),
    )
}


def label_order(task, names):
    """The task's labels in the order of a model's logits.

    Args: names: the model's class names by index (`modeling.label_names`), or None. Models trained elsewhere order
    MNLI's classes in other ways; where the names tell, they decide (the reference never asks them). Names that are
    not this task's leave the table's order.
    """
    if task.regression or not names or len(names) != task.num_labels:
        return task.labels

    def plain(name):
        return name.lower().replace("-", "_").replace(" ", "_")

    for known in (task.labels, task.label_names):
        by_name = dict(zip(map(plain, known), task.labels, strict=False))
        if set(by_name) == set(map(plain, names)):
            return tuple(by_name[plain(name)] for name in names)
    return task.labels


def names_other_task(task, names):
    """Whether a model's class names are those of another task of the table, and not of this one."""

    def same(other):
        return any(
            known and set(map(str.lower, names)) == set(map(str.lower, known))
            for known in (other.labels if other.labels != ("0", "1") else (), other.label_names)
        )

    return bool(names) and not same(task) and any(same(other) for other in TASKS.values())


class Row(NamedTuple):
    """One row of a task file: its line number, its columns as they stand (a list, of JSON Lines a dictionary), its
    texts and its label."""

    line: int
    columns: list | dict
    texts: tuple
    label: str | None


class TaskFile:
    """A task's file. Iterating yields `Row`s one at a time; `header` is its header line or None.

    Args: labelled: whether the label column must be there (train, dev) or is not read (test).
    Raises UserError: a missing or empty file, a missing or doubled column, a row with another number of columns,
    an unknown label.
    After the iteration `skipped` counts the rows left out: short ones (tasks with skip_short_rows only) and those whose
    label is to be ignored. `text_keys` tell where in a row's columns its texts are.
    """

    def __init__(self, path, task, labelled=True):
        self.path, self.task, self.labelled, self.skipped = Path(path), task, labelled, 0
        wanted = (*task.text_columns, task.label_column) if labelled else task.text_columns
        self.table = open_table(path, task.columns, wanted)
        self.header, self.names = self.table.header, self.table.names
        found = [task.column_in(self.names, name) for name in wanted]
        if None in found:
            absent, of_task = wanted[found.index(None)], f" for {task.name}" if task.name else ""
            raise UserError(f"{path} line 1: no column {absent!r}{of_task}; found {', '.join(self.names[:12])}")
        twice = [name for name in found if self.names.count(name) > 1]
        if twice:
            raise UserError(f"{path} line 1: more than one column {twice[0]!r}")
        keys = [self.table.key(name) for name in found]
        self.text_keys = keys[: len(task.text_columns)]
        self.label_key = keys[-1] if labelled else None

    def __iter__(self):
        self.skipped = 0
        rows = 0
        for line, columns in self.table:
            if isinstance(columns, list) and len(columns) != len(self.names):
                if self.task.skip_short_rows and self.labelled and len(columns) < len(self.names):
                    self.skipped += 1
                    continue
                raise UserError(f"{self.path} line {line}: {len(columns)} columns, expected {len(self.names)}")
            texts = tuple(self._value(columns, key, line, str) for key in self.text_keys)
            label = None
            if self.labelled:
                label = self._value(columns, self.label_key, line, str | int | float)
                label = json.dumps(label) if not isinstance(label, str) else label  # of JSON Lines: 1, 2.5, true
                if label in self.task.ignored_labels:
                    self.skipped += 1
                    continue
                label = self._label(label, line)
            rows += 1
            yield Row(line, columns, texts, label)
        if not rows:
            raise UserError(f"{self.path}: no rows")

    def _value(self, columns, key, line, kinds):
        value = columns.get(key) if isinstance(columns, dict) else columns[key]
        if not isinstance(value, kinds):
            kind = "text" if kinds is str else "text or a number"
            raise UserError(f"{self.path} line {line}: field {key!r} is {json.dumps(value)[:40]}, expected {kind}")
        return value

    def _label(self, label, line):
        if self.task.regression:
            try:
                if np.isfinite(float(label)):
                    return label
            except ValueError:
                pass
            raise UserError(f"{self.path} line {line}: label {label!r}, expected a number")
        if label in self.task.labels:
            return label
        for known in self.task.labels:
            if label.lower() == known.lower():
                return known
        raise UserError(f"{self.path} line {line}: label {label!r}, expected one of {', '.join(self.task.labels)}")


def accuracy(predictions, labels):
    return (predictions == labels).mean()


def f1(predictions, labels):
    """Of class 1 where there are two classes, else the mean over the classes."""
    from sklearn.metrics import f1_score

    average = "binary" if max(labels.max(), predictions.max()) < 2 else "macro"
    return f1_score(labels, predictions, average=average, zero_division=0)


def matthews(predictions, labels):
    from sklearn.metrics import matthews_corrcoef

    return matthews_corrcoef(labels, predictions)


def correlation(kind):
    """A function that gives the correlation of predictions and labels: scipy's pearsonr or spearmanr."""

    def correlate(predictions, labels):
        from scipy import stats

        # The correlation with a constant is undefined; a model that answers always the same knows nothing.
        constant = np.ptp(predictions) == 0 or np.ptp(labels) == 0
        return 0.0 if constant else getattr(stats, kind)(predictions, labels)[0]

    return correlate


METRICS = {
    "acc": accuracy,
    "f1": f1,
    "mcc": matthews,
    "pearson": correlation("pearsonr"),
    "spearmanr": correlation("spearmanr"),
}
MEANS = {"corr": ("pearson", "spearmanr"), "acc_and_f1": ("acc", "f1")}


def compute_metrics(task, predictions, labels):
    """Every metric of the task, {name: value}, the first the one that selects the best model.

    Args: predictions: (N,) class indices, or scores for regression; labels: (N,) likewise, in the same order of
    classes. For f1 of two classes the positive one is index 1, as the table's order has it. `acc_and_f1` and `corr`
    are the two metrics' means.
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if len(predictions) != len(labels) or not len(labels):
        raise ValueError(f"{len(predictions)} predictions for {len(labels)} labels")
    values = {name: float(METRICS[name](predictions, labels)) for name in task.metrics if name in METRICS}
    values |= {
        name: (values[first] + values[second]) / 2
        for name, (first, second) in MEANS.items()
        if first in values and second in values
    }
    return {name: values[name] for name in (task.metrics[0], *values)}
