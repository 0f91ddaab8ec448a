"""A model's answers, scores and speed.

Shapes: N examples, B batch, L tokens, C head outputs.
"""

import itertools
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from transformer.checkpoint import label_names, weights_files
from transformer.console import watched
from transformer.data import sorted_batches, token_batches
from transformer.distillation import head_outputs
from transformer.history import sum_by_kind
from transformer.processes import Processes
from transformer.tasks.task import label_order

RESAMPLES = 1000
BATCH_SIZES = (1, 32)  # for latency and for throughput
# A model is timed for REPETITIONS batches, or for as many as start within SECONDS, split into TURNS turns.
TURNS, REPETITIONS, SECONDS = 4, 100, 1.5


class Answers(NamedTuple):
    """A model's predictions for one dev file and the gold labels, in the form that the task's kind scores."""

    file: str
    predictions: np.ndarray  # (N,): class indices in the order of the task's labels, or scores; (N, C) booleans
    labels: np.ndarray
    loss: float = math.nan  # of the head's outputs on the gold labels
    row_losses: np.ndarray | None = None  # (N,): the same of each row


@dataclass(frozen=True)
class Evaluator:
    """Runs models without training, in batches of a fixed size, on this process's device."""

    batch_size: int
    processes: Processes

    def outputs(self, model, sequences, rows=None, progress=False, by_tokens=False):
        """Head outputs (P, C) for all examples, or those in `rows`, on the CPU in float32; P = N, but where single
        tokens are answered. `by_tokens`: in larger batches of shorter examples, which takes no more memory."""
        model.eval()
        rows = np.arange(len(sequences)) if rows is None else rows
        _, wanted = sequences.outputs_of(rows)
        outputs, found, places = torch.zeros(wanted.max(initial=-1) + 1, model.config.num_labels), [], []
        lengths = sequences.lengths[rows]
        by_tokens = by_tokens and sequences.pad_to is None  # examples that are all padded are not shorter
        tokens = self.batch_size * lengths.max(initial=1)
        batches = token_batches(lengths, tokens) if by_tokens else sorted_batches(lengths, self.batch_size)
        for indices in watched(batches) if progress else batches:
            batch = sequences.batch(rows[indices])
            places.append(batch["outputs"])
            found.append(self.run(model, batch))
        if batches:  # copied after the loop, because each copy waits for the device
            outputs[torch.cat(places)] = torch.cat(found).cpu()
        return outputs[torch.from_numpy(wanted)]

    def run(self, model, batch):
        """Head outputs (P, C) for one batch, on the device in float32."""
        batch = self.processes.to_device(batch)
        with torch.inference_mode(), self.processes.autocast():
            outputs = head_outputs(model, batch)
        return outputs.float()

    def losses(self, learner, sequences):
        """A learner's losses on a data set: {kind: mean over the examples}."""
        learner.eval()
        sums = {}
        for indices in sorted_batches(sequences.lengths, self.batch_size):
            batch = self.processes.to_device(sequences.batch(indices))
            with torch.inference_mode(), self.processes.autocast():
                for name, value in learner(batch).items():
                    sums[name] = sums.get(name, 0) + value * len(indices)
        return sum_by_kind({name: value.item() / len(sequences) for name, value in sums.items()})

    def answers(self, task, model, sets, tune=False):
        """The model's `Answers` for each dev set in `sets`, [(file name, Sequences)]. `tune`: first let the task's kind
        choose on the first of them what the model's configuration has to know, see `Kind.tune`."""
        labels, found = label_order(task, label_names(model.config)), []
        for name, sequences in sets:
            outputs = self.outputs(model, sequences)
            losses = losses_of_rows(task.kind, outputs, sequences)
            if tune and not found:
                model.config.__dict__.setdefault("task", {}).update(task.kind.tune(outputs, sequences))
            answers = task.kind.answers(task.as_in(model.config), outputs, sequences, labels)
            found.append(Answers(name, *answers, losses.mean().item(), losses.numpy()))
        return found

    def score(self, task, model, sets):
        """(value of the metric that selects the best weights, {name: value} of all metrics and the loss on gold labels)
        of a model in training on the dev sets."""
        answers = self.answers(task, model, sets, tune=True)
        results = results_of(task, answers)
        return results[task.metrics[0]], results | {"eval_loss": answers[0].loss}


def losses_of_rows(kind, outputs, sequences):
    """The loss of each row on its gold labels, (R,): where a row is read in windows, their mean."""
    which, _ = sequences.outputs_of(np.arange(len(sequences)))
    examples = {} if sequences.answered is None else {"examples": torch.from_numpy(which)}
    losses = kind.row_losses(outputs, torch.from_numpy(sequences.labels), **examples)
    if sequences.rows is None:
        return losses
    rows = torch.from_numpy(sequences.rows)
    sums = torch.zeros(int(rows.max()) + 1).index_add(0, rows, losses)
    return sums / torch.bincount(rows)


