"""SIGKILL at random moments: each script, killed over and over and started again, must end with the same bytes.

Prints: a table, a row a script: kills, finished runs that were compared, files and bytes; status 1 where one differed

    python tests/benchmarks/kills.py --kills 100
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

from tiny import ROOT, make_all, make_sst2, scripts, tree  # noqa: E402

# Long enough to be killed in the middle.
LONGER = {
    "augment": [],
    "pregenerate": ["--epochs_to_generate", 16, "--num_workers", 2],
    "packed": ["--epochs_to_generate", 16, "--packed"],
    "general": ["--num_train_epochs", 40, "--eval_step", 20, "--max_steps", 80],
    "finetune": ["--num_train_epochs", 2, "--eval_step", 20],
    "intermediate": ["--num_train_epochs", 8, "--eval_step", 10, "--max_steps", 80],
    "prediction": ["--num_train_epochs", 8, "--eval_step", 10, "--max_steps", 80],
}


# So little data is done between two saved states; these let the data stages save many of them.
OFTEN = """
import sys
import {script} as script
from transformer import console, corpus
for name, value in (("SAVE_SECONDS", 0.01), ("CHUNK_SENTENCES", 20), ("CHUNK_ROWS", 50)):
    if hasattr(script, name):
        setattr(script, name, value)
corpus.BLOCK_BYTES = 400
console.run(script.main)
"""


def start(folder, name):
    script, flags = scripts(folder)["pregenerate" if name == "packed" else name]
    command = [sys.executable, "-c", OFTEN.format(script=Path(script).stem)]
    command += map(str, [*flags, *LONGER[name]])
    os.environ["PYTHONPATH"] = str(ROOT)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run_until_done(folder, name):
    process = start(folder, name)
    printed = process.communicate()[0]
    if process.returncode:
        raise SystemExit(f"{name} ended with status {process.returncode}:\n{printed}")


def killed_runs(folder, before, expected, name, kills, seconds, rng):
    """Kill a script so many times, going on each time; whenever it ends, compare and begin anew. Returns how often it
    ended, and how often with other bytes."""
    ended = unlike = 0
    while True:
        process = start(folder, name)
        process.stdout.readline()  # its imports are done
        time.sleep(rng.uniform(0, 0.5 * seconds))
        if kills:
            process.kill()
        process.communicate()
        kills -= process.returncode == -signal.SIGKILL
        if process.returncode == -signal.SIGKILL:
            continue
        ended += 1
        unlike += bool(process.returncode) or tree(folder) != expected
        if not kills:
            return ended, unlike
        shutil.rmtree(folder)
        shutil.copytree(before, folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="in all, divided among the scripts' steps")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng, wrong = random.Random(args.seed), 0
    print("| step | kills | ends compared | ends with other bytes | seconds of a whole run |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        folder, before = Path(place) / "run", Path(place) / "before"
        make_all(folder)
        make_sst2(folder / "glue" / "SST-2", train=650)
        for number, name in enumerate(LONGER):
            kills = args.kills // len(LONGER) + (number < args.kills % len(LONGER))
            if name == "packed":
                shutil.rmtree(folder / "2")
            shutil.copytree(folder, before)
            started = time.monotonic()
            run_until_done(folder, name)
            seconds, expected = time.monotonic() - started, tree(folder)
            shutil.rmtree(folder)
            shutil.copytree(before, folder)
            ended, unlike = killed_runs(folder, before, expected, name, kills, seconds, rng)
            print(f"| {name} | {kills} | {ended} | {unlike} | {seconds:.1f} |", flush=True)
            wrong += unlike
            shutil.rmtree(before)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
