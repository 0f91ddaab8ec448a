"""Token sequences as flat arrays, and the batches made from them.

A data set of a million sequences is four NumPy arrays, not a million Python lists: ids end to end, where each sequence
starts, where its second segment starts, and its label.
"""

import contextlib
import hashlib
import io
import json
import os
import tempfile
from array import array
from pathlib import Path

import numpy as np

from transformer.files import UserError, append_to, atomic_write, read_json, wait_for_lock, write_json

# Sequences of similar length are looked for among this many batches' worth of shuffled examples.
BUCKET_BATCHES = 50


class Sequences:
    """N token sequences. `ids` (total,), `offsets` (N + 1,), `first_lengths` (N,): length of segment 0; `labels` (N,)
    or None. `special`: the ids of [CLS] and [SEP] where `ids` lacks them (packed epochs); `lengths` counts them."""

    def __init__(self, ids, offsets, first_lengths, labels=None, special=None):
        self.ids, self.offsets, self.first_lengths, self.labels = ids, offsets, first_lengths, labels
        self.special, self.lengths = special, np.diff(offsets)
        if special is not None:
            self.lengths += 2 + (self.first_lengths < self.lengths + 2)  # [CLS] A [SEP], or [CLS] A [SEP] B [SEP]

    def __len__(self):
        return len(self.first_lengths)

    def head(self, count):
        """The first `count` sequences, or all if there are fewer."""
        count = min(count, len(self))
        labels = None if self.labels is None else self.labels[:count]
        return Sequences(self.ids, self.offsets[: count + 1], self.first_lengths[:count], labels, self.special)

    def batch(self, indices, pad_token_id=0, pad_to=None):
        """The model's inputs for these examples, padded to the longest of them or to `pad_to`.

        Returns a dict: input_ids, token_type_ids (B, L); attention_mask (B, L) or None where nothing is padded and no
        `pad_to` was given; rows (B,) the indices; labels (B,) where the data has labels.
        """
        import torch  # late: pregeneration uses this module too, and starts in a tenth of the time without it

        lengths = self.lengths[indices]
        positions = np.arange(pad_to or lengths.max())
        real = positions < lengths[:, None]  # (B, L)
        first_lengths = self.first_lengths[indices][:, None]
        second = real & (positions >= first_lengths)
        places = self.offsets[indices][:, None] + positions
        edges = False
        if self.special is not None:
            places -= 1 + second
            edges = (positions == 0) | (positions == first_lengths - 1) | (positions == lengths[:, None] - 1)
        input_ids = np.where(real, self.ids[np.where(real & ~np.asarray(edges), places, 0)], pad_token_id)
        input_ids = input_ids.astype(np.int64)
        if self.special is not None:
            input_ids = np.where(edges, np.where(positions == 0, *self.special), input_ids)
        masked = pad_to is not None or not real.all()
        return {
            "input_ids": torch.from_numpy(input_ids),
            "token_type_ids": torch.from_numpy(second.astype(np.int64)),
            "attention_mask": torch.from_numpy(real.astype(np.int64)) if masked else None,
            "rows": torch.from_numpy(np.asarray(indices)),
            **({} if self.labels is None else {"labels": torch.from_numpy(self.labels[indices])}),
        }


def id_typecode(vocab_size):
    """The type of token ids in arrays and files: two bytes where the vocabulary allows, else four."""
    return "H" if vocab_size <= 1 << 16 else "I"


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
        self.ids = IdStore(id_typecode(vocab_size), folder)
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


# --- the epochs that pregenerate_training_data.py writes


def vocabulary_digest(tokenizer):
    """What tells one vocabulary from another: packed ids mean nothing under a different one."""
    return hashlib.sha256("\n".join(tokenizer.ids_to_tokens).encode()).hexdigest()[:16]


