"""Tasks beyond GLUE's: a folder with train, dev and test files, described by its task.json or by the files' headers.

    my_task/train.csv  my_task/dev.csv  my_task/test.csv  my_task/task.json

task.json may say (all of it is optional):

    {"text": "review",             the column with the text, or a pair: ["premise", "hypothesis"]
     "label": "stars",             the column with the label
     "labels": ["bad", "good"],    the labels in the order of the model's outputs; without it those of the training file
     "label_names": ["-", "+"],    how they are called in models and reports
     "ignore_labels": ["?"],       rows with these are left out
     "regression": false,          true: the label is a number to be predicted
     "metric": "f1",               what selects the best model: acc, f1, mcc; corr, pearson, spearmanr for regression
     "max_seq_length": 128, "epochs": 3}
"""

import math
import re
from pathlib import Path

from transformer.files import UserError, read_json
from transformer.glue import TASKS, Task, TaskFile
from transformer.tables import SUFFIXES, open_table

DESCRIPTION = "task.json"
# What columns are called where no task.json names them, the likeliest first.
TEXT_COLUMNS = (
    ("sentence1", "sentence2"),
    ("text_a", "text_b"),
    ("text1", "text2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("sentence",),
    ("text",),
)
LABEL_COLUMNS = ("label", "labels", "gold_label", "score")
MOST_LABELS = 50  # more different numbers are taken for scores that somebody forgot to call so
MAX_SEQ_LENGTH = 128
METRICS = {False: ("acc", "f1", "mcc"), True: ("corr", "pearson", "spearmanr")}  # by "regression"

KINDS = {
    "text": ("a column's name, or a list of two", lambda value: _is_name(value) or (_is_names(value, 1, 2))),
    "label": ("a column's name", lambda value: _is_name(value)),
    "labels": ("a list of different labels, two or more", lambda value: _is_names(value, 2)),
    "label_names": ("a list of different names, one for each of labels", lambda value: _is_names(value, 2)),
    "ignore_labels": ("a list of labels", lambda value: _is_names(value)),
    "regression": ("true or false", lambda value: isinstance(value, bool)),
    "metric": ("one of acc, f1, mcc, or for regression corr, pearson, spearmanr", lambda value: _is_name(value)),
    "max_seq_length": ("a whole number above 2", lambda value: type(value) is int and value > 2),
    "epochs": ("a number above 0", lambda value: type(value) in (int, float) and 0 < value < math.inf),
}


def find_task(name, folder=None):
    """The `Task` of a name: GLUE's row, in any case of letters, or that of the folder of this name.

    Args: folder: where the task's files are, None = the folder called `name`. Raises UserError: neither one nor the
    other, a task.json that is none, files that it does not fit.
    """
    if str(name).lower() in TASKS:
        return TASKS[str(name).lower()]
    folder = Path(folder or name)
    if not re.fullmatch(r"\w[\w.-]*", str(name)):
        raise UserError(f"--task_name {name}: expected a name of letters, digits, '_', '.', '-', as a folder has it")
    train = find_file(folder, "train")
    if train is None and not (folder / DESCRIPTION).is_file():
        known = ", ".join(task.name for task in TASKS.values())
        raise UserError(
            f"--task_name {name}: neither one of {known}, nor is there a {DESCRIPTION} or a training file "
            f"(train{', train'.join(SUFFIXES)}) in {folder}"
        )
    return describe_task(str(name), folder, train)


def find_file(folder, stem):
    """The file of this stem with one of the suffixes of tables, or None."""
    return next((path for suffix in SUFFIXES if (path := Path(folder) / f"{stem}{suffix}").is_file()), None)


def describe_task(name, folder, train):
    """The `Task` of a folder: what task.json says, the rest from the training file."""
    said, where = read_description(folder / DESCRIPTION), folder / DESCRIPTION
    texts, label = find_columns(said, folder, train)
    ignored, labels, regression = said.get("ignore_labels", ()), said.get("labels"), said.get("regression")
    if labels is None and not regression:
        if train is None:
            raise UserError(f'{folder}: no training file to take the labels from; {DESCRIPTION} names them: "labels"')
        labels = labels_of(train, texts, label, tuple(map(str, ignored)), regression)
    labels = tuple(map(str, labels or ()))
    names, metrics = said.get("label_names", ()), METRICS[not labels]
    if names and len(names) != len(labels):
        raise UserError(f"{where}: {len(names)} label_names for {len(labels)} labels")
    metric = said.get("metric", metrics[0])
    if metric not in metrics:
        raise UserError(f"{where}: metric is {metric!r}, expected {KINDS['metric'][0]}")
    suffix = train.suffix if train else SUFFIXES[0]
    train_file, dev_file, test_file = (
        (find_file(folder, stem) or folder / f"{stem}{suffix}").name for stem in ("train", "dev", "test")
    )
    return Task(
        name,
        texts,
        label,
        labels,
        (metric, *(other for other in metrics if other != metric)),
        said.get("epochs"),
        said.get("max_seq_length", MAX_SEQ_LENGTH),
        tuple(map(str, names)),
        ignored_labels=tuple(map(str, ignored)),
        train_file=train_file,
        dev_files=(dev_file,),
        test_files=(test_file,),
    )


def find_columns(said, folder, train):
    """The names of the columns: (of the text or the two texts, of the label)."""
    texts, label = said.get("text"), said.get("label")
    found = open_table(train).names if train and not (texts and label) else ()
    if texts is None:
        texts = next((names for names in TEXT_COLUMNS if set(names) <= set(found)), None)
    if label is None:
        label = next((name for name in LABEL_COLUMNS if name in found), None)
    for what, value, usual in (("text", texts, "sentence, sentence1 and sentence2, text"), ("label", label, "label")):
        if value is None:
            place = f"{train} line 1" if train else f"{folder}: no training file"
            columns = f"; found {', '.join(found[:12])}" if train else ""
            raise UserError(
                f'{place}: no column for the {what} ({usual}){columns}; {DESCRIPTION} names it: {{"{what}": "..."}}'
            )
    return (texts,) if isinstance(texts, str) else tuple(texts), label


def read_description(path):
    """What task.json says, {} without one. Raises UserError for an unknown key or a value of the wrong kind."""
    said = read_json(path) if path.is_file() else {}
    if not isinstance(said, dict):
        raise UserError(f"{path}: expected one JSON object")
    for key, value in said.items():
        if key not in KINDS:
            raise UserError(f"{path}: {key!r} is no key here; expected {', '.join(KINDS)}")
        expected, fits = KINDS[key]
        if not fits(value):
            raise UserError(f"{path}: {key} is {value!r}, expected {expected}")
    if said.get("regression") and said.get("labels"):
        raise UserError(f"{path}: labels and regression; expected one of them")
    return said


def _is_name(value):
    return isinstance(value, str) and bool(value)


def _is_names(value, least=0, most=math.inf):
    names = isinstance(value, list) and all(_is_name(name) or type(name) is int for name in value)
    return names and least <= len(value) <= most and len(set(map(str, value))) == len(value)


def labels_of(path, texts, label, ignored, regression):
    """The different labels of a training file, in order; () where they are scores.

    Numbers are scores where one of them is no whole number, unless task.json says that there is no regression.
    """
    task = Task("", texts, label, _AnyLabel(), ("acc",), None, MAX_SEQ_LENGTH, ignored_labels=ignored)
    found = {}  # {in lower case: as it came first}
    for row in TaskFile(path, task):
        found.setdefault(row.label.lower(), row.label)
    labels = list(found.values())
    numbers = [_number(value) for value in labels]
    if None not in numbers:
        if regression is None and not all(number.is_integer() for number in numbers):
            return ()
        labels = [value for _, value in sorted(zip(numbers, labels, strict=True))]
    else:
        labels.sort()
    if len(labels) < 2:
        raise UserError(f"{path}: every row has the label {labels[0]!r}; expected two labels or more")
    if len(labels) > MOST_LABELS:
        raise UserError(
            f"{path}: {len(labels)} different labels in the column {label!r}; if they are right, {DESCRIPTION} lists "
            'them: "labels", or says "regression": true'
        )
    return labels


class _AnyLabel(tuple):
    """Labels that are not known yet: each one is one."""

    def __contains__(self, label):
        return True

    def __bool__(self):
        return True


def _number(text):
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
