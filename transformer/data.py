"""Token sequences as a few flat NumPy arrays, not as a million Python lists, and the batches made from them."""

import io
import logging
import tempfile
from array import array
from dataclasses import dataclass, replace

import numpy as np

BUCKET_BATCHES = 50  # sequences of similar length are grouped among this many batches' worth of shuffled examples


@dataclass(eq=False)
class Sequences:
    """N token sequences, and how their batches are padded. `lengths` (N,) always counts [CLS] and [SEP]."""

    ids: np.ndarray  # (total,), the sequences end to end
    offsets: np.ndarray  # (N + 1,), where each sequence starts in `ids`, and the end
    first_lengths: np.ndarray  # (N,), length of segment 0
    labels: np.ndarray | None = None  # (P,), or (P, C) where an output has several; P = N but for `answered`
    special: tuple | None = None  # the ids of [CLS] and [SEP] if `ids` lacks them (packed epochs)
    pad_token_id: int = 0
    pad_to: int | None = None  # the length of every batch, None = that of its longest sequence
    answered: np.ndarray | None = None  # (P,), for heads that answer single tokens: the positions of these
    answer_offsets: np.ndarray | None = None  # (N + 1,), where those of each sequence start in `answered`, and the end
    rows: np.ndarray | None = None  # (N,), the number of the row that a sequence is a window of; None = each is one
    states: object = None  # `TeacherStates` of these sequences, whose part each batch brings along
    source: object = None  # the rows, to read them again, or None where nobody has to

    def __post_init__(self):
        self.lengths = np.diff(self.offsets)
        if self.special is not None:
            self.lengths += 2 + (self.first_lengths < self.lengths + 2)  # [CLS] A [SEP], or [CLS] A [SEP] B [SEP]

    def __len__(self):
        return len(self.first_lengths)

    @property
    def num_outputs(self):
        """P, the number of outputs of a model for all sequences."""
        return len(self) if self.answered is None else len(self.answered)

    @property
    def num_rows(self):
        """The number of rows that the sequences come from."""
        return self.count_rows(slice(None))

    def count_rows(self, indices):
        """The number of rows that the sequences at `indices` come from."""
        return len(np.unique((np.arange(len(self)) if self.rows is None else self.rows)[indices]))

    def head(self, count):
        """The first `count` sequences, or all of them if there are fewer."""
        parts = {"offsets": self.offsets[: count + 1], "first_lengths": self.first_lengths[:count]}
        outputs = count
        if self.answered is not None:
            outputs = self.answer_offsets[: count + 1][-1]
            parts |= {"answered": self.answered[:outputs], "answer_offsets": self.answer_offsets[: count + 1]}
        parts |= {} if self.rows is None else {"rows": self.rows[:count]}
        return replace(self, labels=None if self.labels is None else self.labels[:outputs], **parts)

    def outputs_of(self, indices):
        """(which of `indices`, number of the output), (P,) each, of a model's outputs for these sequences."""
        if self.answered is None:
            return np.arange(len(indices)), np.asarray(indices)
        counts = np.diff(self.answer_offsets)[indices]
        ends = np.cumsum(counts)
        shift = np.repeat(self.answer_offsets[indices] - (ends - counts), counts)
        return np.repeat(np.arange(len(indices)), counts), np.arange(len(shift)) + shift

    def log_example(self, tokenizer, **about):
        """Log the first sequence as a model reads it, and what else is known `about` it."""
        batch = self.batch(np.array([0]))
        ids, mask = batch["input_ids"][0].tolist(), batch["attention_mask"]
        rows = {"tokens": tokenizer.convert_ids_to_tokens(ids), "input_ids": ids}
        rows |= {"input_mask": [1] * len(ids) if mask is None else mask[0].tolist()}
        rows |= {"segment_ids": batch["token_type_ids"][0].tolist()}
        for name, value in {**about, **rows}.items():
            logging.info("example, %s: %s", name, " ".join(map(str, value)) if isinstance(value, list) else value)

    def batch(self, indices):
        """A dict: input_ids, token_type_ids (B, L); attention_mask (B, L), None where nothing is padded and `pad_to` is
        None; outputs (P,), the numbers of the outputs; labels (P,) or (P, C) if the data has labels; answered (2, P) if
        single tokens are answered: the index in the batch and the position of each; the teacher's states if they are
        kept, see `TeacherStates.read`."""
        import torch  # here, because pregeneration uses this module too and starts ten times as fast without torch

        lengths = self.lengths[indices]
        positions = np.arange(self.pad_to or lengths.max())
        real = positions < lengths[:, None]  # (B, L)
        first_lengths = self.first_lengths[indices][:, None]
        second = real & (positions >= first_lengths)
        places, stored = self.offsets[indices][:, None] + positions, real
        if self.special is not None:
            edges = (positions == 0) | (positions == first_lengths - 1) | (positions == lengths[:, None] - 1)
            places, stored = places - 1 - second, real & ~edges
        input_ids = np.where(real, self.ids[np.where(stored, places, 0)], self.pad_token_id).astype(np.int64)
        if self.special is not None:
            input_ids = np.where(edges, np.where(positions == 0, *self.special), input_ids)
        masked = self.pad_to is not None or not real.all()
        which, outputs = self.outputs_of(indices)
        batch = {
            "input_ids": torch.from_numpy(input_ids),
            "token_type_ids": torch.from_numpy(second.astype(np.int64)),
            "attention_mask": torch.from_numpy(real.astype(np.int64)) if masked else None,
            "outputs": torch.from_numpy(outputs),
        }
        if self.states is not None:
            batch |= self.states.read(np.asarray(indices), len(positions))
        if self.labels is not None:
            batch["labels"] = torch.from_numpy(self.labels[outputs])
        if self.answered is not None:
            batch["answered"] = torch.from_numpy(np.stack([which, self.answered[outputs]]))
        return batch


