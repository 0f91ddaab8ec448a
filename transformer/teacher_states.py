"""What the teacher's layers make of a task's rows, computed once: the intermediate step reads it in every epoch.

A frozen teacher says the same about a row each time, and is most of the step's arithmetic. Shapes: L length, K layers
whose hidden states teach, M layers whose attention does, D teacher's width, H heads.
"""

import logging
import os

import numpy as np
import torch
from tqdm import tqdm

from transformer.data import token_batches
from transformer.files import UserError

STATES_NAME = "teacher_states.bin"


class TeacherStates:
    """The states of `sequences` in a file of float16, one sequence after the other: its hidden states (K, L, D), then
    what the attention loss compares, scores (M, H, L, L) or queries, keys and values (M, 3, L, D).

    Args: learner: a `TransformerLearner`; batch_size: examples of the greatest length that memory has room for.
    """

    def __init__(self, path, learner, sequences, batch_size):
        self.path, self.learner, self.sequences = path, learner, sequences
        config, layers = learner.teacher.config, len(learner.attending)
        self.square = not learner.by_relations  # (L, L) instead of (L, D)
        self.hidden = len(learner.teaching), config.hidden_size  # K, D
        self.compared = layers, config.num_attention_heads if self.square else 3
        self.lengths = sequences.lengths if sequences.pad_to is None else np.full(len(sequences), sequences.pad_to)
        across = self.lengths if self.square else config.hidden_size
        sizes = self.lengths * (np.prod(self.hidden) + np.prod(self.compared) * across)  # numbers of each sequence
        self.batches = token_batches(self.lengths, batch_size * self.lengths.max())
        order = np.concatenate(self.batches)  # in which they are computed, and lie in the file
        self.ends = np.empty(len(sizes), np.int64)
        self.ends[order] = 2 * np.cumsum(sizes[order])
        self.bytes, self.size = 2 * sizes, 2 * int(sizes.sum())

    def shapes(self, length):
        """The shapes of a sequence's two arrays."""
        layers, width = self.hidden
        return (layers, length, width), (*self.compared, length, length if self.square else width)

    def make(self, here):
        """Compute what the file lacks; after a kill it goes on behind the last whole batch. here: `Processes`."""
        ends = np.array([self.ends[indices[-1]] for indices in self.batches])
        with open(self.path, "ab") as file:
            done = int(np.searchsorted(ends, file.tell(), side="right"))
            file.truncate(ends[done - 1] if done else 0)
            for indices in tqdm(self.batches[done:], unit="batch", disable=None, leave=False):
                for record in self.compute(indices, here):
                    file.write(record)
                file.flush()
                os.fsync(file.fileno())  # a file's size must not be ahead of its bytes, even where the power fails
        self.file = open(self.path, "rb")  # noqa: SIM115
        logging.info("teacher's states: %.2f GB in %s", self.size / 1e9, self.path)

    def compute(self, indices, here):
        """Yield the bytes of each sequence of a batch. Raises UserError for a teacher whose numbers do not fit."""
        with torch.no_grad(), here.autocast():
            output = self.learner.run_teacher(here.to_device(self.sequences.batch(indices)))
        states = [each.half().cpu().numpy() for each in self.learner.states_of(output)]
        if not all(np.isfinite(each).all() for each in states):
            raise UserError("--teacher_states: this teacher's hidden states or scores do not fit into float16")
        for row, length in enumerate(self.lengths[indices].tolist()):
            for each, shape in zip(states, self.shapes(length), strict=True):
                yield np.ascontiguousarray(each[row][tuple(map(slice, shape))]).data

    def read(self, indices, length):
        """The states of sequences as `TransformerLearner.output_of` takes them, padded with 0 to `length`."""
        states = [np.zeros((len(indices), *shape), np.float16) for shape in self.shapes(length)]
        for row, index in enumerate(indices.tolist()):
            self.file.seek(self.ends[index] - self.bytes[index])
            for each, shape in zip(states, self.shapes(int(self.lengths[index])), strict=True):
                numbers = np.fromfile(self.file, np.float16, np.prod(shape))
                each[row][tuple(map(slice, shape))] = numbers.reshape(shape)
        return dict(zip(("teacher_hidden", "teacher_compared"), map(torch.from_numpy, states), strict=True))
