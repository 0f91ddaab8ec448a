"""Regression: one score per text or pair of texts."""

from contextlib import suppress
from functools import partial

import numpy as np
import torch.nn.functional as F

from transformer import drawing
from transformer.tasks.kind import Kind


def pearson(predictions, gold):
    # The correlation with a constant is undefined. A model with constant answers knows nothing, so it gets 0.
    constant = np.ptp(predictions) == 0 or np.ptp(gold) == 0
    return 0.0 if constant else np.corrcoef(predictions, gold)[0, 1]


def spearman(predictions, gold):
    from scipy.stats import rankdata

    return pearson(rankdata(predictions), rankdata(gold))


class Regression(Kind):
    """Each row has a number; the head has one output."""

    metrics = {"pearson": pearson, "spearmanr": spearman}
    means = {"corr": ("pearson", "spearmanr")}
    offered = ("corr", "pearson", "spearmanr")
    problem_type = "regression"
    has_labels = False
    target_type = np.float32

    def made(self, config):
        return config.num_labels == 1

    def num_outputs(self, task):
        return 1

    def id2label(self, task, labels):
        return {0: "score"}

    def read_label(self, task, text):
        with suppress(ValueError):
            if np.isfinite(float(text)):
                return text
        raise ValueError("a number")

    def target(self, label, labels):
        return float(label)

    def gold_loss(self, outputs, targets):
        return F.mse_loss(outputs[:, 0].float(), targets)

    def prediction_loss(self, student_outputs, teacher_outputs, temperature):
        # The student learns from the teacher here too; in the reference it learns from the gold score.
        return F.mse_loss(student_outputs.float(), teacher_outputs.float())

    def answers(self, task, outputs, sequences, labels):
        return outputs[:, 0].numpy(), sequences.labels

    def predictions(self, task, outputs, sequences, labels):
        lowest, highest = task.score_range
        return [f"{value:.3f}" for value in outputs[:, 0].clamp(lowest, highest).tolist()]

    def answer_columns(self, task, labels):
        return ["score"]

    def answer_rows(self, task, outputs, sequences, labels):
        return [[text] for text in self.predictions(task, outputs, sequences, labels)]

    def row_losses(self, outputs, targets):
        return (outputs[:, 0].float() - targets) ** 2

    def answer_text(self, task, answer):
        return f"{answer:.3f}"

    def agreement(self, predictions, others):
        return "correlation with the teacher", pearson(predictions, others)

    def answer_tables(self, task, answers, results):
        metrics = results["student"]
        rows = [[model, *(f"{results[model][metric]:.4f}" for metric in metrics)] for model in answers]
        files = [each.file for each in answers["student"]]
        for row, model in zip(rows, answers.values(), strict=True):
            row += [f"{np.abs(each.predictions - each.labels).mean():.4f}" for each in model]
        errors = [f"mean absolute error, `{file}`" for file in files]
        return "Answers against gold scores", [[["correlation", *metrics, *errors], *rows]]

    def panels(self, task, answers):
        every = np.concatenate([values for each in answers.values() for values in (each.labels, each.predictions)])
        limits = every.min(), every.max()  # of all models: pictures side by side can be compared
        return [
            partial(drawing.scatter, title=title, gold=each.labels, scores=each.predictions, limits=limits)
            for title, each in answers.items()
        ]

    def linear_model(self):
        from sklearn.linear_model import Ridge

        return Ridge()


REGRESSION = Regression()
