"""User-defined tasks: a folder with train, dev and test files, described by a task.json or by the files' headers.

    my_task/train.csv  my_task/dev.csv  my_task/test.csv  my_task/task.json

The keys of task.json, all optional:

    {"text": "review",             the column with the text, or a pair: ["premise", "hypothesis"]
     "label": "stars",             the column with the label
     "labels": ["bad", "good"],    the labels in the order of the model's outputs; default: those in the training file
     "label_names": ["-", "+"],    their names in models and reports
     "ignore_labels": ["?", ""],   rows with these are left out; an empty label must be listed here or in "labels"
     "separator": ";",             a row has any number of labels, in one cell with this between; in JSON Lines a list
     "regression": false,          true: the label is a number to predict; false: its values are classes, many or few
     "metric": "f1",               selects the best model: acc, f1, acc_and_f1 (their mean), mcc; corr, pearson,
                                   spearmanr for regression; f1_micro, f1_macro, acc (all labels of a row right) for
                                   several labels; f1, exact for answer spans, whose files are SQuAD's or have
                                   question, context and answers; f1, precision, recall (of entities), acc (of tokens)
                                   for token labels
     "max_seq_length": 128, "epochs": 3,
     "doc_stride": 128, "max_query_length": 64}     of answer spans, as the flags of these names
"""

import json
import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

from transformer.checkpoint import CONFIG_NAME, label_names
from transformer.configuration import BertConfig
from transformer.files import UserError
from transformer.flags import task_key
from transformer.glue import OTHERS, TASKS
from transformer.json_file import FLAG, NUMBER, Field, check, read_json, whole
from transformer.tables import SUFFIXES, open_table
from transformer.tasks.classification import CLASSIFICATION
from transformer.tasks.kind import Kind
from transformer.tasks.multilabel import MULTILABEL
from transformer.tasks.regression import REGRESSION
from transformer.tasks.spans import SPANS
from transformer.tasks.task import Task, TaskFile
from transformer.tasks.tokens import TOKENS

DESCRIPTION = "task.json"
# Column names to look for where task.json has none, most specific first.
TEXTS = "sentence1 sentence2|text_a text_b|text1 text2|premise hypothesis|question1 question2|question sentence"
TEXT_COLUMNS = [tuple(names.split()) for names in f"{TEXTS}|question context|sentence|text|tokens".split("|")]
# A task is of the first kind that claims its files, or made its model.
KINDS = (SPANS, TOKENS, MULTILABEL, REGRESSION, CLASSIFICATION)
MOST_NUMBERS = 10  # with more whole numbers, they may be scores
FEW, MOST_SLIPS = 50, 3  # with more rows, up to that many labels of one row may be slips
MOST_LABELS = 50  # with more, it takes a word in task.json to call them classes


SEPARATOR = ";"  # between the labels in predictions, where the file has lists
NAME, LABEL = Field("a name", (str, int), 1), Field("a label", (str, int))
PAIR = Field("a column's name, or a list of two", (list,), 1, 2, of=NAME, distinct=True)
KEYS = {
    "text": PAIR._replace(kinds=(str, list), high=10_000),
    "label": Field("a column's name", low=1),
    "labels": Field("a list of different labels, two or more", (list,), 2, of=LABEL, distinct=True),
    "label_names": Field("a list of different names, one for each of labels", (list,), 2, of=NAME, distinct=True),
    "ignore_labels": Field("a list of labels", (list,), of=LABEL, distinct=True),
    "regression": FLAG,
    "separator": Field("the text between the labels of a row", low=1, high=10),
    "metric": Field("a metric's name", low=1),
    "max_seq_length": whole(3, 1 << 20),
    **dict.fromkeys(("doc_stride", "max_query_length"), whole(1, 1 << 20)),
    "epochs": Field("a number above 0", NUMBER, 1e-9, 1e9),
}


