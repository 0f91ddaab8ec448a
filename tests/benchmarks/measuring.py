"""What distillation.py and gpu.py both measure with: the suite's own loop, the arithmetic of a step, the peak."""

import contextlib
import json
import tempfile
import time
from pathlib import Path

import torch

from transformer import training
from transformer.data import sorted_batches
from transformer.quantization import pack
from transformer.settings import Batching, Schedule
from transformer.training import Plan, TrainingRun

STUDENT = 4, 312, 1200  # layers, width, intermediate units of student_model/config.json


class Part:
    """The part of a run that is measured: its examples and seconds, and the profiler that watches it, if any."""

    examples, seconds, profiler = 0, 0.0, None


_profiled = []  # the Part that waits for its run


@contextlib.contextmanager
def profiling(profiler):
    """Let a profiler watch the first part that is measured inside. Yields the Part."""
    watched = Part()
    watched.profiler = profiler
    _profiled.append(watched)
    try:
        yield watched
    finally:
        _profiled.clear()


@contextlib.contextmanager
def part(examples):
    """Measure what is done inside, which ends with its results on the CPU. Yields a Part."""
    found = _profiled.pop() if _profiled else Part()
    with found.profiler or contextlib.nullcontext():
        started = time.monotonic()
        yield found
        found.examples, found.seconds = examples, time.monotonic() - started


def evenly(batches, count):
    """`count` of the batches, which are sorted by length, so that the mean length of a few is that of all."""
    return [batches[int((number + 0.5) * len(batches) / count)] for number in range(count)]


def train(learner, data, here, steps, batch_size, compiled=False):
    """Train `steps` steps of `data` (Sequences) twice with the suite's own loop. Returns the log's last entry, which is
    about the second time, and the seconds that the first one took longer (compilation, allocations)."""
    training.LOG_STEPS = steps
    schedule = Schedule(num_train_epochs=2, eval_step=10**9, seed=1)
    batching = Batching(train_batch_size=batch_size, compile=compiled)
    plan = Plan(lambda epoch: data, [steps * batch_size], schedule, batching)
    batches = evenly(sorted_batches(data.lengths, batch_size), steps)
    plan.batches = lambda epoch: (data, batches)
    with tempfile.TemporaryDirectory() as folder:
        run = TrainingRun(folder, learner, plan, here, "warmup_linear")
        run.save_state = run.evaluate_and_save = lambda: None  # what is measured is the steps
        log, second_half = run.history.log, contextlib.ExitStack()

        def log_and_look(step, rate):
            log(step, rate)
            if step == steps:
                second_half.enter_context(part(steps * batch_size))

        run.history.log = log_and_look
        with second_half:
            run.train()
        entries = map(json.loads, (Path(folder) / training.HISTORY_NAME).read_text().splitlines())
    *first, last = (entry for entry in entries if "losses" in entry)
    return last, sum(entry["seconds"] for entry in first) - last["seconds"]


def encoder(layers, width, inner, length, first_only=False):
    """Multiplications of the encoder's forward pass over one example of `length` tokens. `first_only`: the last layer
    runs for [CLS] alone, though with all keys and values."""
    linear, products = 4 * width * width + 2 * width * inner, 2 * length * width  # of a token
    saved = (length - 1) * (linear - 2 * width * width + products) if first_only else 0
    return layers * length * (linear + products) - saved


def operations(layers, width, work, length):
    """(teacher's, student's) floating-point operations of one example of `length` tokens: forward 2, forward and
    backward 6 a weight. `layers` and `width` are the teacher's; the student is STUDENT."""
    layerwise = work.startswith(("general", "intermediate"))  # others need [CLS] only of the last layer
    teacher = encoder(layers, width, 4 * width, length, not layerwise)
    student = encoder(*STUDENT, length, not layerwise)
    if work in ("fine-tuning", "logits"):
        return (6 if work == "fine-tuning" else 2) * teacher, 0
    if work == "answers":
        return 0, 2 * student
    if work == "prediction, later epochs":
        return 0, 6 * student
    projection = (STUDENT[0] + 1) * STUDENT[1] * width * length if layerwise else 0
    return 2 * teacher, 6 * (student + projection)


def matrix_peak(here, size=None, seconds=3.0):
    """Operations a second of the fastest product of two matrices on this device in this precision."""
    size = size or (2048 if here.device.type == "cpu" else 8192)
    a, b = torch.randn(2, size, size, device=here.device).to(here.dtype)
    return 2 * size**3 / fastest(lambda: a @ b, seconds)


def int8_peak(size=2048, seconds=3.0):
    """The same of a CPU's int8 kernel, float32 numbers in and out."""
    a, b = torch.randn(2, size, size)
    packed = pack(a, a.abs().amax(1) / 127, "onednn")
    return 2 * size**3 / fastest(lambda: torch.ops.quantized.linear_dynamic(b, packed, reduce_range=True), seconds)


def fastest(product, seconds):
    """The fewest seconds of a product of two matrices, repeated for so long."""
    best, stop = float("inf"), time.monotonic() + seconds
    while time.monotonic() < stop:
        started = time.monotonic()
        product()[0, 0].item()  # waits for the device
        best = min(best, time.monotonic() - started)
    return best
