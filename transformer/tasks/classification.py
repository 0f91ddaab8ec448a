"""Classification: one class per text or pair of texts."""

from functools import partial

import numpy as np
import torch.nn.functional as F

from transformer import drawing
from transformer.distillation import prediction_loss
from transformer.tasks.kind import Kind


def confusion_matrix(answers, classes):
    """Counts (C, C) of predictions: a row per true class, a column per predicted class."""
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (answers.labels, answers.predictions), 1)
    return counts


def f1(predictions, gold):
    """F1 of class 1 (in the table's order) for two classes, else the mean F1 over the classes."""
    from sklearn.metrics import f1_score

    average = "binary" if max(gold.max(), predictions.max()) < 2 else "macro"
    return f1_score(gold, predictions, average=average, zero_division=0)


def matthews(predictions, gold):
    from sklearn.metrics import matthews_corrcoef

    return matthews_corrcoef(gold, predictions)


class Classification(Kind):
    """Each row has one of the task's labels; the head has one output per label."""

    metrics = {"acc": lambda predictions, gold: (predictions == gold).mean(), "f1": f1, "mcc": matthews}
    means = {"acc_and_f1": ("acc", "f1")}
    offered = ("acc", "f1", "mcc")
    prediction_loss = staticmethod(prediction_loss)

    def num_outputs(self, task):
        return len(task.labels)

    def id2label(self, task, labels):
        return {index: task.titles[task.labels.index(label)] for index, label in enumerate(labels)}

    def read_label(self, task, text):
        found = [text] if text in task.labels else [label for label in task.labels if label.lower() == text.lower()]
        if not found:
            raise ValueError(f"one of {', '.join(task.labels)}")
        return found[0]

    def target(self, label, labels):
        return labels.index(label)

    def gold_loss(self, outputs, targets):
        return F.cross_entropy(outputs.float(), targets)

    def answers(self, task, outputs, targets, labels):
        # Metrics use the table's class order; the outputs may have the teacher's.
        to_table = np.array([task.labels.index(label) for label in labels])
        return to_table[outputs.argmax(dim=1).numpy()], to_table[targets]

    def predictions(self, task, outputs, labels):
        return [labels[index] for index in outputs.argmax(dim=1).tolist()]

    def answer_tables(self, task, answers, results):
        names, tables = task.titles, []
        for number, (file, *_) in enumerate(answers["student"]):
            for model, files in answers.items():
                counts = confusion_matrix(files[number], len(names))
                rows = [[f"gold label of `{file}`", *(f"{model}: {label}" for label in names), "right"]]
                for label, row, right in zip(names, counts, counts.diagonal(), strict=True):
                    rows.append([label, *(f"{count:,}" for count in row), f"{right / max(row.sum(), 1):.1%}"])
                tables.append(rows)
        return "Answers against gold labels", tables

    def panel(self, task, title, answers):
        counts = confusion_matrix(answers, len(task.labels))
        return partial(drawing.matrix, title=title, counts=counts, names=task.titles)


CLASSIFICATION = Classification()
