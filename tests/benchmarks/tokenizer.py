"""Tokenizing on one core: ours against the slow way and the Rust library, the same text in the same run.

Reads:  vocabularies of uncased BERTs (a token a line) and text files; a Chinese text is made up when none is given
Prints: a table, a row a text: speed, ratios, peak memory, and the lines whose ids differ from ours

    python tests/benchmarks/tokenizer.py --vocab vocab.txt --text SST-2/train.tsv wikitext.txt --chinese_vocab zh.txt

Speeds are medians of rounds, in CPU seconds. In a round each way takes its turn on all lines, ours with empty caches.
The Rust library (the package `tokenizers`, left out where it is not installed) runs on one thread, in whichever of its
three ways is fastest. Peak memory is that of a fresh process for each way, vocabulary and text included.
"""

import argparse
import importlib.metadata
import importlib.util
import multiprocessing
import os
import platform
import random
import resource
import statistics
import sys
import time
from itertools import accumulate
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from slow_ways import SlowBertTokenizer  # noqa: E402  (the path above comes first)

from transformer.tokenization import SPECIAL_TOKENS, BertTokenizer, load_vocab  # noqa: E402

MADE_UP = "Chinese, made up"
LINES_PER_BATCH = 1000
COLUMNS = (
    "text",
    "MB",
    "lines",
    "ours MB/s",
    "slow MB/s",
    "Rust MB/s",
    "ours/slow",
    "ours/Rust",
    "peak MB ours",
    "peak MB slow",
    "peak MB Rust",
    "lines unlike slow",
    "lines unlike Rust",
)


def chinese_lines(vocab, megabytes, seed=13):
    """Return sentences of 10 to 60 characters without spaces: Chinese characters by Zipf's law, in the vocabulary's
    order, with commas, full stops, numbers and a few Latin words."""
    rng = random.Random(seed)
    characters = [token for token in vocab if len(token) == 1 and "\u4e00" <= token <= "\u9fff"]
    latin_words = [token for token in vocab if token.isascii() and token.isalpha() and len(token) > 2]
    weights = list(accumulate(1 / rank for rank in range(1, len(characters) + 1)))
    lines, size = [], 0
    while size < megabytes * 1e6:
        sentence, end = rng.choices(characters, cum_weights=weights, k=rng.randint(10, 60)), rng.randint(5, 15)
        while end < len(sentence):
            sentence[end] = rng.choices(["，", str(rng.randint(1, 2025)), rng.choice(latin_words)], [8, 1, 1])[0]
            end += rng.randint(5, 15)
        lines.append("".join(sentence) + "。")
        size += len(lines[-1].encode()) + 1
    return lines


def read_work(vocab_path, text, megabytes):
    """Return the vocabulary and the lines of one row of the table."""
    vocab = load_vocab(vocab_path)
    if text == MADE_UP:
        return vocab, chinese_lines(vocab, megabytes)
    return vocab, Path(text).read_text(encoding="utf-8").split("\n")


def rust_tokenizer(vocab):
    """Return the Rust library's BERT tokenizer, with one thread."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Imported here: the memory of the other ways is measured without it.
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    rust = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    rust.normalizer = normalizers.BertNormalizer(lowercase=True)
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    rust.add_special_tokens(list(SPECIAL_TOKENS.values()))
    return rust


def ours(vocab):
    tokenizer = BertTokenizer(vocab)
    return lambda lines: map(tokenizer.ids, lines)


def slow(vocab):
    tokenizer = SlowBertTokenizer(vocab)
    return lambda lines: map(tokenizer.ids, lines)


def encode(vocab):
    rust = rust_tokenizer(vocab)
    return lambda lines: (rust.encode(line, add_special_tokens=False).ids for line in lines)


def encode_batch(vocab):
    rust = rust_tokenizer(vocab)
    return lambda lines: (encoding.ids for encoding in rust.encode_batch(lines, add_special_tokens=False))


def encode_batch_fast(vocab):
    """Without offsets, and in batches of a size that suits the processor's cache."""
    rust = rust_tokenizer(vocab)

    def way(lines):
        for start in range(0, len(lines), LINES_PER_BATCH):
            batch = lines[start : start + LINES_PER_BATCH]
            yield from (encoding.ids for encoding in rust.encode_batch_fast(batch, add_special_tokens=False))

    return way


