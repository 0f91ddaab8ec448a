"""What distillation.py and gpu.py both measure with: the suite's own loop, the arithmetic of a step, the peak."""

import contextlib
import json
import tempfile
import time
from pathlib import Path

import torch

from transformer import training
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


def train(learner, data, here, steps, batch_size, compiled=False):
    """Train 2 * `steps` steps of `data` (Sequences) with the suite's own loop. Returns the log's last entry, which is
    about the second half, and the seconds that the first half took longer (compilation, allocations)."""
    training.LOG_STEPS = steps
    schedule = Schedule(num_train_epochs=2 * steps, max_steps=2 * steps, eval_step=10**9, seed=1)
    batching = Batching(train_batch_size=batch_size, compile=compiled)
    plan = Plan(lambda epoch: data, [len(data)], schedule, batching)
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


def encoder(layers, width, inner, length):
    """Multiplications of the encoder's forward pass over one example of `length` tokens."""
    return layers * (4 * width * width + 2 * width * inner) * length + layers * 2 * length * length * width


def operations(layers, width, work, length):
    """Floating-point operations of one example of `length` tokens: forward 2, forward and backward 6 a weight. `layers`
    and `width` are the teacher's; the student is STUDENT."""
    teacher, student = encoder(layers, width, 4 * width, length), encoder(*STUDENT, length)
    if work in ("fine-tuning", "logits"):
        return (6 if work == "fine-tuning" else 2) * teacher
    if work == "answers":
        return 2 * student
    if work == "prediction, later epochs":
        return 6 * student
    projection = 0 if work.startswith("prediction") else (STUDENT[0] + 1) * STUDENT[1] * width * length
    return 2 * teacher + 6 * (student + projection)


def matrix_peak(here, size=None, seconds=3.0):
    """Operations a second of the fastest product of two matrices on this device in this precision."""
    size = size or (2048 if here.device.type == "cpu" else 8192)
    a, b = torch.randn(2, size, size, device=here.device).to(here.dtype)
    best, stop = float("inf"), time.monotonic() + seconds
    while time.monotonic() < stop:
        started = time.monotonic()
        product = a @ b
        product[0, 0].item()  # waits for the device
        best = min(best, time.monotonic() - started)
    return 2 * size**3 / best
