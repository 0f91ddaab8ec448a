"""Substitutes for words (stage 1), ours against the slow way, the same work in the same run.

Reads:  a task's train.tsv, whose rows are taken at even distances, and an uncased BERT vocabulary; the model's weights
        are random, the word vectors made up
Prints: a table, a row a piece of work: medians of rounds in wall seconds, their ratio, peak memory, and what differs

    python tests/benchmarks/augmentation.py --train_tsv SST-2/train.tsv --vocab teacher_model/vocab.txt

The two ways take turns, each in a process of its own: a busy machine slows both, and peak memory is each way's. Reading
vectors (the slow way of that once) and finding neighbours come in one process.
"""

import argparse
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np  # noqa: E402  (the path above comes first)
import torch  # noqa: E402
from slow_augmentation import slow_candidates, slow_neighbours, slow_vectors  # noqa: E402
from slow_distillation import slow_down  # noqa: E402

from transformer import processes  # noqa: E402
from transformer.glue import TaskFile  # noqa: E402
from transformer.history import peak_memory  # noqa: E402
from transformer.modeling import BertConfig, BertForMaskedLM  # noqa: E402
from transformer.own_tasks import find_task  # noqa: E402
from transformer.proposals import CandidateProposer  # noqa: E402
from transformer.tokenization import BertTokenizer, load_vocab  # noqa: E402
from transformer.vectors import WordVectors  # noqa: E402

COLUMNS = ("work", "ours", "slow", "ratio", "peak GB ours", "peak GB slow", "remarks")
VECTORS, WIDTH, SLOW_WORDS = 400_000, 100, 20


class NoVectors:
    chinese_words = frozenset()

    def neighbours(self, words, count, device):
        return {word: [] for word in words}


