"""Stages 3 and 4 against the reference's way: examples a second, memory, and the share of the machine's peak.

Reads:  a task's train.tsv (SST-2), an epoch file of stage 2 made with --max_seq_len 128, a vocabulary
Prints: a table in Markdown; weights are random, the work is the real one

    python tests/benchmarks/distillation.py --train_tsv SST-2/train.tsv --epoch 2_pregenerate_data --vocab vocab.txt

Each measurement is a process of its own; the ways take turns and the medians of the rounds count. Share of the
peak: the time that the arithmetic of real tokens would take at the pace of the fastest product of two large matrices
(in --precision; an int8 teacher's in int8), divided by the time that it took.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np  # noqa: E402  (the path above comes first)
import slow_distillation  # noqa: E402
import torch  # noqa: E402
from measuring import STUDENT, evenly, int8_peak, matrix_peak, operations, train  # noqa: E402

from transformer import processes  # noqa: E402
from transformer.data import SequencesBuilder, sorted_batches, token_batches  # noqa: E402
from transformer.distillation import PredictionLearner, TransformerLearner  # noqa: E402
from transformer.epochs import pregenerated_epochs, read_epoch  # noqa: E402
from transformer.evaluation import Evaluator  # noqa: E402
from transformer.glue import TaskFile  # noqa: E402
from transformer.modeling import BertConfig, TinyBertForSequenceClassification  # noqa: E402
from transformer.own_tasks import find_task  # noqa: E402
from transformer.quantization import set_precision  # noqa: E402
from transformer.settings import Lengths  # noqa: E402
from transformer.teacher_states import TeacherStates  # noqa: E402
from transformer.tokenization import BertTokenizer, load_vocab  # noqa: E402

BATCH, LENGTH = 32, 128
KEPT, EPOCHS = "intermediate, 3 epochs of kept states", 3  # --teacher_states, the default's number of epochs
WORKS = ("intermediate", KEPT, "prediction, first epoch", "prediction, later epochs", "general")
INT8 = "ours, int8 teacher"  # --teacher_precision int8
WAYS = ("ours", INT8, "reference")


def make_models(args):
    torch.manual_seed(1)
    sizes = STUDENT, (args.layers, args.width, 4 * args.width)
    return [
        TinyBertForSequenceClassification(
            BertConfig(
                num_hidden_layers=layers,
                hidden_size=width,
                intermediate_size=inner,
                num_attention_heads=args.heads,
                fit_size=args.width if width == 312 else None,
            )
        )
        for layers, width, inner in sizes
    ]


def read_data(args, work):
    tokenizer = BertTokenizer(load_vocab(args.vocab))
    if work == "general":
        path, metrics = pregenerated_epochs(args.epoch)[0]
        return read_epoch(path, metrics, tokenizer, LENGTH)
    task = find_task("SST-2")
    return task.kind.encode(TaskFile(args.train_tsv, task), tokenizer, Lengths(LENGTH), task.labels)


def start(args, teacher_precision=None):
    return processes.start(1, args.precision, args.no_cuda, teacher_precision=teacher_precision)


def reference_rate(args, work, data):
    """Examples a second of the reference's way, which knows float32 only."""
    slow_distillation.slow_down()
    here = start(args)
    student, teacher = (model.to(here.device) for model in make_models(args))
    losses = {"general": slow_distillation.general_loss, "intermediate": slow_distillation.transformer_loss}
    loss_of = losses.get(work.split(",")[0], slow_distillation.prediction_loss)
    rows = np.random.default_rng(3).permutation(len(data))[: BATCH * (args.slow_steps + 1)].reshape(-1, BATCH)
    padded = replace(data, pad_to=LENGTH)
    batches = (here.to_device(padded.batch(indices)) for indices in rows)
    return slow_distillation.examples_per_second(loss_of, student, teacher, batches), LENGTH


def our_rate(args, work, data, folder, teacher_precision=None):
    """Examples a second of the suite's own loop, the first steps not counted; and the mean length of an example.
    `folder`: for the teacher's states."""
    here = start(args, teacher_precision)
    student, teacher = (model.to(here.device) for model in make_models(args))
    if teacher_precision:
        set_precision(teacher, here)
    seconds_of_teacher = 0.0  # an example
    if work.startswith("prediction"):
        if work.endswith("first epoch"):
            evaluator, tokens = Evaluator(BATCH, here), BATCH * data.lengths.max()
            batches = evenly(token_batches(data.lengths, tokens), args.steps)
            for _ in range(2):  # as in training, the first time is not counted
                started = time.monotonic()
                for indices in batches:
                    evaluator.run(teacher.eval(), data.batch(indices)).cpu()
            seconds_of_teacher = (time.monotonic() - started) / sum(map(len, batches))
        learner = PredictionLearner(student, torch.zeros(len(data), 2, device=here.device))
    else:
        learner = TransformerLearner(student, teacher)
        if work == KEPT:
            data, seconds_of_teacher = keep_states(learner, data, args.steps, here, folder)
    entry, _ = train(learner, data, here, args.steps, BATCH, args.compile)
    length = entry["tokens_per_second"] / entry["examples_per_second"]
    return 1 / (1 / entry["examples_per_second"] + seconds_of_teacher), length


