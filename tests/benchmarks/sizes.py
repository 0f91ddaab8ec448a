"""Huge inputs: each must be worked off in time and memory that were set beforehand, or be refused in a line that names
the limit.

Prints: a table, a row an input: exit status, seconds of processor time, peak memory, the last line; then the
        violations; status 1 if there are any

    python tests/benchmarks/sizes.py
    python tests/benchmarks/sizes.py --only augment

The inputs are made in a temporary folder, one at a time; the models are the bundled sample's. Each script runs in a
process of its own, on one thread.
"""

import argparse
import gzip
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "1_pre_data" / "sample"
PEAK = 1.5e9  # bytes of resident memory
PATIENCE = 5  # times its limit on the clock, after which a run is killed
ADDRESSES = 8 << 30  # bytes; a run that goes far beyond PEAK ends before the machine suffers
SENTENCE = "the film is warm and the actors are great , but its plot is rather dull . "
CHINESE = "这部电影很好看，演员也不错。"


def repeated(text, size):
    """`text` over and over, `size` bytes in UTF-8 (about)."""
    return text * (size // len(text.encode()) + 1)


def pregenerate(folder, name, size, unit, before="", after="\n"):
    """The command for a corpus file of `size` bytes, `unit` over and over."""
    opener = gzip.open if name.endswith(".gz") else open
    with opener(folder / name, "wb", **({"compresslevel": 1} if name.endswith(".gz") else {})) as file:
        file.write(before.encode())
        block = repeated(unit, min(size, 1 << 20)).encode()
        for _ in range(size // len(block) + 1):
            file.write(block)
        file.write(f"{after}\n\n".encode())
        other = f"{SENTENCE}\n\n{SENTENCE}\n"
        file.write(b'{"text": "a film. a plot."}\n' if ".jsonl" in name else other.encode())
    flags = ["--train_corpus", folder / name, "--output_dir", folder / "out", "--bert_model", SAMPLE / "teacher"]
    return ["pregenerate_training_data.py", *flags, "--max_seq_len", 64, "--packed", "--epochs_to_generate", 1]


def augment(folder, rows, text, vectors=None, name="train.tsv", head="sentence\tlabel\n", end="\t1\n"):
    """The command for a task of so many rows with a long text."""
    task = folder / "glue" / "SST-2"
    task.mkdir(parents=True)
    (task / "dev.tsv").write_text("sentence\tlabel\na film\t1\nno film\t0\n")
    with open(task / name, "w", encoding="utf-8") as file:
        file.write(head)
        for number in range(rows):
            file.write(f"{number} {text}{end}")
    flags = ["--pretrained_bert_model", SAMPLE / "teacher", "--glove_embs", vectors or SAMPLE / "vectors.txt"]
    return ["data_augmentation.py", *flags, "--glue_dir", folder / "glue", "--task_name", "SST-2"]


def long_rows(folder):
    """The command that fine-tunes the sample's teacher on rows of 1 MB and reports on it."""
    augment(folder, 20, repeated(SENTENCE, MEGABYTE))
    data = folder / "glue" / "SST-2"
    (data / "dev.tsv").write_text((data / "train.tsv").read_text())
    flags = ["--data_dir", data, "--teacher_model", SAMPLE / "teacher", "--output_dir", folder / "teacher"]
    return ["task_distill.py", "--do_finetune", *flags, "--task_name", "SST-2", "--max_seq_length", 64]


def vector_line(folder):
    with open(folder / "vectors.txt", "wb") as file:
        file.write(b"film 0.5 0.25\nplot")
        for _ in range(400):
            file.write(b" 0.5" * 250_000)
        file.write(b"\n")
    return augment(folder, 3, SENTENCE, folder / "vectors.txt")


def vocabulary(folder):
    with open(folder / "vocab.txt", "w") as file:
        file.write("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
        for start in range(0, 30_000_000, 100_000):
            file.write("".join(f"w{number:08}\n" for number in range(start, start + 100_000)))
    command = pregenerate(folder, "corpus.txt", 1000, SENTENCE + "\n")
    command[command.index("--bert_model") + 1] = folder / "vocab.txt"
    return command


def epochs(folder):
    """The command for the sample's general distillation, after its training sequences are made."""
    made = [sys.executable, ROOT / "pregenerate_training_data.py", "--sample", "--output_dir", folder / "2"]
    subprocess.run([*made, "--limit", "50"], check=True, stdout=subprocess.DEVNULL)
    flags = ["--pregenerated_data", folder / "2", "--output_dir", folder / "3"]
    return ["general_distill.py", "--sample", *flags, "--num_train_epochs", "1e9", "--max_steps", 4]


MEGABYTE, LONG = 1_000_000, 80_000_000
# {name: (seconds, status, what its last line says, the command's maker)}
CASES = {
    "corpus: a line of 80 MB": (300, 0, "", lambda to: pregenerate(to, "a.txt", LONG, SENTENCE)),
    "corpus: a line of 80 MB, Chinese": (300, 0, "", lambda to: pregenerate(to, "a.txt", LONG, CHINESE)),
    "corpus: a word of 80 MB": (300, 0, "", lambda to: pregenerate(to, "a.txt", LONG, "a")),
    "corpus: a JSON text of 80 MB": (
        300,
        0,
        "",
        lambda to: pregenerate(to, "a.jsonl", LONG, SENTENCE, '{"text": "', '"}'),
    ),
    "corpus: a JSON text of 80 MB with one emoji, no sentence in it": (
        300,
        0,
        "",
        lambda to: pregenerate(to, "a.jsonl", LONG, "film ", '{"text": "\U0001f600', '"}'),
    ),
    "corpus: a JSON text of 120 MB": (
        60,
        2,
        "expected less than 100 MB",
        lambda to: pregenerate(to, "a.jsonl", 120_000_000, SENTENCE, '{"text": "', '"}'),
    ),
    "corpus: 400 MB of zeros in a small .txt.gz": (
        300,
        0,
        "",
        lambda to: pregenerate(to, "a.txt.gz", 400_000_000, "\0"),
    ),
    "corpus: 400 MB of zeros in a small .jsonl.gz": (
        60,
        2,
        "expected less than 100 MB",
        lambda to: pregenerate(to, "a.jsonl.gz", 400_000_000, "\0"),
    ),
    "corpus: 17 million documents of a word": (
        1200,
        0,
        "",
        lambda to: pregenerate(to, "a.txt", 102_000_000, "film\n\n"),
    ),
    "vocabulary of 300 MB": (30, 2, "expected a vocabulary of", vocabulary),
    "vectors: a line of 400 MB": (60, 2, "more than 8 MB", vector_line),
    "augment: a row of 1 MB": (60, 0, "", lambda to: augment(to, 1, repeated(SENTENCE, MEGABYTE))),
    "augment: 10 rows of 1 MB": (600, 0, "", lambda to: augment(to, 10, repeated(SENTENCE, MEGABYTE))),
    "augment: a row of 1 MB, Chinese": (60, 0, "", lambda to: augment(to, 1, repeated(CHINESE, MEGABYTE))),
    "augment: a row of 1 MB, one word": (60, 0, "", lambda to: augment(to, 1, repeated("a", MEGABYTE))),
    "augment: a row of 1 MB, marks": (60, 0, "", lambda to: augment(to, 1, repeated("\u0301\u0316", MEGABYTE))),
    "augment: a row of 400 MB": (
        60,
        2,
        "more than 16 MB",
        lambda to: augment(to, 1, repeated(SENTENCE, 400 * MEGABYTE)),
    ),
    "fine-tuning on 20 rows of 1 MB": (120, 0, "", long_rows),
    "distillation: 1e9 epochs, 4 steps": (60, 0, "", epochs),
}


def measured(command, seconds):
    """(exit status, seconds of processor time, peak resident bytes, the last line that it printed)."""

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as printed:
        start = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, *map(str, [ROOT / command[0], *command[1:]])],
            stdout=printed,
            stderr=subprocess.STDOUT,
            preexec_fn=limit,
            env=environment,
        )
        status = None
        while status is None:
            found, ended, used = os.wait4(process.pid, os.WNOHANG)
            if found:
                status = os.waitstatus_to_exitcode(ended)
            elif time.monotonic() - start > PATIENCE * seconds:
                process.kill()
                time.sleep(0.1)
            else:
                time.sleep(0.05)
        process.returncode = status
        taken = used.ru_utime + used.ru_stime  # not the clock's, which other programs on the machine slow down
        printed.seek(0)
        lines = printed.read().decode(errors="replace").strip().splitlines()
    error = next((line for line in lines if line.startswith(("error: ", "Traceback"))), None)
    return status, taken, used.ru_maxrss * 1024, error or (lines or [""])[-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="the inputs whose names match this pattern")
    args = parser.parse_args()
    wrong, taken = [], {}
    print("| input | status | seconds | limit | peak GB | last line |\n|---|---|---|---|---|---|", flush=True)
    for name, (most, expected, says, make) in CASES.items():
        if not re.search(args.only, name):
            continue
        with tempfile.TemporaryDirectory() as folder:
            status, seconds, peak, line = measured(make(Path(folder)), most)
        line = re.sub(r"\S*/", "", line)
        print(f"| {name} | {status} | {seconds:.1f} | {most} | {peak / 1e9:.2f} | {line[:110]} |", flush=True)
        taken[name] = seconds, peak
        if status != expected or says not in line or seconds > most or peak > PEAK:
            wrong.append(name)
    one, ten = taken.get("augment: a row of 1 MB"), taken.get("augment: 10 rows of 1 MB")
    # A round's lines are in memory until those of the next one take their place: two rows' at a time, of however many.
    if one and ten and (ten[0] > 12 * one[0] or ten[1] > 1.4 * one[1]):
        wrong.append("augment: 10 rows take more than 10 times the time of one, or more memory")
    print(f"\n{len(wrong)} violations: {'; '.join(wrong) or 'none'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
