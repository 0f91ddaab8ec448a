"""The interface of a kind of task. A new kind is a subclass in a file of its own; no other code names it.

Shapes: N examples, B batch, C head outputs, P answers: N or B, but where a head answers single tokens.
"""

import re
from dataclasses import replace

import numpy as np
import torch

from transformer.data import SequencesBuilder
from transformer.files import UserError
from transformer.modeling import TinyBertForSequenceClassification
from transformer.tokenization import CJK

# The spaces to remove: between Chinese characters or punctuation. Next to these, quotes and dashes count as well.
_SOLID, _DASHES = CJK + "\u3000-\u30ff\uff01-\uff65", "\u2010-\u2027"
UNSPACED = re.compile(f"(?<=[{_SOLID}]) (?=[{_SOLID}{_DASHES}])|(?<=[{_DASHES}]) (?=[{_SOLID}])")

# Column names of labels to look for where a task.json has none, most specific first.
LABEL_COLUMNS = ("label", "labels", "gold_label", "score", "tags", "ner_tags", "answers")


class Kind:
    """A kind of task: encoding of rows, head, losses, metrics, predictions, and its part of the report.

    `labels` in arguments are the task's labels in the order of a model's outputs (`task.label_order`). This base class
    encodes rows of one text or two, for a head with one answer per sequence. A kind whose head answers single tokens
    tells in `add_row` which; its losses then get `examples`, (P,), the number of each output's example.
    """

    model = TinyBertForSequenceClassification
    metrics = {}  # {name: function of predictions and gold labels, (N,) each}
    means = {}  # {name: (metric, metric)}, metrics that are the mean of two others
    offered = ()  # the metrics that a task.json may name, default first
    problem_type = None  # Hugging Face's word for the kind in config.json
    target_type = np.int64
    text_types = str  # what a text may be in JSON Lines
    label_types = str | int | float  # likewise a label
    separated = False  # whether a row can have several labels, with `Task.separator` between
    per_token = False  # whether the head answers single tokens
    has_labels = True  # whether its answers are labels or numbers, which describe the task
    untold = ""  # what to warn of where a model's config.json tells nothing of its task
    by_id = False  # whether answers stand beside the ids of their rows, where a file has such
    texts = ("text",)  # the columns of a model's texts, where nothing tells them
    label_columns = LABEL_COLUMNS
    telling = slice(None)  # the texts whose equality makes rows alike: --dev_fraction keeps such rows together
    max_seq_length, shortest = 128, 2  # the usual length in tokens, and the least
    lengths = ("max_seq_length",)  # the flags that tell how long its sequences are, and their windows
    suffix, submission = ".tsv", None  # of prediction files: the suffix, and the stem, None = the task's name
    augmented = {}  # {suffix of a training file: that of its augmented file, where it is another}

    @property
    def head(self):
        """The prefix of the head's keys in a checkpoint."""
        return self.model.head

    def claims(self, said, table):
        """Whether a task with this task.json and training file (a `tables.Table` or None) is of this kind."""
        return False

    def made(self, config):
        """Whether a model with this `BertConfig` is of this kind."""
        return self.model.architecture in (config.__dict__.get("architectures") or ())

    def known(self, rows):
        """With --augment_entities what `replaceable` may take from all rows of the training file: {label: texts}."""
        return {}

    def replaceable(self, row, column, words, candidates, split, known):
        """What augmentation may change in one of a row's texts: (its parts, {index of a part: its substitutes}).

        Args: column: which of the texts; words, candidates: the tokenizer's words of it and {index: substitutes};
        split(text): the words of any text; known: from the method of that name.
        """
        return words, candidates

    def join(self, parts):
        """A text from the parts that `replaceable` gave, or from their substitutes."""
        text = " ".join(parts)
        return text if text.isascii() else UNSPACED.sub("", text)

    def variant(self, row, column, key, before, parts):
        """A row's columns with new `parts` for one of its texts, whose parts were `before`. `key`: its column."""
        columns = row.columns.copy()
        columns[key] = self.join(parts)
        return columns

    def num_outputs(self, task):
        """C, the number of outputs of a head for the task."""
        raise NotImplementedError

    def id2label(self, task, labels):
        """{index: name} for config.json."""
        raise NotImplementedError

    def parts(self, task, label):
        """The labels that a label in a file consists of: itself, unless a row can have several."""
        return (label,)

    def read_text(self, value):
        """The text for a value, of `text_types`, in a file. May raise ValueError with a phrase that says what it
        expects."""
        return value

    def read_line(self, text):
        """The text for a line of a file with a text a line."""
        return text

    def check_row(self, texts, label):
        """Raise ValueError, with a phrase that says what it expects, for a label that cannot be that of the texts."""

    def read_label(self, task, text):
        """The label for a text (or a list of texts, if that is one of `label_types`) in a file. A subclass may raise
        ValueError with a phrase that says what it expects."""
        return text

    def target(self, label, labels):
        """The numeric training target for a label: a number, or a list of C numbers."""
        raise NotImplementedError

    def encode(self, task_file, tokenizer, lengths, labels, limit=None, pad=False):
        """The `Sequences` of a `task.TaskFile`, with targets if it is labelled. `pad`: pad every batch to
        `lengths.max_seq_length`; limit: maximum number of rows."""
        if lengths.max_seq_length < self.shortest:
            raise UserError(f"--max_seq_length {lengths.max_seq_length}: expected {self.shortest} or more")
        pad_to = lengths.max_seq_length if pad else None
        builder = SequencesBuilder(len(tokenizer.vocab), pad_token_id=tokenizer.pad_token_id, pad_to=pad_to)
        for number, row in enumerate(task_file):
            if number == limit:
                break
            self.add_row(builder, number, row, tokenizer, lengths, labels)
        return replace(builder.build(self.target_type), source=task_file)

    def add_row(self, builder, number, row, tokenizer, lengths, labels):
        """Add a row's sequence, or the windows over it, to a `SequencesBuilder`."""
        pieces = [tokenizer.ids(text) for text in row.texts]
        ids, token_types = tokenizer.encode_pair(*pieces, max_length=lengths.max_seq_length)
        target = None if row.label is None else self.target(row.label, labels)
        builder.add(ids, len(ids) - sum(token_types), target)

    def gold_loss(self, outputs, targets, **examples):
        """The loss of head outputs (P, C) on gold targets (P,): a scalar, the mean over the examples. A kind has a
        definition of its own of this or of `row_losses`."""
        return self.row_losses(outputs, targets, **examples).mean()

    def row_losses(self, outputs, targets):
        """`gold_loss` of each example, (N,)."""
        pairs = zip(outputs.split(1), targets.split(1), strict=True)
        return torch.stack([self.gold_loss(*each) for each in pairs])

    def prediction_loss(self, student_outputs, teacher_outputs, temperature):
        """L_pred of student and teacher outputs, (P, C) each: a scalar, the mean over the examples."""
        raise NotImplementedError

    def tune(self, outputs, sequences):
        """What a model's config.json has to know besides its weights to answer best, from outputs (P, C) for a dev set:
        {key of its task: value}."""
        return {}

    def answers(self, task, outputs, sequences, labels):
        """The (predictions, gold) for `score`, one of each for a row, from outputs (P, C)."""
        raise NotImplementedError

    def score(self, task, predictions, gold):
        """The task's metrics, {name: value}; the first one selects the best model."""
        if len(predictions) != len(gold) or not len(gold):
            raise ValueError(f"{len(predictions)} predictions for {len(gold)} labels")
        return self.metrics_of(task, *self.evidence(task, predictions, gold))

    def evidence(self, task, predictions, gold):
        """What `metrics_of` computes the metrics from: arrays with an entry for each row, so that those of resampled
        rows cost little."""
        return np.asarray(predictions), np.asarray(gold)

    def metrics_of(self, task, predictions, gold):
        """`score`, from `evidence`."""
        values = {name: float(self.metrics[name](predictions, gold)) for name in task.metrics if name in self.metrics}
        for name, (first, second) in self.means.items():
            if first in values and second in values:
                values[name] = (values[first] + values[second]) / 2
        return {name: values[name] for name in (task.metrics[0], *values)}

    def predictions(self, task, outputs, sequences, labels):
        """The text for each row in a prediction file, from outputs (P, C)."""
        raise NotImplementedError

    def prediction_file(self, predictions, rows):
        """Yield the parts of a prediction file, from `predictions` and the rows of the file."""
        yield "index\tprediction\n"
        yield from (f"{index}\t{prediction}\n" for index, prediction in enumerate(predictions))

    def answer_columns(self, task, labels):
        """The names of the columns of `answer_rows`."""
        raise NotImplementedError

    def answer_rows(self, task, outputs, sequences, labels):
        """Each row's answer, and how sure it is, as cells of a table, from outputs (P, C)."""
        raise NotImplementedError

    def answer_text(self, task, answer):
        """One of `answers`, predicted or gold, as a report shows it."""
        raise NotImplementedError

    def same(self, predictions, others):
        """Which answers of two models, or of a model and the gold labels, are the same: (N,)."""
        return (predictions == others).reshape(len(others), -1).all(axis=1)

    def different(self, answers):
        """How many different answers there are among `answers` or gold labels."""
        return len(np.unique(answers, axis=0))

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
