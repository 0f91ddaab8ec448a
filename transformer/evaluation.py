"""What a classifier answers, how right it is, and how fast it answers.

Shapes: N examples, B of a batch, L tokens, C classes.
"""

import functools
import time
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from transformer.data import Sequences, sorted_batches
from transformer.glue import compute_metrics, label_order
from transformer.modeling import label_names

BATCH_SIZES = (1, 32)  # an answer that somebody waits for, and many at once
# A model is timed so often, or for so long where it is slow, but so often at least.
REPETITIONS, SECONDS, LEAST = 100, 1.5, 3
TURN_REPETITIONS, TURN_SECONDS = 10, 0.2  # then the next model has its turn


def run_model(model, sequences, rows, tokenizer, args, place, progress=False):
    """Logits (len(rows), C) of some examples, in the order of `rows`, on the CPU in float32."""
    model.eval()
    logits = torch.zeros(len(rows), model.config.num_labels)
    batches = sorted_batches(sequences.lengths[rows], args.eval_batch_size)
    for indices in tqdm(batches, unit="batch", disable=None if progress else True, leave=False):
        pad_to = args.max_seq_length if args.pad_to_max_length else None
        batch = sequences.batch(rows[indices], tokenizer.pad_token_id, pad_to)
        logits[torch.from_numpy(indices)] = batch_logits(model, batch, place)
    return logits


def batch_logits(model, batch, place):
    """Logits (B, C) of one batch, on the CPU in float32: it waits for the device."""
    batch = place.to_device(batch)
    with torch.inference_mode(), place.autocast():
        logits, _ = model(batch["input_ids"], batch["token_type_ids"], batch["attention_mask"])
    return logits.float().cpu()


# --- how right


class Answers(NamedTuple):
    """What a model says to the rows of one dev file, and the truth: (N,) class indices in the order of the task's table
    each, or scores."""

    file: str
    predictions: np.ndarray
    labels: np.ndarray


def answer(task, model, sets, tokenizer, args, place):
    """The model's `Answers` to each of the task's dev sets, (file name, Sequences)."""
    # Metrics count classes in the table's order, the logits may have the teacher's.
    order = label_order(task, label_names(model.config))
    to_table = np.array([task.labels.index(label) for label in order])
    answers = []
    for name, sequences in sets:
        logits = run_model(model, sequences, np.arange(len(sequences)), tokenizer, args, place)
        if task.regression:
            answers.append(Answers(name, logits[:, 0].numpy(), sequences.labels))
        else:
            answers.append(Answers(name, to_table[logits.argmax(dim=1).numpy()], to_table[sequences.labels]))
    return answers


def results_of(task, answers):
    """Every metric, {name: value}; MNLI's second set, mismatched, reports under mm_..."""
    # By name, so that the matched set goes on selecting the weights: in the reference the second set takes its place.
    results = {}
    for prefix, (_, predictions, labels) in zip(("", "mm_"), answers, strict=False):
        metrics = compute_metrics(task, predictions, labels)
        results.update({f"{prefix}{name}": value for name, value in metrics.items()})
    return results


def score(task, model, sets, tokenizer, args, place):
    """Every metric on the task's dev sets."""
    return results_of(task, answer(task, model, sets, tokenizer, args, place))


def confusion_matrix(answers, classes):
    """How often which class was answered: (C, C) counts, a row for each true class, a column for each answer."""
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (answers.labels, answers.predictions), 1)
    return counts


# --- how fast


class Speed(NamedTuple):
    """Of batches of one size: the median and the 95th percentile of their milliseconds, examples a second, and how many
    batches were timed."""

    p50: float
    p95: float
    per_second: float
    repetitions: int


def speed_of(seconds, batch_size):
    """The Speed that some batches' seconds amount to."""
    p50, p95 = np.percentile(seconds, [50, 95]) * 1000
    return Speed(float(p50), float(p95), batch_size * len(seconds) / sum(seconds), len(seconds))


def measure_speed(models, length, place):
    """The speed of some models side by side, from token ids in memory to logits in memory.

    Args: models: {name: (model, its tokenizer, some Sequences)}; length: tokens of every example, none of them padding.
    Returns {name: {batch size: Speed}}.
    """
    speeds = {name: {} for name in models}
    for batch_size in BATCH_SIZES:
        calls = {}
        for name, (model, tokenizer, sequences) in models.items():
            batch = full_batch(sequences, batch_size, length, tokenizer)
            model.eval()
            calls[name] = functools.partial(batch_logits, model, batch, place)
        for name, seconds in time_by_turns(calls).items():
            speeds[name][batch_size] = speed_of(seconds, batch_size)
    return speeds


def full_batch(sequences, batch_size, length, tokenizer):
    """A batch (B, L) of real text without padding: the sequences' tokens end to end, over again where they are few."""
    ids = np.resize(sequences.ids, (batch_size, length))
    ids[:, -1], ids[:, 0] = tokenizer.sep_token_id, tokenizer.cls_token_id
    lengths = np.full(batch_size, length)
    rows = Sequences(ids.reshape(-1), np.arange(batch_size + 1) * length, lengths)
    return rows.batch(np.arange(batch_size), tokenizer.pad_token_id)


def time_by_turns(calls, clock=time.perf_counter):
    """Time some functions, {name: function}, over and over; returns {name: the seconds of each call}.

    They take turns, so that what else the machine does falls on all of them alike. One turn each goes before that is
    not counted: first calls allocate, tune and fill caches.
    """
    for call in calls.values():
        _turn(call, clock, LEAST)
    seconds = {name: [] for name in calls}
    waiting = list(calls)
    while waiting:
        for name in waiting:
            seconds[name] += _turn(calls[name], clock, REPETITIONS - len(seconds[name]))
        waiting = [
            name
            for name in waiting
            if len(seconds[name]) < REPETITIONS and (sum(seconds[name]) < SECONDS or len(seconds[name]) < LEAST)
        ]
    return seconds


def _turn(call, clock, most):
    """The seconds of a few calls in a row, `most` of them at most."""
    seconds = []
    while len(seconds) < min(most, TURN_REPETITIONS) and sum(seconds) < TURN_SECONDS:
        started = clock()
        call()
        seconds.append(clock() - started)
    return seconds
