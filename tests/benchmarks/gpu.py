"""Every path of the suite that a GPU computes: speed, share of the device's matrix peak, peak memory, same results.

Prints: tables in Markdown, row by row; needs no data: weights are random, BERT-base teaches the 4 x 312 student, token
        ids are made up, their lengths are those of SST-2 (13 tokens on average) and 128 in general distillation

    python tests/benchmarks/gpu.py --json gpu.json             # checks, then the rows, the most important first
    python tests/benchmarks/gpu.py --rows general --profile    # what a step of these rows spends its time on
    python tests/benchmarks/gpu.py --no_cuda --quick           # tiny models, to try this script anywhere

The share of the peak counts the arithmetic of real tokens only, against the fastest product of two large matrices on
this device in the row's precision (float32 with TF32). "Setting up" is what the first steps took longer than the later
ones: with --compile, the compilation. Exit status 1: a check failed, or a row ended with an error.
"""

import argparse
import functools
import gc
import json
import operator
import sys
import time
import traceback
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import gpu_checks  # noqa: E402  (the path above comes first)
import measuring  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from measuring import STUDENT, encoder, matrix_peak, operations, train  # noqa: E402

from transformer import processes  # noqa: E402
from transformer.data import SequencesBuilder  # noqa: E402
from transformer.distillation import GoldLearner, PredictionLearner, TransformerLearner, relation_loss  # noqa: E402
from transformer.evaluation import Evaluator  # noqa: E402
from transformer.history import peak_memory  # noqa: E402
from transformer.modeling import BertConfig, BertForMaskedLM, TinyBertForSequenceClassification  # noqa: E402
from transformer.proposals import CandidateProposer, replaceable  # noqa: E402
from transformer.settings import Matching  # noqa: E402
from transformer.tokenization import SPECIAL_TOKENS, BertTokenizer  # noqa: E402

HEADS, FULL_LENGTH, CANDIDATES, QUICK_BATCH = 12, 128, 15, 8
COLUMNS = "work", "batch", "precision", "compile", "examples/s", "tokens/s", "peak share", "memory, GB", "setting up, s"


class Row(NamedTuple):
    """One measurement."""

    work: str
    batch: int
    precision: str
    compile: bool = False

    @property
    def name(self):
        return f"{self.work}, {self.batch}, {self.precision}{', compiled' if self.compile else ''}"


# By importance: time may end before the last ones.
ROWS = [
    Row("general", 32, "bf16"),
    Row("general", 256, "bf16"),
    Row("general", 256, "bf16", compile=True),
    Row("intermediate", 32, "bf16"),
    Row("prediction, first epoch", 32, "bf16"),
    Row("prediction, later epochs", 32, "bf16"),
    Row("logits", 32, "bf16"),
    Row("augmentation", 32, "fp32"),
    Row("fine-tuning", 32, "bf16"),
    Row("answers", 32, "bf16"),
    Row("general", 32, "fp32"),
    Row("general", 256, "fp32"),
    Row("general, relations", 256, "bf16"),
    Row("augmentation", 32, "bf16"),
    Row("intermediate", 256, "bf16"),
    Row("logits", 256, "bf16"),
    Row("prediction, later epochs", 256, "bf16"),
    Row("fine-tuning", 256, "bf16"),
    Row("answers", 256, "bf16"),
    *(Row(work, 32, "fp32") for work in ("intermediate", "prediction, later epochs", "logits", "fine-tuning")),
    Row("general", 32, "bf16", compile=True),
    Row("intermediate", 32, "bf16", compile=True),
    Row("prediction, later epochs", 32, "bf16", compile=True),
    Row("general", 256, "fp16"),
    Row("fine-tuning", 32, "bf16", compile=True),
    Row("general", 256, "fp32", compile=True),
    Row("general, relations", 256, "bf16", compile=True),
    Row("answers", 32, "fp32"),
    Row("intermediate", 32, "fp32", compile=True),
    Row("prediction, later epochs", 32, "fp32", compile=True),
    Row("fine-tuning", 32, "fp32", compile=True),
]


class Sizes(NamedTuple):
    """How large the work is."""

    layers: int = 12  # of the teacher
    width: int = 768
    student: tuple = STUDENT
    vocabulary: int = 30522
    steps: int = 40  # a row trains twice as many; the second half counts
    examples: int = 20_000  # for the logits
    texts: int = 500  # for augmentation
    length: int = FULL_LENGTH  # of a sequence of general distillation


