"""The epochs that `pregenerate_training_data.py` writes and `general_distill.py` reads.

An epoch is epoch_N.json, one JSON object per line, or packed: .npy files of token ids, which are mapped, not parsed.
epoch_N_metrics.json is written last: an epoch without it is not complete.
"""

import hashlib
import itertools
import math
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from transformer.data import Sequences, SequencesBuilder
from transformer.downloads import check_finished
from transformer.files import UserError, append_to
from transformer.json_file import Field, parse_json, read_json, whole
from transformer.tensor_file import read_array

METRICS = {"num_training_examples": whole(needed=True), "max_seq_len": whole(needed=True)}  # of epoch_N_metrics.json
METRICS |= {"vocabulary": Field("a digest")}  # packed
# A line of epoch_N.json, as far as it is read. The items are looked at with the vocabulary: lines come by the million.
SEQUENCE = {"tokens": Field("a list of tokens", (list,), 1, needed=True)}
SEQUENCE |= {"segment_ids": Field("a list of 0 and 1", (list,), 1, needed=True)}
LONGEST_LINE = 1 << 24  # bytes


def vocabulary_digest(tokenizer):
    """A digest of the vocabulary, because packed ids mean nothing under a different one."""
    return hashlib.sha256("\n".join(tokenizer.ids_to_tokens).encode()).hexdigest()[:16]


def packed_dtypes(typecode, masked):
    """The files of a packed epoch: {end of the name: dtype of its one-dimensional array}.

    _ids: the ids of all sequences end to end, without [CLS] and [SEP]; _sequences: a row per sequence, whose lengths
    include them; _masked (with masking): positions and original ids of the masked tokens, `num_masked` per sequence.
    """
    ids = np.dtype(typecode).newbyteorder("<")
    row = [("length", "<u2"), ("first_length", "<u2"), ("is_random_next", "?")]
    files = {"_ids.npy": ids, "_sequences.npy": np.dtype(row + [("num_masked", "<u2")] * masked)}
    return {**files, "_masked.npy": np.dtype([("position", "<u2"), ("id", ids)])} if masked else files


class EpochFiles:
    """Writes the files of an epoch side by side and continues those of a killed run; `fresh`: there was none.

    Args: name: folder and start of the names; dtypes: {end of the name: dtype of a .npy file's array, None for text};
    sizes: bytes of each file that a killed run has safely written, None = none.
    """

    def __init__(self, name, dtypes, sizes=None):
        paths, self.dtypes = [Path(f"{name}{end}") for end in dtypes], list(dtypes.values())
        sizes = sizes if sizes and len(sizes) == len(paths) else None
        self.fresh = not sizes or any(
            not path.exists() or path.stat().st_size < size for path, size in zip(paths, sizes, strict=True)
        )
        sizes = [0] * len(paths) if self.fresh else sizes
        self.files = [append_to(path, size) for path, size in zip(paths, sizes, strict=True)]
        if self.fresh:
            for file, dtype in zip(self.files, self.dtypes, strict=True):
                write_header(file, dtype, 0)

    def write(self, parts):
        for file, part in zip(self.files, parts, strict=True):
            file.write(part)

    def finish(self):
        for file, dtype in zip(self.files, self.dtypes, strict=True):
            with file:
                if dtype is not None:
                    size = file.tell()
                    write_header(file, dtype, 0)
                    write_header(file, dtype, (size - file.tell()) // dtype.itemsize)
                file.flush()
                os.fsync(file.fileno())


def write_header(file, dtype, length):
    """Write the header of a one-dimensional .npy file, whose size does not depend on the length. No dtype: text."""
    if dtype is not None:
        file.seek(0)
        description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (length,)}
        np.lib.format.write_array_header_1_0(file, description)


def pregenerated_epochs(folder):
    """The complete epochs of a folder, in order: [(epoch_N.json or a packed epoch's epoch_N_ids.npy, metrics)]. Raises
    UserError if there is none."""
    check_finished(folder)
    epochs = []
    while (Path(folder) / f"epoch_{len(epochs)}_metrics.json").is_file():
        name = Path(folder) / f"epoch_{len(epochs)}"
        metrics = read_json(f"{name}_metrics.json", METRICS)
        path = Path(f"{name}_ids.npy" if "vocabulary" in metrics else f"{name}.json")
        if not path.is_file():
            raise UserError(f"{path}: missing, though its metrics file is there")
        epochs.append((path, metrics))
    if not epochs:
        raise UserError(f"{folder}: no epoch_0_metrics.json; pregenerate_training_data.py makes it")
    return epochs