class Candidate(NamedTuple):
    """A model in a comparison, with its dev sets, [(file name, Sequences)], and its `Answers` for each of them."""

    folder: Path
    model: object  # a torch.nn.Module, a `Runner` or one that reads texts
    tokenizer: object
    dev: list
    answers: list
    size: int | None = None  # bytes; None = those of the folder's weights
    texts: list | None = None  # the dev texts, of a model that reads these instead of `dev`

    @property
    def in_windows(self):
        """Whether some dev rows are too long for one sequence: batches then consist of windows over them."""
        return any(each.num_rows < len(each) for _, each in self.dev)

    def bytes(self):
        return self.size or sum(file.stat().st_size for file in weights_files(self.folder))


class Runner:
    """Stands for a model whose computation another library does. call(input ids, token types, attention mask): logits
    (B, C), from (B, L) each; model: what it was exported from."""

    def __init__(self, call, model):
        self.call, self.config, self.num_parameters = call, model.config, model.num_parameters

    def eval(self):
        return self

    def __call__(self, input_ids, token_type_ids, attention_mask):
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return self.call(input_ids.cpu(), token_type_ids.cpu(), attention_mask.cpu()), None


def results_of(task, answers):
    """All metrics, {name: value}. Those of MNLI's second dev set, mismatched, start with mm_."""
    return together(task.kind.score(task, each.predictions, each.labels) for each in answers)


def together(scores):
    """The metrics of several dev sets, {name: value} each, under different names."""
    # Separate names keep the matched set as the one that selects the weights. In the reference the second replaces it.
    pairs = zip(("", "mm_"), scores, strict=False)
    return {f"{prefix}{name}": value for prefix, each in pairs for name, value in each.items()}


def resampled_results(task, answers):
    """All metrics, {name: (R,)}, on R = `RESAMPLES` bootstrap samples of the dev rows. The samples are the same for all
    models, so that the differences of two models can be compared too."""
    draw, found = np.random.default_rng(0), {}
    evidence = [task.kind.evidence(task, each.predictions, each.labels) for each in answers]
    for _ in range(RESAMPLES):
        scores = []
        for arrays in evidence:
            rows = draw.integers(len(arrays[0]), size=len(arrays[0]))
            scores.append(task.kind.metrics_of(task, *(array[rows] for array in arrays)))
        for name, value in together(scores).items():
            found.setdefault(name, []).append(value)
    return {name: np.array(values) for name, values in found.items()}


def measure_speed(candidates, length, evaluator):
    """Time models, {name: Candidate}, from token ids to outputs, both in memory. `length`: tokens per example, without
    padding; None = dev rows in the order of their file, padded to the longest of a batch. Returns {batch size: {name:
    [seconds of each batch]}}. Models that read texts are timed on dev rows only."""
    seconds = {}
    for batch_size in BATCH_SIZES:
        calls = {}
        for name, each in candidates.items():
            if each.texts and length:
                continue
            model = each.model.eval()
            batches = itertools.cycle(timed_batches(each, batch_size, length))
            if each.texts:
                calls[name] = lambda model=model, batches=batches: model.predict(next(batches))
            else:  # .cpu() waits for the device
                calls[name] = lambda model=model, batches=batches: evaluator.run(model, next(batches)).cpu()
        seconds[batch_size] = time_by_turns(calls)
    return seconds


def timed_batches(candidate, batch_size, length):
    """The batches that a candidate is timed on, see `measure_speed`."""
    sequences = candidate.dev[0][1]
    if length:
        return [full_batch(sequences, batch_size, length, candidate.tokenizer)]
    starts = range(0, len(sequences), batch_size)[:REPETITIONS]
    if candidate.texts:
        return [candidate.texts[start : start + batch_size] for start in starts]
    return [sequences.batch(np.arange(start, min(start + batch_size, len(sequences)))) for start in starts]


def full_batch(sequences, batch_size, length, tokenizer):
    """A batch (B, L) of real text without padding: the sequences' tokens end to end, repeated if there are too few."""
    ids = np.resize(sequences.ids, (batch_size, length)).astype(np.int64)
    ids[:, -1], ids[:, 0] = tokenizer.sep_token_id, tokenizer.cls_token_id
    ids = torch.from_numpy(ids)
    return {"input_ids": ids, "token_type_ids": torch.zeros_like(ids), "attention_mask": None}


def time_by_turns(calls, clock=time.perf_counter):
    """Time functions, {name: function}, over many calls. Returns {name: [seconds of each call]}."""
    # They take turns, so that other load on the machine affects all of them alike. A turn is several calls: models that
    # alternate after every call would evict each other's weights from the caches.
    seconds = {name: [] for name in calls}
    for turn in range(1 + TURNS):
        for name, call in calls.items():
            times = []
            while len(times) < REPETITIONS / TURNS and sum(times) < SECONDS / TURNS:
                started = clock()
                call()
                times.append(clock() - started)
            if turn > 0:  # the first turn only warms up: allocations, tuning, caches
                seconds[name] += times
    return seconds