QUICK = Sizes(2, 24, (2, 12, 20), 500, steps=3, examples=70, texts=5, length=17)


def bert(kind, layers, width, inner, vocabulary, **others):
    """A random model in training mode."""
    sizes = {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": inner, "vocab_size": vocabulary}
    return kind(BertConfig(**sizes, num_attention_heads=HEADS, **others))


def make_teacher(sizes, kind=TinyBertForSequenceClassification):
    torch.manual_seed(1)
    return bert(kind, sizes.layers, sizes.width, 4 * sizes.width, sizes.vocabulary)


def make_student(sizes):
    torch.manual_seed(2)
    return bert(TinyBertForSequenceClassification, *sizes.student, sizes.vocabulary, fit_size=sizes.width)


def task_lengths(count):
    """Lengths of sequences like those of SST-2: 13 tokens on average, [CLS] and [SEP] among them, at most 66."""
    return np.clip(3 + np.random.default_rng(3).gamma(1.3, 8.0, count), 3, 66).astype(int)


def make_data(lengths, vocabulary):
    """Sequences of made-up ids with labels 0 and 1."""
    rng, builder = np.random.default_rng(4), SequencesBuilder(vocabulary)
    for length in lengths:
        builder.add(rng.integers(5, vocabulary, length).tolist(), length, label=rng.integers(2))
    return builder.build()


def train_row(row, sizes, here):
    """A row that trains, by its second half. Returns (examples a second, tokens an example, seconds of setting up)."""
    student, teacher = make_student(sizes).to(here.device), make_teacher(sizes).to(here.device)
    steps = max(sizes.steps // (4 if here.device.type == "cuda" and row.batch > 32 else 1), 3)
    count = steps * row.batch
    lengths = np.full(count, sizes.length) if row.work.startswith("general") else task_lengths(count)
    data = make_data(lengths, sizes.vocabulary)
    if row.work == "fine-tuning":
        learner = GoldLearner(teacher, F.cross_entropy)
    elif row.work.startswith("prediction"):
        learner = PredictionLearner(student, torch.zeros(len(data), 2, device=here.device))
    elif row.work == "general, relations":
        matching = Matching(attention_loss="relations")
        learner = TransformerLearner(student, here.narrow(teacher), relation_loss, matching=matching)
    else:
        learner = TransformerLearner(student, here.narrow(teacher))
    entry, setting_up = train(learner, data, here, steps, row.batch, row.compile)
    rate, length = entry["examples_per_second"], entry["tokens_per_second"] / entry["examples_per_second"]
    if row.work == "prediction, first epoch":  # in which the teacher answers every example once
        rate = 1 / (1 / rate + 1 / answer_rate(teacher, data, row, here))
    return rate, length, setting_up


def answer_rate(model, data, row, here):
    """Examples a second that a model answers; the first batches do not count."""
    evaluator = Evaluator(row.batch, here)
    evaluator.outputs(model, data, np.arange(min(4 * row.batch, len(data))))
    with measuring.part(len(data)) as part:
        evaluator.outputs(model, data, by_tokens=row.work != "answers")  # as the teacher's are computed
    return len(data) / part.seconds


def answer_row(row, sizes, here):
    """A row in which the teacher ("logits") or the student ("answers") answers. Returns what `train_row` returns."""
    model = make_teacher(sizes) if row.work == "logits" else make_student(sizes)
    data = make_data(task_lengths(sizes.examples), sizes.vocabulary)
    return answer_rate(model.to(here.device), data, row, here), data.lengths.mean(), 0.0


class NoVectors:
    chinese_words = frozenset()

    def neighbours(self, words, count, device):
        return {word: [] for word in words}


def make_texts(sizes):
    """(tokenizer, texts) of made-up words; every second one is a stop word, as about in English."""
    letters = "bcdfghklmnprstvz"
    words = [f"{a}a{b}o{c}e{d}" for a in letters for b in letters for c in letters for d in letters]
    vocabulary = [*SPECIAL_TOKENS.values(), "the", *words][: sizes.vocabulary]
    rng = np.random.default_rng(5)
    texts = [
        " ".join("the" if rng.integers(2) else vocabulary[rng.integers(6, len(vocabulary))] for _ in range(length - 2))
        for length in task_lengths(sizes.texts)
    ]
    return BertTokenizer({word: index for index, word in enumerate(vocabulary)}), texts


def augmentation_row(row, sizes, here):
    """(rows a second, tokens of a row's masked pairs, 0), float32 without TF32, as in the script."""
    torch.set_float32_matmul_precision("highest")
    tokenizer, texts = make_texts(sizes)
    model = make_teacher(sizes, BertForMaskedLM).eval().to(here.device)
    propose = CandidateProposer(model, tokenizer, NoVectors(), CANDIDATES, here, row.batch).candidates
    propose(texts[: len(texts) // 5])
    distinct = set(texts)
    with measuring.part(len(distinct)) as part:
        propose(texts)
    return len(distinct) / part.seconds, sum(map(pair_tokens, distinct)) / len(distinct), 0.0


def pair_tokens(text):
    """Tokens of all masked pairs of a text of words of one piece."""
    words = text.split()
    return sum(map(replaceable, words)) * (2 * len(words) + 3)


def arithmetic(row, sizes, length):
    """Operations of one example of a row. An example of augmentation counts as its pairs, of 23 tokens on average."""
    if row.work != "augmentation":
        return sum(operations(sizes.layers, sizes.width, row.work, length))
    pair = encoder(sizes.layers, sizes.width, 4 * sizes.width, 23, first_only=True) + sizes.width * sizes.vocabulary
    return 2 * pair * length / 23


def run_row(row, sizes, no_cuda):
    """Measure one row: its cells by column."""
    here = start(row.precision, no_cuda)
    measure = {"logits": answer_row, "answers": answer_row, "augmentation": augmentation_row}.get(row.work, train_row)
    rate, length, setting_up = measure(row, sizes, here)
    share = rate * arithmetic(row, sizes, length) / peak_of(row.precision, no_cuda, sizes == QUICK)
    measured = rate, rate * length, share, peak_memory(here.device), setting_up
    return dict(zip(COLUMNS, (*row, *map(float, measured)), strict=True))


@functools.cache
def peak_of(precision, no_cuda, small):
    return matrix_peak(start(precision, no_cuda), *((256, 0.1) if small else ()))


def start(precision, no_cuda):
    """The device in a row's precision, with nothing left from the row before."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available() and not no_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return processes.start(1, precision, no_cuda)


def profile(row, rate, sizes, no_cuda):
    """Print what the device does in the measured part of a row, the longest kernels first. `rate`: without a profiler,
    which slows the host down, so that the share of the time in which the device works comes from both runs."""
    on_gpu = torch.cuda.is_available() and not no_cuda
    activity, kind = torch.profiler.ProfilerActivity, torch.autograd.DeviceType
    activities, kind = ([activity.CPU, activity.CUDA], kind.CUDA) if on_gpu else ([activity.CPU], kind.CPU)
    few = sizes._replace(steps=min(sizes.steps, 8), examples=20 * row.batch, texts=min(sizes.texts, 100))
    with measuring.profiling(torch.profiler.profile(activities=activities)) as part:
        run_row(row, few, no_cuda)
    time_of = operator.attrgetter("self_device_time_total" if on_gpu else "self_cpu_time_total")
    events = sorted((each for each in part.profiler.key_averages() if each.device_type == kind), key=time_of)[::-1]
    busy, calls = sum(map(time_of, events)) / 1e6, sum(each.count for each in events)
    batches = part.examples / row.batch
    print(
        f"\n{row.name}: a batch takes {1e3 * row.batch / rate:.2f} ms, its {calls / batches:.0f} kernels "
        f"{1e3 * busy / batches:.2f} ms: the device works {busy * rate / part.examples:.0%} of the time\n\n"
        "| ms a batch | share | calls a batch | kernel |\n|---|---|---|---|"
    )
    for each in events[:25]:
        share, milliseconds = time_of(each) / 1e6 / busy, time_of(each) / 1e3 / batches
        name = each.key[:120].replace("|", "/")
        print(f"| {milliseconds:.3f} | {share:.1%} | {each.count / batches:.1f} | {name} |", flush=True)
    print()


def show(cells):
    """A row of the table; numbers as precise as they are worth."""
    forms = {"examples/s": ",.0f", "tokens/s": ",.0f", "peak share": ".1%", "memory, GB": ".2f", "setting up, s": ".1f"}
    texts = (format(cells[column], forms.get(column, "")) if column in cells else "" for column in COLUMNS)
    return "| " + " | ".join(texts) + " |"


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    works = sorted({row.work for row in ROWS})
    parser.add_argument("--rows", nargs="+", choices=works, default=works, metavar="WORK", help=", ".join(works))
    parser.add_argument("--precision", nargs="+", choices=list(processes.PRECISIONS), help="only rows in these")
    parser.add_argument("--batch", nargs="+", type=int, help="only rows with these batch sizes")
    parser.add_argument("--compile", choices=["yes", "no"], help="only rows with or without it")
    parser.add_argument("--minutes", type=float, default=8.0, help="rows that would start later are left out")
    parser.add_argument("--no_check", action="store_true", help="only the rows")
    parser.add_argument("--check", action="store_true", help="only the checks: losses, resuming, candidates, start")
    parser.add_argument("--checks", nargs="+", default=[""], help="only checks whose names have one of these in them")
    parser.add_argument("--profile", action="store_true", help="after each row, what its time went into")
    parser.add_argument("--json", type=Path, help="write all figures here too")
    parser.add_argument("--quick", action="store_true", help="tiny models")
    parser.add_argument("--no_cuda", action="store_true")
    return parser.parse_args()


def chosen(args):
    for row in ROWS if not args.check else ():
        fits = row.work in args.rows and row.precision in (args.precision or processes.PRECISIONS)
        fits = fits and (not args.batch or row.batch in args.batch)
        if fits and (args.compile is None or row.compile == (args.compile == "yes")):
            yield row


def protected(function, *given):
    """(result, None), or (None, the last lines of the error): one failure must not cost the rest of the table."""
    try:
        return function(*given), None
    except Exception as error:
        lines = "".join(traceback.format_exception(error)).strip().splitlines()
        return None, " / ".join(line.strip() for line in lines[-6:])[-900:].replace("|", "/")


def main():
    args = parse_args()
    sizes, deadline = QUICK if args.quick else Sizes(), time.monotonic() + 60 * args.minutes
    device = "CPU" if args.no_cuda or not torch.cuda.is_available() else torch.cuda.get_device_name()
    print(f"{device}, torch {torch.__version__}\n", flush=True)
    found, failed = {"device": device, "torch": torch.__version__, "checks": [], "rows": [], "peaks": {}}, False

    if not args.no_check:
        print("| check | found | allowed | |\n|---|---|---|---|", flush=True)
        here = functools.partial(start, no_cuda=args.no_cuda)
        texts = functools.partial(make_texts, QUICK._replace(texts=40, vocabulary=4999))
        for name, check in gpu_checks.checks(here, args.quick, texts, NoVectors()):
            if not any(words in name for words in args.checks):
                continue
            if time.monotonic() > deadline - (0 if args.check else 30 * args.minutes):  # the rows need time too
                print(f"| {name} | left out: no time | | |", flush=True)
                continue
            result, error = protected(check)
            value, allowed = result or (f"failed: {error}", "")
            good = error is None and value <= allowed
            value = f"{value:.1e}" if error is None else value
            print(f"| {name} | {value} | {allowed} | {'PASS' if good else 'FAIL'} |", flush=True)
            found["checks"].append({"check": name, "found": value, "allowed": allowed, "good": good})
            failed |= not good

    rows = list(chosen(args))
    if args.quick:
        rows = [row._replace(batch=min(row.batch, QUICK_BATCH)) for row in rows]
    for precision in dict.fromkeys(row.precision for row in rows):
        peak, error = protected(peak_of, precision, args.no_cuda, args.quick)
        print(f"\nmatrix peak, {precision}: {error or f'{peak / 1e12:.2f} TFLOP/s'}", flush=True)
        found["peaks"][precision] = peak
    print("\n| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|", flush=True)
    for row in rows:
        cells, error = dict(zip(COLUMNS, row, strict=False)), None
        if time.monotonic() > deadline:
            note = "left out: no time"
        else:
            measured, error = protected(run_row, row, sizes, args.no_cuda)
            cells, note = measured or cells, f"failed: {error}"
            failed |= error is not None
        print(show(cells) if "examples/s" in cells else f"{show(cells)[:-11]}{note} |", flush=True)
        found["rows"].append(cells if "examples/s" in cells else cells | {"note": note})
        if args.profile and "examples/s" in cells:
            _, error = protected(profile, row, cells["examples/s"], sizes, args.no_cuda)
            print(f"profile failed: {error}" if error else "", flush=True)
        if args.json:
            args.json.write_text(json.dumps(found, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    return failed


if __name__ == "__main__":
    sys.exit(main())
