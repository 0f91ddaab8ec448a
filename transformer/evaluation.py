"""What a model answers, how right it is, and how fast it answers.

Shapes: N examples, B of a batch, L tokens, C outputs of the head.
"""

import functools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from transformer.checkpoint import label_names
from transformer.data import sorted_batches
from transformer.history import sum_by_kind
from transformer.processes import Processes
from transformer.tasks.task import label_order

BATCH_SIZES = (1, 32)  # an answer that somebody waits for, and many at once
# A model is timed in TURNS turns: REPETITIONS batches in all or, where it is slow, those that start within SECONDS.
TURNS, REPETITIONS, SECONDS = 4, 100, 1.5


class Answers(NamedTuple):
    """What a model says to the rows of one dev file, and the truth, as the task's kind scores them."""

    file: str
    predictions: np.ndarray  # (N,): class indices in the order of the task's labels, or scores
    labels: np.ndarray


@dataclass(frozen=True)
class Evaluator:
    """Runs models without training, in batches of one size, on this process's device."""

    batch_size: int
    processes: Processes

    def outputs(self, model, sequences, rows=None, progress=False):
        """The head's outputs (N, C) for all examples or those of `rows`, on the CPU in float32."""
        model.eval()
        rows = np.arange(len(sequences)) if rows is None else rows
        outputs = torch.zeros(len(rows), model.config.num_labels)
        batches = sorted_batches(sequences.lengths[rows], self.batch_size)
        for indices in tqdm(batches, unit="batch", disable=None if progress else True, leave=False):
            outputs[torch.from_numpy(indices)] = self.batch_outputs(model, sequences.batch(rows[indices]))
        return outputs

    def batch_outputs(self, model, batch):
        """Outputs (B, C) for one batch, on the CPU in float32: it waits for the device."""
        batch = self.processes.to_device(batch)
        with torch.inference_mode(), self.processes.autocast():
            outputs, _ = model(batch["input_ids"], batch["token_type_ids"], batch["attention_mask"])
        return outputs.float().cpu()

    def losses(self, learner, sequences):
        """A learner's losses over a data set: {kind: mean over the examples}."""
        learner.eval()
        sums = {}
        for indices in sorted_batches(sequences.lengths, self.batch_size):
            batch = self.processes.to_device(sequences.batch(indices))
            with torch.inference_mode(), self.processes.autocast():
                for name, value in learner(batch).items():
                    sums[name] = sums.get(name, 0) + value * len(indices)
        return sum_by_kind({name: value.item() / len(sequences) for name, value in sums.items()})

    def answers(self, task, model, sets):
        """The model's `Answers` to each of the task's dev sets, (file name, Sequences)."""
        labels = label_order(task, label_names(model.config))
        return [
            Answers(name, *task.kind.answers(task, self.outputs(model, sequences), sequences.labels, labels))
            for name, sequences in sets
        ]

    def score(self, task, model, sets):
        """(the metric that selects the best weights, {name: value of every metric}) on the task's dev sets."""
        results = results_of(task, self.answers(task, model, sets))
        return results[task.metrics[0]], results


class Candidate(NamedTuple):
    """A model beside others: its folder, its dev sets, (file name, Sequences), and its `Answers` to each of them."""

    folder: Path
    model: torch.nn.Module
    tokenizer: object
    dev: list
    answers: list


def results_of(task, answers):
    """Every metric, {name: value}; MNLI's second set, mismatched, reports under mm_..."""
    # By name, so that the matched set goes on selecting the weights: in the reference the second set takes its place.
    return {
        f"{prefix}{name}": value
        for prefix, (_, predictions, labels) in zip(("", "mm_"), answers, strict=False)
        for name, value in task.kind.score(task, predictions, labels).items()
    }


def measure_speed(candidates, length, evaluator):
    """Time some models, {name: Candidate}, from token ids in memory to outputs in memory. `length`: tokens of every
    example, none of them padding. Returns {batch size: {name: [seconds of each batch]}}."""
    seconds = {}
    for batch_size in BATCH_SIZES:
        calls = {}
        for name, each in candidates.items():
            batch = full_batch(each.dev[0][1], batch_size, length, each.tokenizer)
            calls[name] = functools.partial(evaluator.batch_outputs, each.model.eval(), batch)
        seconds[batch_size] = time_by_turns(calls)
    return seconds


def full_batch(sequences, batch_size, length, tokenizer):
    """A batch (B, L) of real text without padding: the sequences' tokens end to end, over again where they are few."""
    ids = np.resize(sequences.ids, (batch_size, length)).astype(np.int64)
    ids[:, -1], ids[:, 0] = tokenizer.sep_token_id, tokenizer.cls_token_id
    ids = torch.from_numpy(ids)
    return {"input_ids": ids, "token_type_ids": torch.zeros_like(ids), "attention_mask": None}


def time_by_turns(calls, clock=time.perf_counter):
    """Time some functions, {name: function}, over and over; returns {name: [seconds of each call]}."""
    # They take turns, so that what else the machine does falls on all of them alike. A turn is several calls: models
    # that alternate call by call would drive each other's weights out of the caches.
    seconds = {name: [] for name in calls}
    for turn in range(1 + TURNS):
        for name, call in calls.items():
            times = []
            while len(times) < REPETITIONS / TURNS and sum(times) < SECONDS / TURNS:
                started = clock()
                call()
                times.append(clock() - started)
            if turn > 0:  # the first calls allocate, tune and fill caches
                seconds[name] += times
    return seconds
