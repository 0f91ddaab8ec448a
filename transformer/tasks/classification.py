"""Classification: one class per text or pair of texts."""

from functools import partial
from itertools import islice

import numpy as np
import torch.nn.functional as F

from transformer import drawing
from transformer.distillation import prediction_loss
from transformer.tasks.kind import Kind

MANY, SHOWN = 20, 12  # with more classes than MANY the report has only the SHOWN or ten that are confused most


def confusion_matrix(answers, classes):
    """Counts (C, C) of predictions: a row per true class, a column per predicted class."""
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (answers.labels, answers.predictions), 1)
    return counts


def class_counts(predictions, gold):
    """(right, predicted, true): how often each class is predicted and right, predicted, and true, (C,) each."""
    classes = int(max(gold.max(), predictions.max(), 1)) + 1
    return [np.bincount(each, minlength=classes) for each in (gold[predictions == gold], predictions, gold)]


def f1(predictions, gold):
    """F1 of class 1 (in the table's order) for two classes, else the mean F1 over the classes that occur."""
    right, predicted, true = class_counts(predictions, gold)
    values = 2 * right / (predicted + true).clip(min=1)
    return values[1] if len(values) == 2 else values[predicted + true > 0].mean()


def matthews(predictions, gold):
    """Matthews's correlation, for any number of classes; 0 where it is undefined, as for constant answers."""
    right, predicted, true = (counts.astype(float) for counts in class_counts(predictions, gold))
    rows = len(gold)
    spread = (rows**2 - predicted @ predicted) * (rows**2 - true @ true)
    return (right.sum() * rows - predicted @ true) / np.sqrt(spread) if spread > 0 else 0.0


class Classification(Kind):
    """Each row has one of the task's labels; the head has one output per label."""

    metrics = {"acc": lambda predictions, gold: (predictions == gold).mean(), "f1": f1, "mcc": matthews}
    means = {"acc_and_f1": ("acc", "f1")}
    offered = ("acc", "f1", "mcc")
    problem_type = "single_label_classification"
    prediction_loss = staticmethod(prediction_loss)

    def made(self, config):
        return True  # asked last

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

    def answers(self, task, outputs, sequences, labels):
        # Metrics use the table's class order; the outputs may have the teacher's.
        to_table = np.array([task.labels.index(label) for label in labels])
        return to_table[outputs.argmax(dim=1).numpy()], to_table[sequences.labels]

    def predictions(self, task, outputs, sequences, labels):
        return [labels[index] for index in outputs.argmax(dim=1).tolist()]

    def answer_columns(self, task, labels):
        return ["label", *self.id2label(task, labels).values()]

    def answer_rows(self, task, outputs, sequences, labels):
        names = self.id2label(task, labels)
        probabilities = outputs.softmax(dim=1).tolist()
        return [[names[row.index(max(row))], *(f"{each:.4f}" for each in row)] for row in probabilities]

    def row_losses(self, outputs, targets):
        return F.cross_entropy(outputs.float(), targets, reduction="none")

    def chance(self, task, answers):
        counts = np.bincount(answers.labels, minlength=len(task.labels))
        name, share = task.titles[counts.argmax()], counts.max() / counts.sum()
        return f"{share:.1%} of the rows of {answers.file} have the commonest label, {name}."

    def answer_text(self, task, answer):
        return task.titles[answer]

    def answer_tables(self, task, answers, results):
        names, tables = task.titles, []
        if legend := [[shown, name] for shown, name in zip(shown_names(task), names, strict=True) if shown != name]:
            tables.append([["in the picture", "label"], *legend])
        for number, (file, *_) in enumerate(answers["student"]):
            for model, files in answers.items():
                counts = confusion_matrix(files[number], len(names))
                if len(names) > MANY:
                    tables.append(worst_confusions(counts, names, file, model))
                    continue
                rows = [[f"gold label of `{file}`", *(f"{model}: {label}" for label in names), "right"]]
                for label, row, right in zip(names, counts, counts.diagonal(), strict=True):
                    rows.append([label, *(f"{count:,}" for count in row), f"{right / max(row.sum(), 1):.1%}"])
                tables.append(rows)
        return "Answers against gold labels", tables

    def panels(self, task, answers):
        names = shown_names(task)
        counts = {title: confusion_matrix(each, len(names)) for title, each in answers.items()}
        if len(names) <= MANY:
            return [partial(drawing.matrix, title=title, counts=each, names=names) for title, each in counts.items()]
        # The same classes for all models, those of the student's most frequent confusions.
        pairs = confusions(next(iter(counts.values())))
        chosen = sorted(list(dict.fromkeys(index for pair in pairs for index in pair))[:SHOWN])
        panels, names = [], [names[index] for index in chosen]
        for title, each in counts.items():
            others = np.delete(each[chosen], chosen, axis=1).sum(axis=1)
            title = f"{title},\nthe {SHOWN} most confused of {len(task.labels)} labels"
            part = np.column_stack([each[np.ix_(chosen, chosen)], others])
            panels.append(partial(drawing.matrix, title=title, counts=part, names=names, others="other"))
        return panels

    def linear_model(self):
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(max_iter=1000)


def shown_names(task):
    """The labels as a picture shows them: by number where no font has their characters."""
    return [name if drawing.drawable(name) else f"#{number}" for number, name in enumerate(task.titles, 1)]


def confusions(counts):
    """Yield the (true class, other class) of a confusion matrix (C, C), the most frequent pair first."""
    for place in np.argsort(-counts, axis=None, kind="stable"):
        gold, answer = divmod(int(place), len(counts))
        if gold != answer:
            yield gold, answer


def worst_confusions(counts, names, file, model):
    """A table of the ten most frequent confusions in a confusion matrix (C, C)."""
    true = counts.sum(axis=1)
    table = [[f"gold label of `{file}`", f"{model}'s answer", "rows", "share of the label's rows"]]
    for gold, answer in islice(confusions(counts), 10):
        if count := counts[gold, answer]:
            table.append([names[gold], names[answer], f"{count:,}", f"{count / true[gold]:.1%}"])
    return table


CLASSIFICATION = Classification()
