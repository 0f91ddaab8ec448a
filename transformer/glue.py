"""The tasks of GLUE in one table, and SQuAD's two.

A row names the columns with text and label, the labels in logit order, the metrics (the first selects the best model),
and the reference's sequence length, epochs of the intermediate step and tries of augmentation. The file layout is that
of the official archives. User-defined tasks (`own_tasks`) are rows of the same kind.
"""

from dataclasses import replace

from transformer.tasks.regression import REGRESSION
from transformer.tasks.spans import SPANS
from transformer.tasks.task import Row, Task, TaskFile, label_order

__all__ = ["OTHERS", "TASKS", "Row", "Task", "TaskFile", "compute_metrics", "label_order", "names_other_task"]

SENTENCE, SENTENCES, QUESTIONS = ("sentence",), ("sentence1", "sentence2"), ("question1", "question2")
ENTAILMENT = ("entailment", "not_entailment")
MNLI_LABELS = ("contradiction", "entailment", "neutral")
ACCEPTABLE = ("unacceptable", "acceptable")
EQUIVALENT = ("not_equivalent", "equivalent")
ALIKE = ("not_duplicate", "duplicate")
ACC_F1 = ("acc", "f1")
COLUMNS = ("source", "label", "mark", "sentence")  # CoLA's train and dev files have no header
MNLI_DEV = ("dev_matched.tsv", "dev_mismatched.tsv")
MNLI_TEST = ("test_matched.tsv", "test_mismatched.tsv")
AX_COLUMNS = {"sentence1": "Premise", "sentence2": "Hypothesis", "label": "Label"}
AX_FILES = {"dev_files": ("diagnostic-full.tsv",), "test_files": ("AX.tsv",), "other_columns": AX_COLUMNS}
AX_FILES |= {"published": {"diagnostic-full.tsv": "https://gluebenchmark.com/diagnostics"}}
MISMATCHED = {"source": "MNLI", "dev_files": MNLI_DEV[1:], "test_files": MNLI_TEST[1:]}

GLUE = (
    Task("CoLA", SENTENCE, metrics=("mcc",), epochs=50, max_seq_length=64, label_names=ACCEPTABLE, columns=COLUMNS),
    Task("SST-2", SENTENCE, tries=20, epochs=10, max_seq_length=64, label_names=("negative", "positive")),
    Task("MRPC", ("#1 String", "#2 String"), "Quality", metrics=ACC_F1, epochs=20, label_names=EQUIVALENT),
    # The GLUE site accepts scores from 0 to 5 only.
    Task("STS-B", SENTENCES, "score", (), REGRESSION.offered, epochs=20, kind=REGRESSION, score_range=(0, 5)),
    # Some rows of the official QQP files are short; they are skipped and counted.
    Task("QQP", QUESTIONS, "is_duplicate", metrics=ACC_F1, tries=10, epochs=5, label_names=ALIKE, skip_short_rows=True),
    # Matched and mismatched are two dev sets; the first one selects the model.
    Task("MNLI", SENTENCES, "gold_label", MNLI_LABELS, tries=10, epochs=5, dev_files=MNLI_DEV, test_files=MNLI_TEST),
    # Its second dev and test sets alone. The reference has the name too.
    Task("MNLI-mm", SENTENCES, "gold_label", MNLI_LABELS, trained_as="MNLI", **MISMATCHED),
    Task("QNLI", ("question", "sentence"), labels=ENTAILMENT, tries=20, epochs=10),
    Task("RTE", SENTENCES, labels=ENTAILMENT, epochs=20),
    Task("WNLI", SENTENCES, epochs=20, label_names=("not_entailment", "entailment")),
    # The diagnostic set, for MNLI's models. Its labels are published in a separate file with other column names.
    Task("AX", SENTENCES, labels=MNLI_LABELS, metrics=("mcc",), trained_as="MNLI", **AX_FILES),
)


def squad(name, version):
    """The row of a version of SQuAD. Its test set is not published, so predictions are those for dev."""
    train, dev = f"train-{version}.json", (f"dev-{version}.json",)
    own = {"train_file": train, "dev_files": dev, "test_files": dev, "source": name, "max_seq_length": 384}
    return Task(name, SPANS.texts, "answers", (), SPANS.offered, kind=SPANS, **own)


OTHERS = {"squad": squad("SQuAD", "v1.1"), "squad2": squad("SQuAD2", "v2.0")}
TASKS = {task.name.lower(): replace(task, source=task.source or task.name) for task in GLUE}


def names_other_task(task, names):
    """Whether a model's class names fit another task of the table but not this one."""

    def same(other):
        known = (other.labels if other.labels != ("0", "1") else (), other.label_names)
        return any(each and {*map(str.lower, names)} == {*map(str.lower, each)} for each in known)

    return bool(names) and not same(task) and any(same(other) for other in TASKS.values())


def compute_metrics(task, predictions, labels):
    """The task's metrics, {name: value}; the first one selects the best model."""
    return task.kind.score(task, predictions, labels)
