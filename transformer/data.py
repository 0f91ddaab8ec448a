"""Token sequences as flat arrays, and the batches made from them.

A data set of a million sequences is four NumPy arrays, not a million Python lists: ids end to end, where each sequence
starts, where its second segment starts, and its label.
"""

import json
import tempfile
from array import array
from pathlib import Path

import numpy as np

from transformer.file_utils import UserError

# Sequences of similar length are looked for among this many batches' worth of shuffled examples.
BUCKET_BATCHES = 50


class Sequences:
    """N token sequences. `ids` (total,), `offsets` (N + 1,), `first_lengths` (N,): length of segment 0; `labels` (N,)
    or None."""

    def __init__(self, ids, offsets, first_lengths, labels=None):
        self.ids, self.offsets, self.first_lengths, self.labels = ids, offsets, first_lengths, labels
        self.lengths = np.diff(offsets)

    def __len__(self):
        return len(self.first_lengths)

    def head(self, count):
        """The first `count` sequences, or all if there are fewer."""
        count = min(count, len(self))
        labels = None if self.labels is None else self.labels[:count]
        return Sequences(self.ids, self.offsets[: count + 1], self.first_lengths[:count], labels)

    def batch(self, indices, pad_token_id=0, pad_to=None):
        """The model's inputs for these examples, padded to the longest of them or to `pad_to`.

        Returns a dict: input_ids, token_type_ids (B, L); attention_mask (B, L) or None where nothing is padded and no
        `pad_to` was given; rows (B,) the indices; labels (B,) where the data has labels.
        """
        import torch  # late: pregeneration uses this module too, and starts in a tenth of the time without it

        lengths = self.lengths[indices]
        positions = np.arange(pad_to or lengths.max())
        real = positions < lengths[:, None]  # (B, L)
        places = np.where(real, self.offsets[indices][:, None] + positions, 0)
        input_ids = np.where(real, self.ids[places], pad_token_id).astype(np.int64)
        second = real & (positions >= self.first_lengths[indices][:, None])
        masked = pad_to is not None or not real.all()
        return {
            "input_ids": torch.from_numpy(input_ids),
            "token_type_ids": torch.from_numpy(second.astype(np.int64)),
            "attention_mask": torch.from_numpy(real.astype(np.int64)) if masked else None,
            "rows": torch.from_numpy(np.asarray(indices)),
            **({} if self.labels is None else {"labels": torch.from_numpy(self.labels[indices])}),
        }


class IdStore:
    """Token ids that come in pieces and end as one flat array: in memory, or with `folder` in a file there that has no
    name, so that a killed run leaves nothing behind and memory does not grow with the data."""

    FLUSH = 1 << 20  # ids held back before they go to the file

    def __init__(self, typecode, folder=None):
        self.pending = array(typecode)
        self.file = None if folder is None else tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (lives as long)
        self.written = 0

    def __len__(self):
        return self.written + len(self.pending)

    def extend(self, ids):
        self.pending.extend(ids)
        if self.file is not None and len(self.pending) >= self.FLUSH:
            self._flush()

    def _flush(self):
        self.pending.tofile(self.file)
        self.written += len(self.pending)
        self.pending = array(self.pending.typecode)

    def finish(self):
        """All ids, in an array or a mapped file."""
        if self.file is None or not len(self):
            return np.frombuffer(self.pending, dtype=self.pending.typecode)
        self._flush()
        self.file.flush()
        return np.memmap(self.file, dtype=self.pending.typecode, mode="r")  # the mapping keeps the file


class SequencesBuilder:
    """Collects sequences one at a time into flat arrays: 2 or 4 bytes a token, whatever the number of sequences."""

    def __init__(self, vocab_size, folder=None):
        """`folder`: keep the ids in a file there, not in memory."""
        self.ids = IdStore("H" if vocab_size <= 1 << 16 else "I", folder)
        self.lengths, self.first_lengths, self.labels = array("I"), array("I"), array("d")

    def add(self, ids, first_length, label=None):
        self.ids.extend(ids)
        self.lengths.append(len(ids))
        self.first_lengths.append(first_length)
        if label is not None:
            self.labels.append(label)

    def build(self, label_type=np.int64):
        """The finished Sequences."""
        offsets = np.zeros(len(self.lengths) + 1, dtype=np.int64)
        np.cumsum(np.frombuffer(self.lengths, dtype=np.uint32), out=offsets[1:])
        labels = np.frombuffer(self.labels, dtype=np.float64).astype(label_type) if self.labels else None
        first_lengths = np.frombuffer(self.first_lengths, dtype=np.uint32).astype(np.int64)
        return Sequences(self.ids.finish(), offsets, first_lengths, labels)