def find_task(name, folder=None, dev_fraction=None):
    """The `Task` called `name` from GLUE's table, in upper or lower case, with or without its hyphen, or else from
    `folder` (None = a folder called `name`). `dev_fraction`: the part of the training rows that stands for a missing
    dev file. Raises UserError for an unknown name, an invalid task.json, or one that does not fit the files."""
    name = str(name)
    folder = Path(folder or name)
    own = folder.name == name and ((folder / DESCRIPTION).is_file() or find_file(folder, "train"))
    by_key = {task_key(key): task for key, task in TASKS.items()}
    glue = (TASKS | OTHERS).get(name.lower()) or (not own and by_key.get(task_key(name)))
    if glue and dev_fraction:
        raise UserError(f"--dev_fraction: is for data of your own without a dev file; {glue.name} has one")
    if glue:
        return glue
    if not re.fullmatch(r"\w[\w.-]*", name) or name in ("baseline", "baseline_general"):  # folders of SST-2's report
        raise UserError(f"--task_name {name}: expected a name of letters, digits, '_', '.', '-', as a folder has it")
    train = find_file(folder, "train")
    if train is None and not (folder / DESCRIPTION).is_file():
        known = ", ".join(task.name for task in (TASKS | OTHERS).values())
        raise UserError(
            f"--task_name {name}: neither one of {known}, nor is there a {DESCRIPTION} or a training file "
            f"(train{', train'.join(SUFFIXES)}) in {folder}"
        )
    return describe_task(name, folder, train, dev_fraction)


def stored_task(folder):
    """The `Task` of a finished model by its own config.json: one of GLUE's rows, or a task without files. A classifier
    from elsewhere has one text, called text. Raises UserError for a folder without a model."""
    config = BertConfig.from_pretrained(folder)
    name, said = told_by(config.__dict__.get("task", {}), folder)
    kind = next(kind for kind in KINDS if kind.made(config))
    length = min(kind.max_seq_length, config.max_position_embeddings)
    said = {"text": kind.texts, "label": "label", "max_seq_length": length} | said
    row = (TASKS | OTHERS).get(name.lower())
    if row and row.num_labels == config.num_labels:
        return replace(row, **lengths_of(said))
    texts = (said["text"],) if isinstance(said["text"], str) else tuple(map(str, said["text"]))
    labels = tuple(label_names(config) or map(str, range(config.num_labels))) if kind.has_labels else ()
    own = {**lengths_of(said), "other_columns": {"text": "sentence", "tokens": "text"}}
    own |= {"separator": said.get("separator", SEPARATOR)} if kind.separated else {}
    return Task(name, texts, said["label"], labels, kind.offered, kind=kind, **own)


def as_trained(task, folder):
    """The task with the lengths that a finished model was trained with, where `folder` has one that tells them."""
    path = Path(folder) / CONFIG_NAME
    _, said = told_by(read_json(path).get("task", {}) if path.is_file() else {}, folder)
    lengths = lengths_of(said)
    return replace(task, **lengths | {"windows": task.windows | lengths["windows"]})


def told_by(said, folder):
    """(name, description as in a task.json) of a model's task. `said`: what its config.json tells, see `Task.card`."""
    where = f"{Path(folder) / CONFIG_NAME}: task"
    if not isinstance(said, dict):
        raise UserError(f"{where} is {said!r}, expected one object, as in {DESCRIPTION}")
    said = {key: value for key, value in said.items() if "threshold" not in key}  # those `Task.as_in` takes
    name = str(said.pop("name", Path(folder).resolve().name))
    return name, check_description(said, where)


def lengths_of(said):
    """{field of a `Task`: value} of the lengths that a task.json or a model tells."""
    windows = {key: said[key] for key in ("doc_stride", "max_query_length") if key in said}
    return {"windows": windows} | {key: said[key] for key in ("max_seq_length",) if key in said}


def find_file(folder, stem):
    """The table file with this stem, or None."""
    return next((path for suffix in SUFFIXES if (path := folder / f"{stem}{suffix}").is_file()), None)


