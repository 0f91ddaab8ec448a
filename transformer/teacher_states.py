"""What the teacher's layers make of sequences, computed once: the intermediate step reads it in every epoch.

A frozen teacher says the same about a row each time, and is most of the step's arithmetic. Shapes: L length, K layers
whose hidden states teach, M layers whose attention does, D teacher's width, H heads.
"""

import logging
import os

import numpy as np
import torch

from transformer.console import watched
from transformer.data import token_batches
from transformer.files import UserError

STATES_NAME, DEV_STATES_NAME = "teacher_states.bin", "teacher_states_dev.bin"


class TeacherStates:
    """The states of sequences in a file of float16, one sequence after the other: its hidden states (K, L, D), then
    what the attention loss compares, scores (M, H, L, L) or queries, keys and values (M, 3, L, D).

    Args: path: of the file; learner: a `TransformerLearner`; sequences: `Sequences`; batch_size: the number of examples
    of the greatest length that the teacher may read at once.
    """

    def __init__(self, path, learner, sequences, batch_size):
        self.path, self.learner, self.sequences = path, learner, sequences
        teacher, self.square = learner.teacher.config, not learner.by_relations  # square: (L, L) and not (L, D)
        self.layers, self.width = len(learner.teaching), teacher.hidden_size  # K, D
        self.maps = len(learner.attending), teacher.num_attention_heads if self.square else 3
        self.lengths = sequences.lengths if sequences.pad_to is None else np.full(len(sequences), sequences.pad_to)
        of_token = self.layers * self.width + np.prod(self.maps) * (self.lengths if self.square else self.width)
        self.sizes = 2 * self.lengths * of_token  # bytes of each sequence
        self.batches = token_batches(self.lengths, batch_size * self.lengths.max())
        order = np.concatenate(self.batches)  # the file's, whatever the batches' size
        self.ends = np.empty(len(order), np.int64)
        self.ends[order] = np.cumsum(self.sizes[order])
        self.size = int(self.sizes.sum())

    def shapes(self, length):
        """The shapes of a sequence's two arrays."""
        return (self.layers, length, self.width), (*self.maps, length, length if self.square else self.width)

    def make(self, here):
        """Compute what the file lacks: after a kill what is behind its last whole batch. here: `Processes`. Raises
        UserError where it cannot be written, or the teacher's numbers do not fit into float16."""
        ends = np.array([self.ends[indices[-1]] for indices in self.batches])
        try:
            with open(self.path, "ab") as file:
                done = int(np.searchsorted(ends, file.tell(), side="right")) if file.tell() <= self.size else 0
                file.truncate(ends[done - 1] if done else 0)
                counts = len(self.lengths), self.size / 1e9, self.path
                logging.info("teacher's states of %d sequences: %.2f GB in %s", *counts)
                for indices in watched(self.batches[done:]):
                    for array in self.compute(indices, here):
                        file.write(array.data)
                    file.flush()
                    os.fsync(file.fileno())  # so that a failure of power costs one batch at most
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror or error}") from error

    def compute(self, indices, here):
        """Yield the arrays of a batch's sequences in the file's order."""
        with torch.no_grad(), here.autocast():
            output = self.learner.run_teacher(here.to_device(self.sequences.batch(indices)))
        states = [each.half().cpu().numpy() for each in self.learner.states_of(output)]
        for row, length in enumerate(self.lengths[indices].tolist()):
            for each, shape in zip(states, self.shapes(length), strict=True):
                array = np.ascontiguousarray(each[row][tuple(map(slice, shape))])
                if not np.isfinite(array).all():
                    told = "this teacher's hidden states or scores do not fit into float16; leave the flag out"
                    raise UserError(f"--teacher_states: {told}, with --overwrite_output")
                yield array

    def read(self, indices, length):
        """The states of sequences as `TransformerLearner.output_of` takes them, padded with 0 to `length`."""
        states = [np.zeros((len(indices), *shape), np.float16) for shape in self.shapes(length)]
        with open(self.path, "rb") as file:  # anew each time, because an open file cannot be removed everywhere
            for row, index in enumerate(indices.tolist()):
                file.seek(self.ends[index] - self.sizes[index])
                for each, shape in zip(states, self.shapes(int(self.lengths[index])), strict=True):
                    numbers = np.frombuffer(file.read(2 * int(np.prod(shape))), np.float16)
                    each[row][tuple(map(slice, shape))] = numbers.reshape(shape)
        return dict(zip(("teacher_hidden", "teacher_compared"), map(torch.from_numpy, states), strict=True))