def packed_dtypes(typecode, masked):
    """The files of a packed epoch, {end of the name: dtype of its one-dimensional array}.

    _ids: the ids of all sequences end to end, without [CLS] and [SEP]; _sequences: a row a sequence, its lengths with
    them; _masked (where there is masking): positions and original ids of the masked tokens, `num_masked` a sequence.
    """
    ids = np.dtype(typecode).newbyteorder("<")
    row = [("length", "<u2"), ("first_length", "<u2"), ("is_random_next", "?")]
    if not masked:
        return {"_ids.npy": ids, "_sequences.npy": np.dtype(row)}
    return {
        "_ids.npy": ids,
        "_sequences.npy": np.dtype([*row, ("num_masked", "<u2")]),
        "_masked.npy": np.dtype([("position", "<u2"), ("id", ids)]),
    }


class EpochFiles:
    """Writes the files of an epoch side by side; they get their names when all is written.

    Args: name: folder and start of the names; dtypes: {end of the name: dtype of a .npy file's array, None for text};
    sizes: what of each file a killed run had safely written, None = nothing. `fresh` tells that they start anew.
    """

    def __init__(self, name, dtypes, sizes=None):
        self.paths, self.dtypes = [Path(f"{name}{end}") for end in dtypes], list(dtypes.values())
        self.parts = [path.with_name(f"{path.name}.part") for path in self.paths]
        for path, part in zip(self.paths, self.parts, strict=True):
            if sizes and path.exists() and not part.exists():
                os.replace(path, part)  # it was killed while they got their names
        self.fresh = not sizes or any(
            not part.exists() or part.stat().st_size < size for part, size in zip(self.parts, sizes, strict=True)
        )
        starts = [len(npy_header(dtype, 0)) for dtype in self.dtypes] if self.fresh else sizes
        self.files = [append_to(part, size) for part, size in zip(self.parts, starts, strict=True)]

    def __enter__(self):
        return self

    def write(self, parts):
        """Append bytes to each file."""
        for file, part in zip(self.files, parts, strict=True):
            file.write(part)

    def sizes(self):
        return [file.tell() for file in self.files]

    def __exit__(self, kind, *_):
        for file, dtype in zip(self.files, self.dtypes, strict=True):
            with file:
                if kind is None:
                    size = file.tell() - len(npy_header(dtype, 0))
                    file.seek(0)
                    file.write(npy_header(dtype, size // dtype.itemsize if dtype else 0))
                file.flush()
                os.fsync(file.fileno())
        if kind is None:
            for part, path in zip(self.parts, self.paths, strict=True):
                os.replace(part, path)


def npy_header(dtype, length):
    """What stands before the values in a .npy file of one dimension; nothing for a file without dtype.

    NumPy leaves room for the length to grow, so that the header's size does not depend on it.
    """
    header = io.BytesIO()
    if dtype is not None:
        description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (length,)}
        np.lib.format.write_array_header_1_0(header, description)
    return header.getvalue()


def pregenerated_epochs(folder):
    """The complete epochs of a folder of `pregenerate_training_data.py`: [(epoch file, metrics)], by number; the file
    is epoch_N.json, or epoch_N_ids.npy of a packed epoch.

    The metrics file is written last, so an epoch without one is not complete. Raises UserError when there is none.
    """
    epochs = []
    while (Path(folder) / f"epoch_{len(epochs)}_metrics.json").is_file():
        name = Path(folder) / f"epoch_{len(epochs)}"
        try:
            metrics = json.loads(Path(f"{name}_metrics.json").read_text(encoding="utf-8"))
            metrics |= {key: int(metrics[key]) for key in ("num_training_examples", "max_seq_len")}
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{name}_metrics.json: expected num_training_examples and max_seq_len") from None
        path = Path(f"{name}_ids.npy" if "vocabulary" in metrics else f"{name}.json")
        if not path.is_file():
            raise UserError(f"{path}: missing, though its metrics file is there")
        epochs.append((path, metrics))
    if not epochs:
        raise UserError(f"{folder}: no epoch_0_metrics.json; pregenerate_training_data.py makes it")
    return epochs


def read_epoch(path, metrics, tokenizer, max_seq_length, folder=None, limit=None):
    """Token ids of one epoch of `pregenerate_training_data.py`: mapped, not read, where that can be.

    Args: path, metrics: of `pregenerated_epochs`; folder: where ids that cannot be mapped go, None = into memory;
    limit: the first sequences only. JSON is parsed once; what came out is kept beside it, in a packed cache.
    Raises UserError: damaged files, ids of another vocabulary, a sequence over `max_seq_length`, or another number of
    sequences than `metrics` tells.
    """
    digest, vocab_size = vocabulary_digest(tokenizer), len(tokenizer.vocab)

    def checked(sequences):
        if limit is None and len(sequences) != metrics["num_training_examples"]:
            expected = metrics["num_training_examples"]
            raise UserError(f"{path}: {len(sequences)} sequences, its metrics file tells {expected}")
        over = np.flatnonzero(sequences.lengths > max_seq_length)
        if len(over):
            length = sequences.lengths[over[0]]
            raise UserError(f"{path} line {over[0] + 1}: {length} tokens, --max_seq_length is {max_seq_length}")
        return sequences

    if path.suffix == ".npy":
        if metrics["vocabulary"] != digest:
            raise UserError(f"{path}: packed with another vocabulary than the teacher's")
        name, special = str(path).removesuffix("_ids.npy"), (tokenizer.cls_token_id, tokenizer.sep_token_id)
        sequences = map_packed(name, vocab_size, special)
        return checked(sequences if limit is None else sequences.head(limit))
    if limit is not None:
        return checked(parse_epoch(path, tokenizer.vocab, folder, limit))

    name = str(path).removesuffix(".json") + "_cache"
    source = {"vocabulary": digest, "size": path.stat().st_size, "modified": path.stat().st_mtime_ns}
    with open(path, "rb") as file:
        wait_for_lock(file)  # of several processes the first one parses
        with contextlib.suppress(UserError):
            if read_json(f"{name}.json") == source:
                return checked(map_packed(name, vocab_size))
        may_cache = os.access(path.parent, os.W_OK)
        sequences = checked(parse_epoch(path, tokenizer.vocab, path.parent if may_cache else folder))
        if not may_cache:
            return sequences
        write_packed(name, sequences, vocab_size)
        write_json(f"{name}.json", source)  # written last: the others are complete
    return map_packed(name, vocab_size)


def map_packed(name, vocab_size, special=None):
    """The Sequences of the packed files `name`_ids.npy and `name`_sequences.npy; `special` as in `Sequences`.

    Raises UserError: damaged files.
    """
    try:
        ids = np.load(f"{name}_ids.npy", mmap_mode="r")
        rows = np.load(f"{name}_sequences.npy", mmap_mode="r")
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        lengths, first_lengths = rows["length"].astype(np.int64), rows["first_length"].astype(np.int64)
        np.cumsum(lengths if special is None else lengths - 2 - (first_lengths < lengths), out=offsets[1:])
        if ids.dtype.kind != "u" or ids.ndim != 1 or offsets[-1] != len(ids) or (len(ids) and ids.max() >= vocab_size):
            raise ValueError("its arrays do not fit together")
    except (OSError, ValueError, EOFError, IndexError, TypeError) as error:
        raise UserError(f"{name}_ids.npy, {name}_sequences.npy: no packed sequences ({error})") from None
    return Sequences(ids, offsets, first_lengths, special=special)


def write_packed(name, sequences, vocab_size):
    """Write Sequences as packed files, each atomically."""
    dtypes = packed_dtypes(id_typecode(vocab_size), masked=False)
    rows = np.zeros(len(sequences), dtypes["_sequences.npy"])
    rows["length"], rows["first_length"] = sequences.lengths, sequences.first_lengths
    for end, values in (("_ids.npy", sequences.ids), ("_sequences.npy", rows)):
        with atomic_write(f"{name}{end}", "wb") as file:
            np.save(file, np.asarray(values))


def parse_epoch(path, vocab, folder=None, limit=None):
    """The Sequences of an epoch file in JSON. Raises UserError: a line that is no such object, a token outside the
    vocabulary."""
    builder = SequencesBuilder(len(vocab), folder)
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
            builder.add(ids, first_length)
    return builder.build()
