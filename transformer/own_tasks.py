"""User-defined tasks: a folder with train, dev and test files, described by a task.json or by the files' headers.

    my_task/train.csv  my_task/dev.csv  my_task/test.csv  my_task/task.json

The keys of task.json, all optional:

    {"text": "review",             the column with the text, or a pair: ["premise", "hypothesis"]
     "label": "stars",             the column with the label
     "labels": ["bad", "good"],    the labels in the order of the model's outputs; default: those in the training file
     "label_names": ["-", "+"],    their names in models and reports
     "ignore_labels": ["?"],       rows with these are left out
     "regression": false,          true: the label is a number to predict
     "metric": "f1",               selects the best model: acc, f1, mcc; corr, pearson, spearmanr for regression
     "max_seq_length": 128, "epochs": 3}
"""

import math
import re
from pathlib import Path

from transformer.files import UserError, read_json
from transformer.glue import TASKS
from transformer.tables import SUFFIXES, open_table
from transformer.tasks.classification import CLASSIFICATION
from transformer.tasks.kind import Kind
from transformer.tasks.regression import REGRESSION
from transformer.tasks.task import Task, TaskFile

DESCRIPTION = "task.json"
# Column names to look for where task.json has none, most specific first.
TEXTS = "sentence1 sentence2|text_a text_b|text1 text2|premise hypothesis|question1 question2|question sentence"
TEXT_COLUMNS = [tuple(names.split()) for names in f"{TEXTS}|sentence|text".split("|")]
LABEL_COLUMNS = ("label", "labels", "gold_label", "score")
MOST_LABELS = 50  # with more, "regression" was probably forgotten


def is_name(value):
    return isinstance(value, str) and bool(value)


def is_names(value, least=0, most=math.inf):
    names = isinstance(value, list) and all(is_name(name) or type(name) is int for name in value)
    return names and least <= len(value) <= most and len(set(map(str, value))) == len(value)


KEYS = {  # {key of task.json: (expected value in words, function that checks a value)}
    "text": ("a column's name, or a list of two", lambda value: is_name(value) or is_names(value, 1, 2)),
    "label": ("a column's name", is_name),
    "labels": ("a list of different labels, two or more", lambda value: is_names(value, 2)),
    "label_names": ("a list of different names, one for each of labels", lambda value: is_names(value, 2)),
    "ignore_labels": ("a list of labels", is_names),
    "regression": ("true or false", lambda value: isinstance(value, bool)),
    "metric": ("one of acc, f1, mcc, or for regression corr, pearson, spearmanr", is_name),
    "max_seq_length": ("a whole number above 2", lambda value: type(value) is int and value > 2),
    "epochs": ("a number above 0", lambda value: type(value) in (int, float) and 0 < value < math.inf),
}


def find_task(name, folder=None):
    """The `Task` called `name`, in upper or lower case, from GLUE's table or else from `folder` (None = a folder called
    `name`). Raises UserError for an unknown name, an invalid task.json, or one that does not fit the files."""
    name = str(name)
    if name.lower() in TASKS:
        return TASKS[name.lower()]
    folder = Path(folder or name)
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(f"--task_name {name}: expected a name of letters, digits, '_', '.', '-', as a folder has it")
    train = find_file(folder, "train")
    if train is None and not (folder / DESCRIPTION).is_file():
        known = ", ".join(task.name for task in TASKS.values())
        raise UserError(
            f"--task_name {name}: neither one of {known}, nor is there a {DESCRIPTION} or a training file "
            f"(train{', train'.join(SUFFIXES)}) in {folder}"
        )
    return describe_task(name, folder, train)


def find_file(folder, stem):
    """The table file with this stem, or None."""
    return next((path for suffix in SUFFIXES if (path := folder / f"{stem}{suffix}").is_file()), None)


def describe_task(name, folder, train):
    """The `Task` of a folder: from task.json, and where that is silent from the training file."""
    where = folder / DESCRIPTION
    said = read_description(where)
    texts, label = find_columns(said, folder, train)
    labels, names, ignored = (tuple(map(str, said.get(key, ()))) for key in ("labels", "label_names", "ignore_labels"))
    if not labels and not said.get("regression"):
        if train is None:
            raise UserError(f'{folder}: no training file to take the labels from; {DESCRIPTION} names them: "labels"')
        labels = labels_of(train, texts, label, ignored, "regression" not in said)
    if names and len(names) != len(labels):
        raise UserError(f"{where}: {len(names)} label_names for {len(labels)} labels")
    kind = CLASSIFICATION if labels else REGRESSION
    metric = said.get("metric", kind.offered[0])
    if metric not in kind.offered:
        raise UserError(f"{where}: metric is {metric!r}, expected {KEYS['metric'][0]}")
    metrics = (metric, *(other for other in kind.offered if other != metric))
    suffix = train.suffix if train else SUFFIXES[0]
    stems = ("train", "dev", "test")
    train, dev, test = ((find_file(folder, stem) or folder / f"{stem}{suffix}").name for stem in stems)
    own = {key: said[key] for key in ("epochs", "max_seq_length") if key in said}
    own |= {"train_file": train, "dev_files": (dev,), "test_files": (test,)}
    return Task(name, texts, label, labels, metrics, label_names=names, ignored_labels=ignored, kind=kind, **own)


def find_columns(said, folder, train):
    """(names of the text columns, one or two, name of the label column)."""
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
    """The content of task.json, {} without one. Raises UserError for an unknown key or an invalid value."""
    said = read_json(path) if path.is_file() else {}
    for key, value in said.items():
        if key not in KEYS:
            raise UserError(f"{path}: {key!r} is no key here; expected {', '.join(KEYS)}")
        expected, fits = KEYS[key]
        if not fits(value):
            raise UserError(f"{path}: {key} is {value!r}, expected {expected}")
    if said.get("regression") and said.get("labels"):
        raise UserError(f"{path}: labels and regression; expected one of them")
    return said


def labels_of(path, texts, label, ignored, may_be_scores):
    """The distinct labels of a training file, sorted; () if they are scores: numbers, at least one not whole."""
    task = Task("", texts, label, ignored_labels=ignored, kind=Kind())
    found = {}  # {label in lower case: its first spelling}
    for row in TaskFile(path, task):
        found.setdefault(row.label.lower(), row.label)
    labels = sorted(found.values())
    try:
        numbers = [float(value) for value in labels]
    except ValueError:
        numbers = [math.nan]
    if all(map(math.isfinite, numbers)):
        if may_be_scores and not all(number.is_integer() for number in numbers):
            return ()
        labels = [value for _, value in sorted(zip(numbers, labels, strict=True))]
    if len(labels) < 2:
        raise UserError(f"{path}: every row has the label {labels[0]!r}; expected two labels or more")
    if len(labels) > MOST_LABELS:
        raise UserError(
            f"{path}: {len(labels)} different labels in the column {label!r}; if they are right, {DESCRIPTION} lists "
            'them: "labels", or says "regression": true'
        )
    return tuple(labels)