def joined(parts):
    """Several `Sequences` of token ids of one type end to end, without labels."""

    def end_to_end(name):
        return np.concatenate([getattr(each, name) for each in parts])

    def starts(name):
        return np.concatenate([[0], np.cumsum(np.concatenate([np.diff(getattr(each, name)) for each in parts]))])

    found = {"ids": end_to_end("ids"), "first_lengths": end_to_end("first_lengths"), "offsets": starts("offsets")}
    if parts[0].answered is not None:
        before = np.cumsum([0, *(each.num_rows for each in parts[:-1])])
        found["rows"] = np.concatenate([each.rows + count for each, count in zip(parts, before, strict=True)])
        found |= {"answered": end_to_end("answered"), "answer_offsets": starts("answer_offsets")}
    return replace(parts[0], labels=None, **found)


def id_typecode(vocab_size):
    """The type of token ids in arrays and files: two bytes if the vocabulary allows, else four."""
    return "H" if vocab_size <= 1 << 16 else "I"


class SequencesBuilder:
    """Collects sequences one at a time into flat arrays, with 2 or 4 bytes per token.

    `folder`: keep the ids in a file there, so that memory does not grow with them. The file has no name, so that a
    killed run leaves nothing behind.
    """

    def __init__(self, vocab_size, folder=None, pad_token_id=0, pad_to=None):
        self.typecode = id_typecode(vocab_size)
        self.ids = io.BytesIO() if folder is None else tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self.lengths, self.first_lengths, self.labels = array("I"), array("I"), array("d")
        self.answered, self.answer_ends, self.rows = array("I"), array("Q", [0]), array("I")
        self.label_shape = ()
        self.padding = {"pad_token_id": pad_token_id, "pad_to": pad_to}

    def add(self, ids, first_length, label=None, answered=None, row=None):
        """Add a sequence. `answered`: positions of the tokens to answer, then with a list of labels; row: the number of
        the row that it is a window of."""
        self.ids.write(array(self.typecode, ids))
        self.lengths.append(len(ids))
        self.first_lengths.append(first_length)
        if answered is not None:
            self.answered.extend(answered)
            self.answer_ends.append(len(self.answered))
            self.rows.append(row)
        for each in [label] if answered is None else label or ():
            if isinstance(each, list):
                self.label_shape = (len(each),)
                self.labels.extend(each)
            elif each is not None:
                self.labels.append(each)

    def build(self, label_type=np.int64):
        offsets = np.zeros(len(self.lengths) + 1, dtype=np.int64)
        np.cumsum(self.lengths, out=offsets[1:])
        if isinstance(self.ids, io.BytesIO):
            ids = np.frombuffer(self.ids.getbuffer(), self.typecode)
        else:  # an empty file cannot be mapped
            ids = np.memmap(self.ids, self.typecode, "r") if offsets[-1] else np.array([], self.typecode)
        labels = np.array(self.labels, label_type).reshape(-1, *self.label_shape) if self.labels else None
        found = Sequences(ids, offsets, np.array(self.first_lengths, np.int64), labels, **self.padding)
        if len(self.answer_ends) > 1:
            named = {"answered": self.answered, "answer_offsets": self.answer_ends, "rows": self.rows}
            found = replace(found, **{name: np.array(values, np.int64) for name, values in named.items()})
        return found


def epoch_batches(lengths, batch_size, seed, epoch, bucketed=True):
    """The batches of one epoch: a list of index arrays in which every example occurs once.

    Examples are shuffled, sorted by length within windows of BUCKET_BATCHES batches and cut into batches, which are
    shuffled again: little is padding, yet every epoch differs. The result depends on the arguments alone, not on the
    number of processes, so that a run can continue anywhere. The short last batch is used; the reference skips it.
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
    """Batches for evaluation, the longest examples first: if memory is too small, it runs out at once."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def token_batches(lengths, tokens):
    """Batches of at most `tokens` tokens (or one example), the longest examples first: all of one length if they make a
    quarter of `tokens`, else filled up to a quarter with shorter ones."""
    order, batches, start = np.argsort(-lengths, kind="stable"), [], 0
    falling = -lengths[order]
    while start < len(order):
        longest = int(-falling[start])
        alike = int(np.searchsorted(falling, -longest, side="right")) - start
        # Padding costs time, but so does a batch that is too small for the processor.
        size = max(min(max(alike, tokens // 4 // longest), tokens // longest), 1)
        batches.append(order[start : start + size])
        start += size
    return batches
