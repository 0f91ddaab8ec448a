"""The interface of a kind of task. A new kind is a subclass in a file of its own; no other code names it.

Shapes: N examples, B batch, C head outputs.
"""

import numpy as np
import torch

from transformer.data import SequencesBuilder
from transformer.modeling import TinyBertForSequenceClassification


class Kind:
    """A kind of task: encoding of rows, head, losses, metrics, predictions, and its part of the report.

    `labels` in arguments are the task's labels in the order of a model's outputs (`task.label_order`). This base class
    encodes rows of one text or two, for a head with one answer per sequence.
    """

    model = TinyBertForSequenceClassification
    head = "classifier"  # prefix of the head's keys in a checkpoint
    metrics = {}  # {name: function of predictions and gold labels, (N,) each}
    means = {}  # {name: (metric, metric)}, metrics that are the mean of two others
    offered = ()  # the metrics that a task.json may name, default first
    problem_type = None  # Hugging Face's word for the kind in config.json
    target_type = np.int64
    label_types = str | int | float  # what a label may be in JSON Lines

    def num_outputs(self, task):
        """C, the number of outputs of a head for the task."""
        raise NotImplementedError

    def id2label(self, task, labels):
        """{index: name} for config.json."""
        raise NotImplementedError

    def parts(self, task, label):
        """The labels that a label in a file consists of: itself, unless a row can have several."""
        return (label,)

    def read_label(self, task, text):
        """The label for a text (or a list of texts, if that is one of `label_types`) in a file. A subclass may raise
        ValueError with a phrase that says what it expects."""
        return text

    def target(self, label, labels):
        """The numeric training target for a label: a number, or a list of C numbers."""
        raise NotImplementedError

    def encode(self, task_file, tokenizer, max_seq_length, labels, limit=None, pad=False):
        """The `Sequences` of a `task.TaskFile`, with targets if it is labelled. `pad`: pad every batch to
        `max_seq_length`; limit: maximum number of rows."""
        pad_to = max_seq_length if pad else None
        builder = SequencesBuilder(len(tokenizer.vocab), pad_token_id=tokenizer.pad_token_id, pad_to=pad_to)
        for count, row in enumerate(task_file):
            if limit is not None and count == limit:
                break
            pieces = [tokenizer.ids(text) for text in row.texts]
            ids, token_types = tokenizer.encode_pair(*pieces, max_length=max_seq_length)
            target = None if row.label is None else self.target(row.label, labels)
            builder.add(ids, len(ids) - sum(token_types), target)
        return builder.build(self.target_type)

    def gold_loss(self, outputs, targets):
        """The loss of head outputs (B, C) on gold targets (B,): a scalar, the mean over the examples."""
        raise NotImplementedError

    def row_losses(self, outputs, targets):
        """`gold_loss` of each example, (B,)."""
        return torch.stack(
            [self.gold_loss(outputs[row : row + 1], targets[row : row + 1]) for row in range(len(targets))]
        )

    def prediction_loss(self, student_outputs, teacher_outputs, temperature):
        """L_pred of student and teacher outputs, (B, C) each: a scalar, the mean over the examples."""
        raise NotImplementedError

    def tune(self, outputs, targets):
        """What a model's config.json has to know besides its weights to answer best, from outputs (N, C) and targets of
        a dev set: {key of its task: value}."""
        return {}

    def answers(self, task, outputs, targets, labels):
        """The (predictions, gold) for `score`, (N,) each, from outputs (N, C) and targets (N,)."""
        raise NotImplementedError

    def score(self, task, predictions, gold):
        """The task's metrics, {name: value}; the first one selects the best model."""
        predictions, gold = np.asarray(predictions), np.asarray(gold)
        if len(predictions) != len(gold) or not len(gold):
            raise ValueError(f"{len(predictions)} predictions for {len(gold)} labels")
        values = {name: float(self.metrics[name](predictions, gold)) for name in task.metrics if name in self.metrics}
        for name, (first, second) in self.means.items():
            if first in values and second in values:
                values[name] = (values[first] + values[second]) / 2
        return {name: values[name] for name in (task.metrics[0], *values)}

    def predictions(self, task, outputs, labels):
        """The text for each example in a prediction file, from outputs (N, C)."""
        raise NotImplementedError

    def answer_columns(self, task, labels):
        """The names of the columns of `answer_rows`."""
        raise NotImplementedError

    def answer_rows(self, task, outputs, labels):
        """Each example's answer, and how sure it is, as cells of a table, from outputs (N, C)."""
        raise NotImplementedError

    def answer_text(self, task, answer):
        """One of `answers`, predicted or gold, as a report shows it."""
        raise NotImplementedError

    def same(self, predictions, others):
        """Which answers of two models, or of a model and the gold labels, are the same: (N,)."""
        return (predictions == others).reshape(len(others), -1).all(axis=1)

    def chance(self, task, answers):
        """What the gold labels of a dev file, in an `evaluation.Answers`, tell about luck: a sentence, or ""."""
        return ""

    def agreement(self, predictions, others):
        """(title, number): how alike the answers of two models are, (N,) each."""
        return "same answer as the teacher", float(self.same(predictions, others).mean())

    def answer_tables(self, task, answers, results):
        """(heading, tables) for the report; a table is rows of text, header first.

        Args: answers: {model: [`evaluation.Answers` for each dev file]}; results: {model: {metric: value}}.
        """
        raise NotImplementedError

    def panels(self, task, answers):
        """A panel (see `drawing`) for each model, of {title: its `evaluation.Answers`}."""
        raise NotImplementedError

    def linear_model(self):
        """A new scikit-learn model of the task from a text's features, or None where an answer is not one number."""
        return None