def prepare(args):
    """What both ways need: the device, a random model there, the tokenizer, the texts."""
    here = processes.start(1, args.precision, args.no_cuda)
    torch.set_float32_matmul_precision("highest")  # as the script sets it
    torch.set_num_threads(args.threads)
    tokenizer = BertTokenizer(load_vocab(args.vocab))
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=args.width,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        intermediate_size=4 * args.width,
    )
    texts = [row.texts[0] for row in TaskFile(args.train_tsv, find_task(args.task_name))]
    texts = texts[:: max(len(texts) // args.rows, 1)][: args.rows]
    return here, BertForMaskedLM(config).to(here.device).eval(), tokenizer, texts


def work(args, slow):
    """One round of one way: (seconds, {text: {word index: candidates}}, peak memory, sequences by precision)."""
    if not hasattr(work, "prepared"):
        if slow:
            slow_down()
        work.prepared = prepare(args)
    here, model, tokenizer, texts = work.prepared
    counts, start = {}, time.perf_counter()  # both ways end with their candidates here, not on the device
    if slow:
        found = slow_candidates(model, tokenizer, texts, args.M)
    else:
        proposer = CandidateProposer(model, tokenizer, NoVectors(), args.M, here, args.batch_size)
        counts = {torch.float32: 0, torch.float64: 0}

        def count(head, given, scores):
            counts[head.bias.dtype] += len(scores)

        hook = model.cls.predictions.register_forward_hook(count)
        found = {text: candidates for text, (_, candidates) in proposer.candidates(texts).items()}
        hook.remove()
    return time.perf_counter() - start, found, peak_memory(here.device), counts


def candidates_row(args):
    """The cells for the masked LM's candidates."""
    pools = [ProcessPoolExecutor(1, get_context("spawn")) for _ in range(2)]  # ours, slow
    rounds = [[pool.submit(work, args, slow).result() for slow, pool in enumerate(pools)] for _ in range(args.rounds)]
    for pool in pools:
        pool.shutdown()
    ours, slow = (statistics.median(way[0] for way in ways) for ways in zip(*rounds, strict=True))
    (_, found, our_peak, counts), (_, expected, slow_peak, _) = rounds[-1]
    words = [(text, index) for text in expected for index in expected[text]]
    unlike = [word for word in words if found[word[0]].get(word[1]) != expected[word[0]][word[1]]]
    others = sum(set(found[text].get(index, ())) != set(expected[text][index]) for text, index in unlike)
    # A wandering load falls on both ways of a round alike: the median of the ratios wanders less than the times.
    ratio = statistics.median(slow[0] / ours[0] for ours, slow in rounds)
    share = counts[torch.float64] / counts[torch.float32]
    return {
        "work": f"candidates, {args.rows} rows, {args.layers}x{args.width}",
        "ours": f"{ours:.1f} s",
        "slow": f"{slow:.1f} s",
        "ratio": f"{ratio:.1f}",
        "peak GB ours": f"{our_peak:.2f}",
        "peak GB slow": f"{slow_peak:.2f}",
        "remarks": f"{args.rows / ours:.1f} rows/s; {counts[torch.float32]} masked words, {share:.1%} ranked in "
        f"float64; {len(unlike)} of {len(words)} lists differ, {others} in their members",
    }


def write_vectors(path):
    """A text of random vectors as large as GloVe's."""
    rng = np.random.default_rng(3)
    rows = [[f"{number:.5g}" for number in row] for row in rng.normal(0, 0.4, (VECTORS // WIDTH, WIDTH))]
    with open(path, "w", encoding="utf-8") as file:
        for shift in range(WIDTH):  # the numbers of one block in turn make all the others
            file.writelines(f"w{shift}x{line} {' '.join(row[shift:] + row[:shift])}\n" for line, row in enumerate(rows))


def timed(function, *given):
    start = time.perf_counter()
    return function(*given), time.perf_counter() - start


def vectors_rows(args):
    """The cells for reading vectors and for neighbours."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vectors.txt"
        write_vectors(path)
        (words, vectors), slow_seconds = timed(slow_vectors, path)  # first: with malloc as it is
        processes.keep_freed_memory()  # as the script does
        read, runs = WordVectors(path), [timed(WordVectors, path)[1] for _ in range(args.rounds)]
        ours = statistics.median(runs)
    rows = range(7, len(words), len(words) // 1000)[:1000]
    names = [words[row] for row in rows]
    found, seconds = timed(read.neighbours, names, args.M)
    start = time.perf_counter()
    unlike = sum(slow_neighbours(words, vectors, row, args.M) != found[words[row]] for row in rows[:SLOW_WORDS])
    slow = (time.perf_counter() - start) / SLOW_WORDS
    size = f"{VECTORS:,} x {WIDTH}"
    yield {
        "work": f"reading vectors, {size}",
        "ours": f"{ours:.2f} s",
        "slow": f"{slow_seconds:.2f} s",
        "ratio": f"{slow_seconds / ours:.1f}",
        "remarks": "",
    }
    yield {
        "work": f"neighbours of a word, {size}",
        "ours": f"{seconds / len(names) * 1e3:.2f} ms",
        "slow": f"{slow * 1e3:.2f} ms",
        "ratio": f"{slow / seconds * len(names):.1f}",
        "remarks": f"ours of {len(names)} at once; {unlike} of {SLOW_WORDS} lists differ",
    }


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_tsv", required=True, help="rows to find candidates for")
    parser.add_argument("--task_name", default="SST-2", help="the task it is of")
    parser.add_argument("--vocab", required=True, help="vocabulary file of an uncased BERT")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--rows", type=int, default=24, help="rows, taken at even distances")
    parser.add_argument("--M", type=int, default=15, help="candidates a word")
    parser.add_argument("--batch_size", type=int, default=32, help="as of data_augmentation.py")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3, help="turns of each way; medians count")
    parser.add_argument("--no_cuda", action="store_true", help="stay on the CPU")
    parser.add_argument("--precision", default="fp32", choices=["auto", "fp32", "bf16", "fp16"], help="of ours")
    parser.add_argument("--no_vectors", action="store_true", help="the model only")
    return parser.parse_args()


def main():
    args = parse_args()
    print(f"torch {torch.__version__}, {args.threads} threads, {args.rounds} rounds\n")
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|", flush=True)
    for cells in (candidates_row(args), *(() if args.no_vectors else vectors_rows(args))):
        print("| " + " | ".join(cells.get(column, "") for column in COLUMNS) + " |", flush=True)


if __name__ == "__main__":
    main()
