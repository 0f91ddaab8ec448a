"""Runs the four published scripts on this package, only their imports changed, and compares their losses with ours.

    python tests/benchmarks/published.py FOLDER

FOLDER is a checkout of the published code. Tiny models and data; no dropout, and each pass is one batch, so that
neither random numbers nor the order of examples differ. Exits 1 if a difference is above 1e-6.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
from tiny import STUDENT, TEACHER, VOCABULARY, make_all, make_teacher, make_tokenizer  # noqa: E402

import transformer  # noqa: E402
from transformer import modeling  # noqa: E402
from transformer.configuration import BertConfig  # noqa: E402
from transformer.files import make_folder  # noqa: E402

AUGMENT, PREGENERATE = "data_augmentation.py", "pregenerate_training_data.py"
GENERAL, TASK = "general_distill.py", "task_distill.py"
LENGTH, LIMIT = 31, 1e-6
DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

# Runs a script and writes the loss of every backward pass: logs round and average, each script in its own way.
RUNNER = """
import json, pathlib, runpy, sys, numpy, torch
numpy.int = int  # a name that NumPy had when the scripts were written
path, sys.argv = sys.argv[1], sys.argv[2:]
losses, backward = [], torch.Tensor.backward
def noting(loss, *rest, **named):
    losses.append(loss.item())
    return backward(loss, *rest, **named)
torch.Tensor.backward = noting
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    pathlib.Path(path).write_text(json.dumps(losses))
"""


def copy_scripts(source, folder):
    """Copy the published scripts, importing from the package what they import from its modules."""
    for name in (AUGMENT, PREGENERATE, GENERAL, TASK):
        text = (source / name).read_text(encoding="utf-8")
        text = re.sub(r"^(\s*from transformer)\.\w+ import\b", r"\1 import", text, flags=re.MULTILINE)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def run(work, folder, name, flags):
    """Run `folder`/`name`; returns its losses, one for each batch."""
    noted = work / "losses.json"
    command = [sys.executable, "-c", RUNNER, noted, folder / name]
    for key, value in flags.items():
        command += [f"--{key}"] if value is True else [f"--{key}", value]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*map(str, command)], cwd=work, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{folder / name} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return json.loads(noted.read_text())


def make_model(folder, cls, values):
    """The folder of a random model of this suite."""
    torch.manual_seed(5)
    config = BertConfig(**{**values, **DROPOUT, "vocab_size": len(VOCABULARY), "initializer_range": 0.3})
    cls(config).save_pretrained(make_folder(folder))
    make_tokenizer().save_pretrained(folder)
    return folder


def latest_weights(folder):
    """Give the last of the published step_N_pytorch_model.bin the name under which the next step reads it."""
    steps = sorted(folder.glob("step_*_pytorch_model.bin"), key=lambda path: int(path.name.split("_")[1]))
    if steps:
        steps[-1].rename(folder / transformer.WEIGHTS_NAME)
    return folder


def difference(one, other):
    """The largest difference of two lists of numbers, relative where they are above 1."""
    return max(abs(a - b) / max(1.0, abs(b)) for a, b in zip(one, other, strict=True))


def both_logits(folder):
    """Logits of a student as the published class and as this suite's own reads it."""
    ids = torch.arange(1, 22).reshape(3, 7) % len(VOCABULARY)
    mask = (torch.arange(7) < torch.tensor([[7], [4], [5]])).long()
    published = transformer.TinyBertForSequenceClassification.from_pretrained(folder, num_labels=2)
    models = published, modeling.TinyBertForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        return [model.eval()(ids * mask, torch.zeros_like(ids), mask)[0].flatten().tolist() for model in models]


def compare(theirs, work):
    """{what is compared: (their numbers, our numbers)}. `theirs`: folder of the published scripts."""
    data, found = make_all(work / "data"), {}
    teacher = make_teacher(work / "teacher", **DROPOUT)
    sizes = {**STUDENT, "fit_size": TEACHER["hidden_size"]}
    student = make_model(work / "student", modeling.TinyBertForPreTraining, sizes)
    task_teacher = make_model(work / "task_teacher", modeling.TinyBertForSequenceClassification, TEACHER)

    augment = {"pretrained_bert_model": teacher, "glove_embs": data / "glove.txt", "glue_dir": data / "glue", "N": 3}
    run(work, theirs, AUGMENT, {**augment, "task_name": "SST-2"})
    corpus = {"train_corpus": data / "corpus.txt", "bert_model": teacher, "output_dir": work / "2"}
    corpus |= {"do_lower_case": True, "max_seq_len": LENGTH, "epochs_to_generate": 1}
    run(work, theirs, PREGENERATE, corpus)
    rows = (data / "glue" / "SST-2" / "train_aug.tsv").read_bytes().count(b"\n") - 1
    sequences = json.loads((work / "2" / "epoch_0_metrics.json").read_text())["num_training_examples"]

    training = {"do_lower_case": True, "max_seq_length": LENGTH, "num_train_epochs": 3, "eval_step": 1}
    training |= {"learning_rate": 3e-4, "warmup_proportion": 0.1, "weight_decay": 0.01}

    def both(name, script, flags, start):
        flags = {**training, **flags, "student_model": start}
        outputs = [work / f"{name} {who}" for who in ("theirs", "ours")]
        their_losses = run(work, theirs, script, {**flags, "output_dir": outputs[0]})
        our_losses = run(work, ROOT, script, {**flags, "output_dir": outputs[1], "pad_to_max_length": True})
        found[f"{name}: loss"] = their_losses, our_losses
        return latest_weights(outputs[0])

    general = {"pregenerated_data": work / "2", "teacher_model": teacher, "continue_train": True}
    general = both("general", GENERAL, {**general, "train_batch_size": sequences}, student)
    task = {"task_name": "sst-2", "data_dir": data / "glue" / "SST-2", "teacher_model": task_teacher}
    task |= {"aug_train": True, "train_batch_size": rows}
    middle = both("intermediate", TASK, task, general)
    both("prediction", TASK, {**task, "pred_distill": True}, middle)
    for name in ("intermediate theirs", "intermediate ours", "prediction theirs", "prediction ours"):
        found[f"{name}: logits"] = both_logits(work / name)
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, help="a checkout of the published code")
    source = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as work:
        found = compare(copy_scripts(source, make_folder(Path(work, "scripts"))), Path(work))
    print(f"{'compared':<32}{'numbers':>9}{'largest difference':>20}")
    for name, (one, other) in found.items():
        print(f"{name:<32}{len(one):>9}{difference(one, other):>20.1e}")
    sys.exit(max(difference(*pair) for pair in found.values()) > LIMIT)


if __name__ == "__main__":
    main()
