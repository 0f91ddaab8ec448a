"""The tasks of GLUE in one table, the reader of their files, and their metrics.

A task is a row of TASKS: which columns hold the text and the label, the labels in the order of the logits, the metrics
(the first selects the best model), and the reference's epochs of the intermediate step and sequence length.
Files are the official archives'. TSV is read and written without quoting: a quote is a character like any other, so
text with quotes comes back as it went out. The reference quotes when it writes and not when it reads.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from transformer.file_utils import UserError

ENTAILMENT = ("entailment", "not_entailment")


@dataclass(frozen=True)
class Task:
    """One task. `labels` are those of the files, () for regression; `label_names` what teachers may call them."""

    name: str
    text_columns: tuple
    label_column: str
    labels: tuple
    metrics: tuple
    epochs: int
    max_seq_length: int
    label_names: tuple = ()
    columns: tuple = ()  # of files without a header row
    dev_files: tuple = ("dev.tsv",)
    test_files: tuple = ("test.tsv",)
    skip_short_rows: bool = False

    @property
    def regression(self):
        return not self.labels

    @property
    def num_labels(self):
        return max(len(self.labels), 1)


SENTENCES = ("sentence1", "sentence2")
TASKS = {
    task.name.lower(): task
    for task in (
        Task("CoLA", ("sentence",), "label", ("0", "1"), ("mcc",), 50, 64, ("unacceptable", "acceptable"),
             columns=("source", "label", "mark", "sentence")),
        Task("SST-2", ("sentence",), "label", ("0", "1"), ("acc",), 10, 64, ("negative", "positive")),
        Task("MRPC", ("#1 String", "#2 String"), "Quality", ("0", "1"), ("acc", "f1"), 20, 128,
             ("not_equivalent", "equivalent")),
        Task("STS-B", SENTENCES, "score", (), ("corr", "pearson", "spearmanr"), 20, 128),
        # Some rows of the official QQP files lack columns; they are skipped and counted.
        Task("QQP", ("question1", "question2"), "is_duplicate", ("0", "1"), ("acc", "f1"), 5, 128,
             ("not_duplicate", "duplicate"), skip_short_rows=True),
        # Matched and mismatched are two dev sets; the first one selects the model.
        Task("MNLI", SENTENCES, "gold_label", ("contradiction", "entailment", "neutral"), ("acc",), 5, 128,
             dev_files=("dev_matched.tsv", "dev_mismatched.tsv"),
             test_files=("test_matched.tsv", "test_mismatched.tsv")),
        Task("QNLI", ("question", "sentence"), "label", ENTAILMENT, ("acc",), 10, 128),
        Task("RTE", SENTENCES, "label", ENTAILMENT, ("acc",), 20, 128),
        Task("WNLI", SENTENCES, "label", ("0", "1"), ("acc",), 20, 128, ("not_entailment", "entailment")),
    )
}  # fmt: skip


def find_task(name):
    """The row of TASKS for a name in any case. Raises UserError for an unknown name."""
    task = TASKS.get(str(name).lower())
    if task is None:
        raise UserError(
            f"--task_name {name}: unknown, expected one of {', '.join(task.name for task in TASKS.values())}"
        )
    return task


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
        return any(known and set(map(str.lower, names)) == set(map(str.lower, known)) for known in
                   (other.labels if other.labels != ("0", "1") else (), other.label_names))  # fmt: skip

    return bool(names) and not same(task) and any(same(other) for other in TASKS.values())


class Row(NamedTuple):
    """One row of a task file: its line number, its columns as they stand, its texts and its label."""

    line: int
    columns: list
    texts: tuple
    label: str | None


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


class TaskFile:
    """A task's TSV file. Iterating yields `Row`s one at a time; `header` is its header line or None.

    Args: labelled: whether the label column must be there (train, dev) or is not read (test).
    Raises UserError: a missing or empty file, a missing or doubled column, a row with another number of columns,
    an unknown label.
    After the iteration `skipped` counts the short rows left out (tasks with skip_short_rows only).
    """

    def __init__(self, path, task, labelled=True):
        self.path, self.task, self.labelled, self.skipped = Path(path), task, labelled, 0
        first = next(read_lines(path), None)
        if first is None:
            raise UserError(f"{path}: the file is empty")
        wanted = (*task.text_columns, task.label_column) if labelled else task.text_columns
        names = first[1].split("\t")
        # A file without header is one whose first line lacks the columns' names: CoLA's train and dev, not its test.
        self.header = None if task.columns and not set(wanted) <= set(names) else first[1]
        self.names = list(task.columns) if self.header is None else names
        absent = [name for name in wanted if name not in self.names]
        if absent:
            raise UserError(
                f"{path} line 1: no column {absent[0]!r} for {task.name}; found {', '.join(self.names[:12])}"
            )
        twice = [name for name in wanted if self.names.count(name) > 1]
        if twice:
            raise UserError(f"{path} line 1: more than one column {twice[0]!r}")
        self.text_indices = [self.names.index(name) for name in task.text_columns]
        self.label_index = self.names.index(task.label_column) if labelled else None

    def __iter__(self):
        self.skipped = 0
        rows = 0
        for line, text in read_lines(self.path):
            if line == 1 and self.header is not None:
                continue
            if not text:
                continue  # a trailing empty line
            columns = text.split("\t")
            if len(columns) != len(self.names):
                if self.task.skip_short_rows and self.labelled and len(columns) < len(self.names):
                    self.skipped += 1
                    continue
                raise UserError(f"{self.path} line {line}: {len(columns)} columns, expected {len(self.names)}")
            label = self._label(columns[self.label_index], line) if self.labelled else None
            rows += 1
            yield Row(line, columns, tuple(columns[index] for index in self.text_indices), label)
        if not rows:
            raise UserError(f"{self.path}: no rows")

    def _label(self, label, line):
        if self.task.regression:
            try:
                if np.isfinite(float(label)):
                    return label
            except ValueError:
                pass
            raise UserError(f"{self.path} line {line}: label {label!r}, expected a number")
        for known in self.task.labels:
            if label.lower() == known.lower():
                return known
        raise UserError(f"{self.path} line {line}: label {label!r}, expected one of {', '.join(self.task.labels)}")


def compute_metrics(task, predictions, labels):
    """Every metric of the task, {name: value}.

    Args: predictions: (N,) class indices, or scores for regression; labels: (N,) likewise, in the same order of
    classes. For f1 the positive class is index 1, as the table's order has it. `acc_and_f1` and `corr` are the two
    metrics' means.
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if len(predictions) != len(labels) or not len(labels):
        raise ValueError(f"{len(predictions)} predictions for {len(labels)} labels")
    if "mcc" in task.metrics:
        from sklearn.metrics import matthews_corrcoef

        return {"mcc": float(matthews_corrcoef(labels, predictions))}
    if task.regression:
        from scipy.stats import pearsonr, spearmanr

        if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
            # The correlation with a constant is undefined; a model that answers always the same knows nothing.
            return {"corr": 0.0, "pearson": 0.0, "spearmanr": 0.0}
        pearson, spearman = float(pearsonr(predictions, labels)[0]), float(spearmanr(predictions, labels)[0])
        return {"corr": (pearson + spearman) / 2, "pearson": pearson, "spearmanr": spearman}
    accuracy = float((predictions == labels).mean())
    if "f1" not in task.metrics:
        return {"acc": accuracy}
    from sklearn.metrics import f1_score

    f1 = float(f1_score(labels, predictions, pos_label=1, zero_division=0))
    return {"acc": accuracy, "f1": f1, "acc_and_f1": (accuracy + f1) / 2}
