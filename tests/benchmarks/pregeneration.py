"""Stage 2 against the reference's way, on one process and on two; its memory as the corpus grows; loading its epochs.

Reads:  corpora (a sentence a line, an empty line between documents) and a BERT's vocabulary (a token a line)
Prints: three tables in Markdown

    python tests/benchmarks/pregeneration.py --corpus wikitext_documents.txt --vocab vocab.txt --growth 2 20 200

The ways take turns, each a process of its own, start included; the medians of the rounds count. Memory is the sum over
a way's processes of what is theirs alone and their share of what they have in common (PSS; Linux only). The corpora,
--size and --growth in MB, are the documents of --corpus, shuffled anew as often as it takes.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402  (the path above comes first)

from transformer.epochs import pregenerated_epochs, read_epoch, vocabulary_digest  # noqa: E402
from transformer.tokenization import BertTokenizer  # noqa: E402


def measure(command):
    """Run a command; returns (seconds, peak memory of its processes in MB, how many processes at most)."""
    started, peak, most = time.monotonic(), 0, 0
    process = subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.DEVNULL)
    while process.poll() is None:
        pids = [process.pid, *children(process.pid)]
        peak, most = max(peak, sum(map(share_of_memory, pids))), max(most, len(pids))
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.25)  # looking oftener takes time from what is measured
    if process.returncode:
        raise SystemExit(f"{command[0]} ended with status {process.returncode}")
    return time.monotonic() - started, peak / 1e6, most


def children(pid):
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def share_of_memory(pid):
    try:
        [pss] = [line for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if line.startswith("Pss:")]
        return int(pss.split()[1]) * 1024
    except (OSError, ValueError):
        return 0


def table(columns, rows):
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def ours(corpus, folder, output, *flags):
    return [
        ROOT / "pregenerate_training_data.py",
        "--train_corpus",
        corpus,
        "--bert_model",
        folder,
        "--output_dir",
        output,
        "--epochs_to_generate",
        1,
        "--overwrite_output",
        *flags,
    ]


def speed_table(corpus, vocab, folder, rounds):
    """Ours against the reference's way on the same corpus."""
    ways = {
        "the reference's way": [Path(__file__).with_name("slow_pregeneration.py"), corpus, vocab, folder / "slow.json"],
        "one process": ours(corpus, folder, folder / "one"),
        "two processes": ours(corpus, folder, folder / "two", "--num_workers", 2),
        "one process, packed": ours(corpus, folder, folder / "packed", "--packed"),
        "two processes, packed": ours(corpus, folder, folder / "packed_two", "--packed", "--num_workers", 2),
    }
    runs = {name: [] for name in ways}
    for _ in range(rounds):
        for name, command in ways.items():
            runs[name].append(measure(command))
    megabytes = corpus.stat().st_size / 1e6
    seconds = {name: statistics.median(run[0] for run in found) for name, found in runs.items()}
    slow, one = seconds["the reference's way"], seconds["one process"]
    rows = [
        (
            name,
            f"{megabytes:.1f}",
            f"{taken:.2f}",
            f"{megabytes / taken:.2f}",
            f"{slow / taken:.1f}",
            f"{one / taken:.2f}",
            f"{max(run[1] for run in runs[name]):.0f}",
        )
        for name, taken in seconds.items()
    ]
    table(("way", "MB", "seconds", "MB/s", "times the reference's", "times one process's", "peak MB"), rows)
    assert (folder / "one/epoch_0.json").read_bytes() == (folder / "two/epoch_0.json").read_bytes()
    json_size = (folder / "one" / "epoch_0.json").stat().st_size
    packed_size = sum(path.stat().st_size for path in (folder / "packed").glob("*.npy"))
    print(f"JSON {json_size / 1e6:.1f} MB, packed {packed_size / 1e6:.1f} MB: 1/{json_size / packed_size:.2f}\n")


def grow(corpus, path, megabytes):
    """Write a corpus of this size from the documents of another one."""
    documents = [text for text in corpus.read_text(encoding="utf-8").split("\n\n") if text.strip()]
    rng = random.Random(megabytes)
    with open(path, "w", encoding="utf-8") as file:
        while file.tell() < megabytes * 1e6:
            file.write("\n\n".join(rng.sample(documents, min(len(documents), 20))) + "\n\n")
    return path


def growth_table(corpus, folder, sizes):
    """Time and memory for corpora of several sizes."""
    rows = []
    for size in sizes:
        path = grow(corpus, folder / "grown.txt", size)
        for flags in ([], ["--reduce_memory"], ["--num_workers", 2, "--reduce_memory", "--packed"]):
            seconds, peak, _ = measure(ours(path, folder, folder / "grown", *flags))
            megabytes = path.stat().st_size / 1e6
            rows.append(
                (
                    f"{megabytes:.0f}",
                    " ".join(map(str, flags)),
                    f"{seconds:.1f}",
                    f"{megabytes / seconds:.1f}",
                    f"{peak:.0f}",
                )
            )
    table(("corpus, MB", "flags", "seconds", "MB/s", "peak MB"), rows)


def loading_table(folder, count):
    """Seconds until an epoch of many sequences can be trained on: the packed epoch repeated until it is as long."""
    tokenizer = BertTokenizer.from_pretrained(folder)
    packed, wide = folder / "packed", folder / "wide"
    wide.mkdir()
    ids, rows = np.load(packed / "epoch_0_ids.npy"), np.load(packed / "epoch_0_sequences.npy")
    times = -(-count // len(rows))
    np.save(wide / "epoch_0_ids.npy", np.tile(ids, times))
    np.save(wide / "epoch_0_sequences.npy", np.tile(rows, times))
    metrics = {"num_training_examples": times * len(rows), "max_seq_len": 128}
    text = json.dumps({**metrics, "vocabulary": vocabulary_digest(tokenizer)})
    (wide / "epoch_0_metrics.json").write_text(text, encoding="utf-8")
    text = (folder / "one" / "epoch_0.json").read_bytes()
    (folder / "long").mkdir()
    with open(folder / "long" / "epoch_0.json", "wb") as file:
        for _ in range(times):
            file.write(text)
    (folder / "long" / "epoch_0_metrics.json").write_text(json.dumps(metrics), encoding="utf-8")

    import torch  # noqa: F401  (its own loading is not what is measured)

    def load(place):
        started = time.monotonic()
        [(path, found)] = pregenerated_epochs(place)
        sequences = read_epoch(path, found, tokenizer, 128)
        sequences.batch(np.arange(0, len(sequences), len(sequences) // 32))
        return time.monotonic() - started

    rows = [
        ("packed", f"{load(wide):.2f}"),
        ("JSON", f"{load(folder / 'long'):.2f}"),
    ]
    table((f"{metrics['num_training_examples']:,} sequences", "seconds to the first batch"), rows)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="text: a sentence a line, documents apart")
    parser.add_argument("--vocab", type=Path, required=True, help="vocabulary of an uncased BERT")
    parser.add_argument("--size", type=int, default=12, help="MB of the corpus that all ways read")
    parser.add_argument("--growth", type=int, nargs="*", default=[2, 20], help="sizes of the grown corpora in MB")
    parser.add_argument("--sequences", type=int, default=1_000_000, help="sequences of the epoch that is loaded")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each way")
    return parser.parse_args()


def main():
    args = parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "vocab.txt").write_bytes(args.vocab.read_bytes())
        speed_table(grow(args.corpus, folder / "corpus.txt", args.size), args.vocab, folder, args.rounds)
        growth_table(args.corpus, folder, args.growth)
        loading_table(folder, args.sequences)


if __name__ == "__main__":
    main()