def describe_task(name, folder, train, dev_fraction=None):
    """The `Task` of a folder: from task.json, and where that is silent from the training file."""
    where = folder / DESCRIPTION
    said = check_description(read_json(where) if where.is_file() else {}, where)
    table = open_table(train) if train else None
    claimed = next((kind for kind in KINDS if kind.claims(said, table)), None)
    texts, label = find_columns(said, folder, train, table, claimed or CLASSIFICATION)
    labels, names, ignored = (tuple(map(str, said.get(key, ()))) for key in ("labels", "label_names", "ignore_labels"))
    dev = find_file(folder, "dev")
    if dev and dev_fraction:
        raise UserError(f"--dev_fraction: stands for a missing dev file, but there is {dev}")
    own = {key: said[key] for key in ("epochs",) if key in said} | lengths_of(said) | {"dev_fraction": dev_fraction}
    if claimed:
        own = {"max_seq_length": claimed.max_seq_length} | own
    own |= {"separator": said.get("separator", SEPARATOR)} if claimed and claimed.separated else {}
    if not labels and not said.get("regression") and not (claimed and not claimed.has_labels):
        if train is None:
            raise UserError(f'{folder}: no training file to take the labels from; {DESCRIPTION} names them: "labels"')
        reading = {"ignored_labels": ignored, "kind": claimed or Kind()}
        reading = Task("", texts, label, (), separator=own.get("separator"), **reading)
        # Several numbers in a row are classes, many or few.
        regression = False if claimed else said.get("regression")
        labels, own["rows"], own["warnings"] = labels_of(train, reading, regression)
    if names and len(names) != len(labels):
        raise UserError(f"{where}: {len(names)} label_names for {len(labels)} labels")
    kind = claimed or (CLASSIFICATION if labels else REGRESSION)
    metric = said.get("metric", kind.offered[0])
    if metric not in kind.offered:
        raise UserError(f"{where}: metric is {metric!r}, expected one of {', '.join(kind.offered)}")
    metrics = (metric, *(other for other in kind.offered if other != metric))
    suffix = train.suffix if train else SUFFIXES[0]
    stems = ("train", "dev", "test")
    train, dev, test = ((find_file(folder, stem) or folder / f"{stem}{suffix}").name for stem in stems)
    own |= {"train_file": train, "dev_files": (dev,), "test_files": (test,)}
    return Task(name, texts, label, labels, metrics, label_names=names, ignored_labels=ignored, kind=kind, **own)


def find_columns(said, folder, train, table, kind):
    """(names of the text columns, one or two, name of the label column), as the training file spells them. `table`:
    what is in it, or None without one."""
    texts, label = said.get("text"), said.get("label")
    texts = (texts,) if isinstance(texts, str) else texts and tuple(map(str, texts))
    for key, name in [*(("text", name) for name in texts or ()), ("label", label)] if table else ():
        if name and table.find(name) is None:
            where = folder / DESCRIPTION
            raise UserError(f"{where}: {key} is {name!r}, {train.name} has no such column; {table.told}")
    if table:
        texts, label = texts and tuple(map(table.find, texts)), table.find(label)
    if table and texts is None:
        usual = [kind.texts, *TEXT_COLUMNS] if kind.per_token else TEXT_COLUMNS
        texts = next((found for names in usual if all(found := tuple(map(table.find, names)))), None)
    if table and label is None:
        label = table.find(*kind.label_columns)
    usual = {"text": "sentence, sentence1 and sentence2, text", "label": "label"}
    if lacking := [key for key, value in (("text", texts), ("label", label)) if value is None]:
        columns = " and ".join(f"no column for the {key} ({usual[key]})" for key in lacking)
        wanted = [f'"{key}": "..."' for key in lacking]
        wanted += [] if train or said.keys() & {"labels", "regression"} else ['"labels": ["...", "..."]']
        keys = f"{folder / DESCRIPTION} names {'them' if wanted[1:] else 'it'}: {{{', '.join(wanted)}}}"
        if not table:
            raise UserError(f"{folder}: no training file, {columns}; {keys}")
        if table.misnamed:
            raise UserError(f"{train} line 1: {table.misnamed}")
        advice = ""
        if table.header and lacking[1:]:
            header = table.line(["text", "label"]).replace("\t", "<TAB>")
            advice = f"; if line 1 is no header, put one above it: {header}"
        raise UserError(f"{train} line 1: {columns}; {table.told}; {keys}{advice}")
    return texts, label


