"""What the suite asks of a kind of task. A new kind is a file beside this one with a subclass; nothing else knows it.

Shapes: N examples, B of a batch, C outputs of the head.
"""

import numpy as np

from transformer.data import SequencesBuilder
from transformer.modeling import TinyBertForSequenceClassification


class Kind:
    """A kind of task: how rows become sequences, the head, the losses, the metrics, predictions, what the report shows.

    `labels` in arguments are the task's labels in the order of a model's outputs (`task.label_order`). This base class
    reads rows of one text or two, and has a head that answers once a sequence.
    """

    model = TinyBertForSequenceClassification
    head = "classifier"  # start of the head's keys in a checkpoint
    metrics = {}  # {name: function of predictions and gold labels, (N,) each}
    means = {}  # {name: (metric, metric)}: the mean of two
    offered = ()  # the metrics that a task.json may name, the default first
    target_type = np.int64

    def num_outputs(self, task):
        """C, the outputs that a head for the task has."""
        raise NotImplementedError

    def id2label(self, task, labels):
        """{index: name} for config.json."""
        raise NotImplementedError

    def read_label(self, task, text):
        """The label that a file's text stands for: any. A kind raises ValueError that says what it expects instead."""
        return text

    def target(self, label, labels):
        """A label as a number to learn from."""
        raise NotImplementedError

    def encode(self, task_file, tokenizer, max_seq_length, labels, limit=None, pad=False):
        """The `Sequences` of a `task.TaskFile`, with targets where it is labelled; `pad`: every batch is padded to
        `max_seq_length`; limit: the first rows only."""
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
        """The loss of a head's outputs (B, C) on gold targets (B,): a scalar, the mean over the examples."""
        raise NotImplementedError

    def prediction_loss(self, student_outputs, teacher_outputs, temperature):
        """L_pred, the loss on the teacher's outputs, (B, C) each: a scalar, the mean over the examples."""
        raise NotImplementedError

    def answers(self, task, outputs, targets, labels):
        """(predictions, gold), (N,) each, as `score` takes them, from outputs (N, C) and targets (N,)."""
        raise NotImplementedError

    def score(self, task, predictions, gold):
        """Every metric of the task, {name: value}, the first the one that selects the best model."""
        predictions, gold = np.asarray(predictions), np.asarray(gold)
        if len(predictions) != len(gold) or not len(gold):
            raise ValueError(f"{len(predictions)} predictions for {len(gold)} labels")
        values = {name: float(self.metrics[name](predictions, gold)) for name in task.metrics if name in self.metrics}
        for name, (first, second) in self.means.items():
            if first in values and second in values:
                values[name] = (values[first] + values[second]) / 2
        return {name: values[name] for name in (task.metrics[0], *values)}

    def predictions(self, task, outputs, labels):
        """What a file of predictions says of each example, texts, from outputs (N, C)."""
        raise NotImplementedError

    def answer_tables(self, task, answers, results):
        """(heading, tables) of the report: rows of texts, the head first.

        Args: answers: {model: [`evaluation.Answers` of each dev file]}; results: {model: {metric: value}}.
        """
        raise NotImplementedError

    def panel(self, task, title, answers):
        """A panel of the report's picture (`drawing`) of one model's `evaluation.Answers`."""
        raise NotImplementedError