class Epochs:
    """The epochs of a folder, used in turn, one at a time in memory. `sizes`: the sequences of each epoch; `inputs`:
    {name: path} of their files. Args: see `read_epoch`. Raises UserError if there are no epochs."""

    def __init__(self, folder, tokenizer, max_seq_length, ids_folder=None, limit=None, pad=False):
        self.epochs = pregenerated_epochs(folder)
        self.options = (tokenizer, max_seq_length, ids_folder, limit, pad)
        self.sizes = [min(metrics["num_training_examples"], limit or math.inf) for _, metrics in self.epochs]
        self.inputs = {path.name: path for path, _ in self.epochs}
        self.latest = {}

    def read(self, number):
        """The Sequences of pass `number` over the data."""
        index = number % len(self.epochs)
        if index not in self.latest:
            self.latest.clear()
            self.latest[index] = read_epoch(*self.epochs[index], *self.options)
        return self.latest[index]


def read_epoch(path, metrics, tokenizer, max_seq_length, folder=None, limit=None, pad=False):
    """The Sequences of one epoch. Raises UserError: damaged files, ids of another vocabulary, a sequence longer than
    `max_seq_length`, or a number of sequences that differs from `metrics`.

    Args: path, metrics: from `pregenerated_epochs`; tokenizer: the teacher's; folder: for the ids of a JSON epoch, None
    = in memory; limit: use only the first sequences; pad: pad every batch to `max_seq_length`, as the reference does.
    """
    if path.suffix == ".npy":
        sequences = map_packed(path, metrics["vocabulary"], tokenizer)
        sequences = sequences if limit is None else sequences.head(limit)
    else:
        sequences = parse_epoch(path, tokenizer.vocab, folder, limit)
    expected = metrics["num_training_examples"]
    if limit is None and len(sequences) != expected:
        raise UserError(f"{path}: {len(sequences)} sequences, its metrics file says {expected}")
    over = np.flatnonzero(sequences.lengths > max_seq_length)
    if len(over):
        length = sequences.lengths[over[0]]
        raise UserError(f"{path} line {over[0] + 1}: {length} tokens, --max_seq_length is {max_seq_length}")
    return replace(sequences, pad_token_id=tokenizer.pad_token_id, pad_to=max_seq_length if pad else None)


def map_packed(path, vocabulary, tokenizer):
    """The Sequences of a packed epoch, `path` its ids. Raises UserError: another `vocabulary`, damaged files."""
    if vocabulary != vocabulary_digest(tokenizer):
        raise UserError(f"{path}: packed with another vocabulary than the teacher's")
    sequences_path = path.with_name(path.name.replace("_ids", "_sequences"))
    rows_types = [packed_dtypes("H", masked)["_sequences.npy"] for masked in (False, True)]
    try:
        ids = read_array(path, [packed_dtypes(code, False)["_ids.npy"] for code in "HI"])
        rows = read_array(sequences_path, rows_types)
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        lengths, first_lengths = rows["length"].astype(np.int64), rows["first_length"].astype(np.int64)
        np.cumsum(lengths - 2 - (first_lengths < lengths), out=offsets[1:])
        if np.any((first_lengths < 2) | (first_lengths > lengths)) or offsets[-1] != len(ids):
            raise ValueError("its arrays do not fit together")
        if ids.max(initial=0) >= len(tokenizer):
            raise ValueError(f"id {ids.max()}, the vocabulary has {len(tokenizer)}")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}, {sequences_path}: not valid packed sequences ({error})") from None
    return Sequences(ids, offsets, first_lengths, special=(tokenizer.cls_token_id, tokenizer.sep_token_id))


def parse_epoch(path, vocab, folder=None, limit=None):
    """The Sequences of a JSON epoch. Raises UserError: a malformed line, a token that is not in the vocabulary."""
    builder = SequencesBuilder(len(vocab), folder)
    with open(path, "rb") as file:  # parse_json decodes, so that text that is not UTF-8 is an error in its line
        lines = iter(partial(file.readline, LONGEST_LINE), b"")
        for count, line in enumerate(itertools.islice(lines, limit), 1):
            instance = parse_json(line, path, count, SEQUENCE)
            tokens, segments = instance["tokens"], instance["segment_ids"]
            try:
                ids, second = [vocab[token] for token in tokens], segments.count(1)
            except (KeyError, TypeError):
                strange = next(each for each in tokens if not isinstance(each, str) or each not in vocab)
                raise UserError(f"{path} line {count}: {strange!r} is not in the vocabulary") from None
            if segments != [0] * (len(ids) - second) + [1] * second:
                raise UserError(f"{path} line {count}: segment_ids are not {len(ids)} numbers, 0 and then 1")
            builder.add(ids, len(ids) - second)
    return builder.build()