def check_description(said, path):
    """The content of a task.json. Raises UserError for an unknown key or an invalid value. `path`: where it stands."""
    if unknown := [key for key in said if key not in KEYS]:
        raise UserError(f"{path}: {unknown[0]!r} is no key here; expected {', '.join(KEYS)}")
    check(said, KEYS | ({"text": PAIR} if isinstance(said.get("text"), list) else {}), path)
    if said.get("regression") and (other := next((key for key in ("labels", "separator") if said.get(key)), None)):
        raise UserError(f"{path}: {other} and regression; expected one of them")
    return said


def labels_of(path, task, regression):
    """(labels, number of rows, warnings) of a training file: the distinct labels, sorted; () if they are scores, that
    is, numbers of which one is not whole. `task`: columns and kind; regression: as in task.json, None = not said."""
    first, lines, counts, rows = {}, {}, Counter(), 0  # {label in lower case: its first spelling}, {label: first line}
    for row in TaskFile(path, task):
        for part in task.kind.parts(task, row.label):
            lines.setdefault(first.setdefault(part.lower(), part), row.line)
            counts[first[part.lower()]] += 1
        rows += 1
        if isinstance(row.label, str) and not task.separator and not row.label.strip():
            shown = json.dumps([row.label])
            remedy = f'{DESCRIPTION} leaves such rows out: "ignore_labels": {shown}, or has it in "labels"'
            raise UserError(f"{path} line {row.line}: the label is empty; {remedy}")
    words, warnings = sorted(each for each in lines if not is_number(each)), []
    numbers = sorted(lines.keys() - set(words), key=lambda each: (float(each), each))
    if not words and regression is None and not all(float(each).is_integer() for each in numbers):
        return (), rows, ()
    labels = sorted(lines) if words else numbers
    if len(labels) < 2:
        told = f"label {labels[0]!r}{' or none' * bool(task.separator)}" if labels else "empty label"
        raise UserError(f"{path}: every row has the {told}; expected two labels or more")
    if numbers and len(words) == 1:
        remedy = f'{DESCRIPTION} leaves it out: "ignore_labels": {json.dumps(words)}'
        told = f"the label {words[0]!r} is a word among numbers, so all are read as classes; {remedy}"
        warnings.append(f"{path} line {lines[words[0]]}: {told}")
    slips = {each: "begins or ends with a space" for each in lines if each != each.strip()}
    single = [each for each, count in counts.items() if count == 1 and rows >= FEW]
    slips |= dict.fromkeys(single if len(single) <= MOST_SLIPS else (), "has one row")
    for each, why in slips.items():
        warnings.append(f"{path} line {lines[each]}: the label {each!r} {why}; is it a label?")
    told = f"{path}: {len(labels)} different labels in the column {task.label_column!r}: {', '.join(labels[:3])}, ..."
    remedy = f'"regression": false in {DESCRIPTION} says that they are classes'
    remedy += "" if words else ", true that they are scores"
    if len(labels) > MOST_LABELS and regression is None:
        raise UserError("; ".join([told, *warnings, remedy]))
    if len(numbers) > MOST_NUMBERS and not words and regression is None:
        warnings.append(f"{told}; they are read as classes; {remedy}")
    return tuple(labels), rows, tuple(warnings)


def is_number(text):
    """Whether a text is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
