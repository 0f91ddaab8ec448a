"""Classification with several labels: any number of classes per text or pair of texts."""

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from transformer import drawing
from transformer.tasks.classification import MANY, Classification, shown_names
from transformer.tasks.kind import LABEL_COLUMNS, Kind

WORST, DRAWN = 10, 6  # with more classes than MANY, the classes in the report's table; the most in a picture


def f1(predictions, gold, axis=None):
    """F1 over all pairs of a row and a class, or with `axis` 0 of each class, (C,); 0 where nothing is set or true."""
    both, right = predictions.sum(axis) + gold.sum(axis), (predictions & gold).sum(axis)
    return 2 * right / both.clip(min=1)


def best_threshold(probabilities, gold):
    """The threshold with the best F1 for one class, from probabilities (N,) in double precision and gold labels (N,);
    of several the one nearest to 0.5, and 0.5 where no row has the class."""
    if not gold.any():
        return 0.5
    order = np.argsort(-probabilities, kind="stable")
    lowest = probabilities[order]  # of those that a threshold lets through, when it lets through 1, 2, ..., N
    below = np.append(lowest[1:], 0.0)
    scores = 2 * np.cumsum(gold[order]) / (np.arange(1, len(gold) + 1) + gold.sum())
    scores[:-1][lowest[:-1] == below[:-1]] = -1  # no threshold divides equal probabilities
    middle = (lowest + below) / 2
    best = np.where(middle > below, middle, lowest)[scores == scores.max()]  # neighbouring doubles have no middle
    return float(best[np.abs(best - 0.5).argmin()])


class MultiLabel(Classification):
    """Each row has any number of the task's labels; the head has one output per label, a probability of its own.

    In a file they stand in one cell with `task.separator` between, or in JSON Lines in a list. A model's thresholds,
    one per output, are in `task.thresholds`; without them they are 0.5. Answers and gold labels: (N, C) booleans.
    """

    metrics = {
        "f1_micro": f1,
        "f1_macro": lambda predictions, gold: f1(predictions, gold, axis=0).mean(),
        "acc": lambda predictions, gold: (predictions == gold).all(axis=1).mean(),
    }
    means = {}
    offered = ("f1_micro", "f1_macro", "acc")
    problem_type = "multi_label_classification"
    separated = True
    target_type = np.float32
    label_types = str | int | float | list
    gold_loss = Kind.gold_loss

    def claims(self, said, table):
        first = table.first if table else None
        label = first.get(table.find(said.get("label"), *LABEL_COLUMNS)) if isinstance(first, dict) else None
        return "separator" in said or isinstance(label, list)

    def made(self, config):
        return config.__dict__.get("problem_type") == self.problem_type

    def parts(self, task, label):
        found = label.split(task.separator) if isinstance(label, str) else label
        return tuple(dict.fromkeys(part for each in found if (part := each.strip())))

    def linear_model(self):
        return None  # the first try of a report has one answer a text

    def read_label(self, task, label):
        found = []
        for part in self.parts(task, label):
            try:
                found.append(super().read_label(task, part) if task.labels else part)
            except ValueError as error:
                told = f"labels with {task.separator!r} between, or a list of them in JSON"
                raise ValueError(f"{told}, each {error}; found {part!r}") from None
        return tuple(dict.fromkeys(found))

    def target(self, label, labels):
        return [float(each in label) for each in labels]

    def row_losses(self, outputs, targets):
        return F.binary_cross_entropy_with_logits(outputs.float(), targets, reduction="none").mean(dim=1)

    def prediction_loss(self, student_outputs, teacher_outputs, temperature):
        # Equation 10 for classes that do not exclude each other: both models' logits are softened, as there.
        return self.gold_loss(student_outputs / temperature, torch.sigmoid(teacher_outputs.float() / temperature))

    def tune(self, outputs, sequences):
        columns = zip(probabilities_of(outputs).T, sequences.labels.T > 0, strict=True)
        return {"thresholds": [best_threshold(*each) for each in columns]}

    def chosen(self, task, outputs):
        """Which classes the outputs (N, C) set, as booleans (N, C) in the outputs' order."""
        return probabilities_of(outputs) >= np.array(task.thresholds or 0.5)

    def answers(self, task, outputs, sequences, labels):
        to_table = [labels.index(label) for label in task.labels]
        return self.chosen(task, outputs)[:, to_table], sequences.labels[:, to_table] > 0

    def predictions(self, task, outputs, sequences, labels):
        return [self.joined(task, labels, row) for row in self.chosen(task, outputs)]

    def answer_rows(self, task, outputs, sequences, labels):
        names, chosen = self.id2label(task, labels).values(), self.chosen(task, outputs)
        rows = zip(chosen, probabilities_of(outputs), strict=True)
        return [[self.joined(task, names, row), *(f"{each:.4f}" for each in values)] for row, values in rows]

    def joined(self, task, names, chosen):
        """The names of the chosen classes, (C,) booleans, as a cell."""
        return task.separator.join(name for name, each in zip(names, chosen, strict=True) if each)

    def chance(self, task, answers):
        some = answers.labels.any(axis=1).mean()
        return f"{answers.labels.sum(axis=1).mean():.2f} labels a row, {1 - some:.1%} of the rows without any."

    def answer_text(self, task, answer):
        return self.joined(task, task.titles, answer)

    def answer_tables(self, task, answers, results):
        tables = []
        for number, (file, found, gold, *_) in enumerate(answers["student"]):
            wrong = (found != gold).sum(axis=0)
            shown = np.arange(len(wrong)) if len(wrong) <= MANY else np.argsort(-wrong, kind="stable")[:WORST]
            scores = [f1(files[number].predictions, gold, axis=0) for files in answers.values()]
            rows = [[f"label in `{file}`", "rows", "student sets it", *(f"F1, {model}" for model in answers)]]
            for each in shown:
                counts = f"{gold[:, each].sum():,}", f"{found[:, each].sum():,}"
                rows.append([task.titles[each], *counts, *(f"{score[each]:.4f}" for score in scores)])
            tables.append(rows)
        return f"Answers label by label{', the worst ones' * (len(task.labels) > MANY)}", tables

    def panels(self, task, answers):
        panels, names = [], shown_names(task)
        for title, each in answers.items():
            most = np.sort(np.argsort(-each.labels.sum(axis=0), kind="stable")[:DRAWN])
            scores = f1(each.predictions, each.labels, axis=0)
            groups = {names[label]: {f"F1 of the {len(most)} commonest labels": scores[label]} for label in most}
            panels.append(partial(drawing.bars, title=title, groups=groups))
        return panels


def probabilities_of(outputs):
    """Probabilities (N, C) in double precision, so that they differ wherever the outputs do."""
    return outputs.double().sigmoid().numpy()


MULTILABEL = MultiLabel()
