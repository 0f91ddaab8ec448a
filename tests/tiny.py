"""Tiny odd-sized models, task files, corpus and vectors that the tests share."""

import contextlib
import importlib
import io
import logging
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import torch

from transformer import console, files
from transformer.modeling import BertConfig, TinyBertForPreTraining
from transformer.tokenization import BertTokenizer

ROOT = Path(__file__).resolve().parents[1]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
GOOD, BAD = ["good", "great", "fine", "warm"], ["bad", "poor", "dull", "cold"]
NOUNS = ["film", "plot", "song", "scene", "actor"]
OTHER = ["the", "is", "a", "and", "not", "very", ".", ",", '"']
PIECES = ["##s", "##ly", "warmth", "un", "##fort", "##unate"]
VOCABULARY = [*SPECIAL, *GOOD, *BAD, *NOUNS, *OTHER, *PIECES]

COMMAND = re.compile(rb'\n  "command": ".*",')  # the line of a record

TEACHER = {
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 37,
    "hidden_dropout_prob": 0.1,
}
STUDENT = {**TEACHER, "hidden_size": 12, "num_hidden_layers": 2, "intermediate_size": 20}


def make_tokenizer():
    return BertTokenizer({token: index for index, token in enumerate(VOCABULARY)})


def make_teacher(folder, **overrides):
    """A random BERT with a masked-LM head, large enough weights to have opinions."""
    torch.manual_seed(3)
    config = BertConfig(**{"vocab_size": len(VOCABULARY), "initializer_range": 0.3, **TEACHER, **overrides})
    model = TinyBertForPreTraining(config)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def make_student_config(folder, **overrides):
    folder.mkdir(parents=True, exist_ok=True)
    config = BertConfig(**{"vocab_size": len(VOCABULARY), **STUDENT, **overrides})
    config.save_pretrained(folder, "BertForPreTraining")
    return folder


def make_sentence(rng, label):
    word = rng.choice(GOOD if label else BAD)
    return f"the {rng.choice(NOUNS)} is {rng.choice(['', 'very '])}{word} and {rng.choice(NOUNS)}s ."


def make_sst2(folder, train=29, dev=13, test=7):
    """SST-2's three files: the label is whether the sentence has a good word."""
    rng = random.Random(7)
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", train), ("dev", dev)):
        rows = [f"{make_sentence(rng, index % 2)}\t{index % 2}" for index in range(count)]
        (folder / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *rows, ""]), encoding="utf-8")
    rows = [f"{index}\t{make_sentence(rng, index % 2)}" for index in range(test)]
    (folder / "test.tsv").write_text("\n".join(["index\tsentence", *rows, ""]), encoding="utf-8")
    return folder


def make_corpus(path, documents=11):
    rng = random.Random(8)
    texts = [
        "\n".join(make_sentence(rng, rng.random() < 0.5) for _ in range(rng.randint(2, 6))) for _ in range(documents)
    ]
    path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    return path


def make_glove(path, width=5):
    rng = random.Random(9)
    words = [*GOOD, *BAD, *NOUNS, "films", "plots", "songs", "scenes", "actors", "unfortunate"]
    lines = [" ".join([word, *(f"{rng.gauss(0, 1):.4f}" for _ in range(width))]) for word in words]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def make_all(folder):
    """Everything a run of the four scripts needs, under `folder`."""
    make_teacher(folder / "teacher")
    make_student_config(folder / "student")
    make_sst2(folder / "glue" / "SST-2")
    make_corpus(folder / "corpus.txt")
    make_glove(folder / "glove.txt")
    return folder


def run_script(name, *flags, cwd=ROOT, check=True):
    """Run a script as a user would; returns the finished process with its output as text."""
    command = [sys.executable, str(ROOT / name), *map(str, flags)]
    process = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    if check and process.returncode:
        raise AssertionError(f"{name} ended with {process.returncode}:\n{process.stdout}\n{process.stderr}")
    return process


def call_script(name, *flags):
    """As `run_script`, but in this process, which saves the start; any error that is no UserError comes through."""
    out, err = io.StringIO(), io.StringIO()
    root = logging.getLogger()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    logged = list(root.handlers), root.level
    main = importlib.import_module(Path(name).stem).main
    status = 0
    with (
        mock.patch.object(sys, "argv", [name, *map(str, flags)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            console.run(main)
        except SystemExit as end:
            status = end.code
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            root.handlers[:], root.level = logged
            while files.LOCKS:  # as the end of a process does
                os.close(files.LOCKS.popitem()[1])
    return subprocess.CompletedProcess([name, *flags], status, out.getvalue(), err.getvalue())


def tree(folder):
    """{name: bytes} of every file under `folder`; not logs and reports, which tell times, nor caches. Records lack
    their command, which has the folder's own name in it."""
    logs = ("log.txt", "train_log.jsonl", "curves.png", "report.md", "report.png", "report.json")
    files = (
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in logs and "_cache" not in path.name
    )
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    return {name: COMMAND.sub(b"", data) if name.endswith("run.json") else data for name, data in found.items()}


def names(folder):
    """The names of every file under `folder`."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def flags_from(text, **places):
    """A command's flags from one text, in which the names of `places` stand for paths."""
    return [places.get(word, word) for word in text.split()]


def scripts(folder):
    """The commands of the pipeline on the tiny data in `folder`, by name: (script, flags)."""
    names = {name.upper(): folder / name for name in ("teacher", "student", "glue")}
    names |= {"CORPUS": folder / "corpus.txt", "VECTORS": folder / "glove.txt", "DATA": folder / "glue" / "SST-2"}
    names |= {f"OUT{number}": folder / str(number) for number in range(2, 6)}
    task = "--task_name sst-2 --data_dir DATA --teacher_model TEACHER --max_seq_length 31 --train_batch_size 13 "
    task += "--learning_rate 3e-3"
    step = f"{task} --aug_train --num_train_epochs 2 --eval_step 5"
    commands = {
        "augment": "data_augmentation.py --pretrained_bert_model TEACHER --glove_embs VECTORS --glue_dir GLUE "
        "--task_name SST-2 --N 4 --M 6",
        "pregenerate": "pregenerate_training_data.py --train_corpus CORPUS --bert_model TEACHER --output_dir OUT2 "
        "--max_seq_len 31 --epochs_to_generate 2 --masked_lm_prob 0.15 --do_whole_word_mask",
        "general": "general_distill.py --pregenerated_data OUT2 --teacher_model TEACHER --student_model STUDENT "
        "--output_dir OUT3 --max_seq_length 31 --train_batch_size 13 --eval_step 2 --num_train_epochs 3",
        "finetune": f"task_distill.py --do_finetune {task} --eval_step 2",
        "intermediate": f"task_distill.py {step} --student_model OUT3 --output_dir OUT4",
        "prediction": f"task_distill.py {step} --pred_distill --student_model OUT4 --output_dir OUT5",
        "evaluate": f"task_distill.py {task} --do_eval --student_model OUT5 --output_dir OUT5",
    }
    found = {name: flags_from(text, **names) for name, text in commands.items()}
    return {name: (script, flags) for name, (script, *flags) in found.items()}