def encode_task_file(task_file, tokenizer, max_seq_length, labels, limit=None):
    """Token ids and labels of a `glue.TaskFile`.

    Args: labels: the task's labels in the order of the model's logits (`glue.label_order`); limit: the first rows only.
    Returns Sequences; labels are class indices, scores for regression, absent where the file is not labelled.
    """
    index_of = {label: index for index, label in enumerate(labels)}
    builder = SequencesBuilder(len(tokenizer.vocab))
    for count, row in enumerate(task_file):
        if limit is not None and count == limit:
            break
        pieces = [tokenizer.ids(text) for text in row.texts]
        ids, token_types = tokenizer.encode_pair(*pieces, max_length=max_seq_length)
        label = None
        if row.label is not None:
            label = float(row.label) if task_file.task.regression else index_of[row.label]
        builder.add(ids, len(ids) - sum(token_types), label)
    return builder.build(np.float32 if task_file.task.regression else np.int64)


def read_pregenerated(path, metrics, tokenizer, max_seq_length, folder=None, limit=None):
    """Token ids of one epoch file of `pregenerate_training_data.py` (a JSON object a line).

    Raises UserError: a line that is no such object, a token outside the vocabulary, a sequence over `max_seq_length`,
    or another number of lines than `metrics` tells.
    """
    vocab = tokenizer.vocab
    builder = SequencesBuilder(len(vocab), folder)
    count = 0
    with open(path, "rb") as file:  # json.loads decodes, so that text which is not UTF-8 is an error of its line
        for count, line in enumerate(file, 1):
            if limit is not None and count > limit:
                break
            try:
                instance = json.loads(line)
                ids = [vocab[token] for token in instance["tokens"]]
                first_length = len(ids) - sum(instance["segment_ids"])
            except KeyError as error:
                raise UserError(
                    f"{path} line {count}: {error} is neither a field there nor in the vocabulary"
                ) from None
            except (ValueError, TypeError):
                raise UserError(f"{path} line {count}: expected a JSON object with tokens and segment_ids") from None
            if len(ids) > max_seq_length:
                raise UserError(f"{path} line {count}: {len(ids)} tokens, --max_seq_length is {max_seq_length}")
            builder.add(ids, first_length)
    if limit is None and count != metrics["num_training_examples"]:
        raise UserError(f"{path}: {count} lines, its metrics file tells {metrics['num_training_examples']}")
    return builder.build()


def epoch_batches(lengths, batch_size, seed, epoch, bucketed=True):
    """The batches of one epoch: a list of index arrays in which every example occurs once.

    Examples are shuffled, sorted by length inside windows of BUCKET_BATCHES batches, cut, and the batches shuffled:
    short sequences share batches and little is padding, while each epoch differs. The result depends on the arguments
    alone, never on the number of processes, so that a run can go on anywhere. Only the last batch cut is short; it is
    trained on, where the reference skips it.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    if bucketed:
        window = batch_size * BUCKET_BATCHES
        windows = [order[start : start + window] for start in range(0, len(order), window)]
        order = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in windows])
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [batches[index] for index in rng.permutation(len(batches))]


def sorted_batches(lengths, batch_size):
    """Batches for evaluation: all examples by length, the longest first, so that memory runs out at once or never."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def pregenerated_epochs(folder):
    """The complete epochs of a folder of `pregenerate_training_data.py`: [(epoch file, metrics)], by number.

    The metrics file is written last, so an epoch without one is not complete. Raises UserError when there is none.
    """
    epochs = []
    while (Path(folder) / f"epoch_{len(epochs)}_metrics.json").is_file():
        name = Path(folder) / f"epoch_{len(epochs)}"
        try:
            metrics = json.loads(Path(f"{name}_metrics.json").read_text(encoding="utf-8"))
            metrics = {key: int(metrics[key]) for key in ("num_training_examples", "max_seq_len")}
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{name}_metrics.json: expected num_training_examples and max_seq_len") from None
        if not Path(f"{name}.json").is_file():
            raise UserError(f"{name}.json: missing, though its metrics file is there")
        epochs.append((Path(f"{name}.json"), metrics))
    if not epochs:
        raise UserError(f"{folder}: no epoch_0_metrics.json; pregenerate_training_data.py makes it")
    return epochs