RUST_WAYS = [encode, encode_batch, encode_batch_fast] if importlib.util.find_spec("tokenizers") else []
WAYS = [ours, slow, *RUST_WAYS]  # each takes a vocabulary and returns a function from lines to an iterator of their ids


def seconds(way, lines):
    """Return the CPU seconds that `way` takes for all lines; their ids are thrown away."""
    start = time.process_time()
    for _ in way(lines):
        pass
    return time.process_time() - start


def megabytes_per_second(vocab, lines, rounds):
    """Return `{way: median speed}`; the ways take turns, so that a busy machine slows all of them."""
    taken = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            taken[way].append(seconds(way(vocab), lines))
    return {way: size_of(lines) / statistics.median(times) for way, times in taken.items()}


def size_of(lines):
    """Return the size of the text in MB."""
    return sum(len(line.encode()) + 1 for line in lines) / 1e6


def peak_memory(work, way):
    """Return this process's peak memory in MB after `way` took all lines; for a fresh process."""
    vocab, lines = read_work(*work)
    seconds(way(vocab), lines)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def peak_memories(work):
    """Return `{way: peak memory in MB}`."""
    # On Linux a new process inherits its parent's peak, so this has to run before the parent reads any text.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return {way: pool.apply(peak_memory, (work, way)) for way in WAYS}


def lines_unlike_ours(vocab, lines):
    """Return `{way: how many lines have other ids than ours}`."""
    expected = list(ours(vocab)(lines))
    return {way: sum(a != b for a, b in zip(expected, way(vocab)(lines), strict=True)) for way in WAYS}


def row(work, peak, rounds):
    """Return the cells of one text, and the Rust library's fastest way or None."""
    vocab, lines = read_work(*work)
    unlike, speed = lines_unlike_ours(vocab, lines), megabytes_per_second(vocab, lines, rounds)
    cells = {
        "text": "/".join(Path(work[1]).parts[-2:]),
        "MB": f"{size_of(lines):.2f}",
        "lines": f"{len(lines):,}",
        "ours MB/s": f"{speed[ours]:.2f}",
        "peak MB ours": f"{peak[ours]:.0f}",
    }
    fastest = max(RUST_WAYS, key=speed.get, default=None)
    for name, way in ("slow", slow), ("Rust", fastest):
        if way:
            cells |= {
                f"{name} MB/s": f"{speed[way]:.2f}",
                f"ours/{name}": f"{speed[ours] / speed[way]:.1f}",
                f"peak MB {name}": f"{peak[way]:.0f}",
                f"lines unlike {name}": f"{unlike[way]:,}",
            }
    return cells, fastest


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", help="vocabulary for --text")
    parser.add_argument("--text", nargs="+", default=[], help="text files, tokenized line by line")
    parser.add_argument("--chinese_vocab", help="vocabulary for the Chinese text")
    parser.add_argument("--chinese_text", nargs="+", default=[MADE_UP], help="text files in place of made-up Chinese")
    parser.add_argument("--chinese_mb", type=float, default=3, help="size of the made-up Chinese text in MB")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each way, of which the median counts")
    args = parser.parse_args()
    if bool(args.vocab) != bool(args.text):
        parser.error("--vocab and --text belong together")
    if not (args.text or args.chinese_vocab):
        parser.error("nothing to measure: give --vocab and --text, or --chinese_vocab")
    return args


def main():
    args = parse_args()
    works = [(args.vocab, text, 0) for text in args.text]
    works += [(args.chinese_vocab, text, args.chinese_mb) for text in args.chinese_text if args.chinese_vocab]
    peaks = [peak_memories(work) for work in works]

    rust = f"tokenizers {importlib.metadata.version('tokenizers')}" if RUST_WAYS else "no tokenizers"
    print(f"Python {platform.python_version()}, {rust}, {args.rounds} rounds\n")
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|", flush=True)
    fastest = []
    for work, peak in zip(works, peaks, strict=True):
        cells, way = row(work, peak, args.rounds)
        fastest += [way.__name__] if way else []
        print("| " + " | ".join(cells.get(column, "") for column in COLUMNS) + " |", flush=True)
    if fastest:
        print(f"\nThe Rust library's fastest way, text by text: {', '.join(fastest)}.")


if __name__ == "__main__":
    main()