def keep_states(learner, data, steps, here, folder):
    """The rows of `steps` batches with their states, as --teacher_states keeps them, and the seconds that an epoch's
    example needs for that, measured on batches of all lengths."""
    rows = np.concatenate(evenly(sorted_batches(data.lengths, BATCH), steps))
    builder = SequencesBuilder(learner.teacher.config.vocab_size)
    for start, end, first in zip(data.offsets[rows], data.offsets[rows + 1], data.first_lengths[rows], strict=True):
        builder.add(data.ids[start:end], first)
    chosen = builder.build()
    for name in ("first", "second"):  # as in training, the first time is not counted
        some = TeacherStates(Path(folder) / name, learner, data, BATCH)
        some.batches = evenly(some.batches, steps)
        started = time.monotonic()
        some.make(here)
        seconds = time.monotonic() - started
    states = TeacherStates(Path(folder) / "kept", learner, chosen, BATCH)
    states.make(here)
    return replace(chosen, states=states), seconds / sum(map(len, some.batches)) / EPOCHS


def measure(args, way, work):
    """In a process of its own: print one measurement as JSON."""
    data = read_data(args, work)
    if way == "reference":
        rate, length = reference_rate(args, work, data)
    else:
        with tempfile.TemporaryDirectory() as folder:
            rate, length = our_rate(args, work, data, folder, "int8" if way == INT8 else None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if torch.cuda.is_available() and not args.no_cuda:
        peak = torch.cuda.max_memory_allocated()
    print(json.dumps({"rate": rate, "length": length, "memory": peak / 1e9}))


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_tsv", type=Path, required=True)
    parser.add_argument("--epoch", type=Path, required=True, help="folder of stage 2")
    parser.add_argument("--vocab", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=12, help="of the teacher")
    parser.add_argument("--width", type=int, default=768, help="of the teacher")
    parser.add_argument("--heads", type=int, default=12, help="of both")
    parser.add_argument("--steps", type=int, default=12, help="steps of a measurement of ours, done twice")
    parser.add_argument("--slow_steps", type=int, default=2, help="steps of a measurement of the reference's way")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--works", nargs="+", choices=WORKS, default=WORKS)
    parser.add_argument("--precision", default="fp32", choices=["auto", "fp32", "bf16", "fp16"])
    parser.add_argument("--no_cuda", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--one", nargs=2, metavar=("WAY", "WORK"), help="only this measurement, as JSON")
    return parser.parse_args()


def main():
    args = parse_args()
    if args.one:
        return measure(args, *args.one)
    ways = [way for way in WAYS if way != INT8 or args.no_cuda or not torch.cuda.is_available()]
    found = {(way, work): [] for work in args.works for way in ways}
    for _ in range(args.rounds):
        for way, work in found:
            command = [sys.executable, *sys.argv, "--one", way, work]
            output = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=os.environ).stdout
            found[way, work].append(json.loads(output.splitlines()[-1]))
    here = start(args)
    peaks = dict.fromkeys(ways, matrix_peak(here))
    if INT8 in ways:
        peaks[INT8] = int8_peak()
    told = ", ".join(f"{way} {peak / 1e9:.0f}" for way, peak in peaks.items())
    print(f"matrix peaks, GFLOP/s, on {here}: {told}; {torch.get_num_threads()} threads, {args.rounds} rounds\n")
    print("| work | way | examples/s | times the reference's | share of the peak | peak memory, GB |")
    print("|---|---|---|---|---|---|")
    for work in args.works:
        slow = statistics.median(run["rate"] for run in found["reference", work])
        length = statistics.median(run["length"] for run in found["ours", work])
        for way in ways:
            rate = statistics.median(run["rate"] for run in found[way, work])
            memory = max(run["memory"] for run in found[way, work])
            # A teacher in int8 has the int8 peak, for its attention's products too; the student has that of "ours".
            teacher, student = operations(args.layers, args.width, work, length)
            teacher /= EPOCHS if work == KEPT else 1
            share = rate * (teacher / peaks[way] + student / peaks["ours"])
            print(f"| {work} | {way} | {rate:.1f} | {rate / slow:.1f} | {share:.0%} | {memory:.2f} |")


if __name__ == "__main__":
    main()
