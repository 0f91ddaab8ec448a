"""The table of real results: tasks x students x seeds, each made by the suite's own commands.

Reads:   a teacher, a file of documents, a folder for each task
Writes:  everything under --output; results.md and (with matplotlib) results.png there
Prints:  the table, of what is finished

    python tests/benchmarks/results.py --teacher_model minilm --train_corpus documents.txt --tasks SST-2 TREC

A run takes hours. One that was stopped goes on where it was; --table only reads what is there. Each student is compared
with its teacher and with the same student trained on the labels, from random weights and at the same rate. The minutes
are those of the two steps' training: not the teacher's answers, not the evaluations.
"""

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from transformer import drawing  # noqa: E402  (the path above comes first)
from transformer.comparison import markdown  # noqa: E402
from transformer.history import HISTORY_NAME, read_effort  # noqa: E402
from transformer.outputs import RESULTS_NAME, read_results  # noqa: E402

# Flags of fine-tuning, the intermediate and the prediction step. The rates are those that worked with MiniLM.
RECIPES = {
    "SST-2": (
        "--num_train_epochs 1 --learning_rate 5e-5 --eval_step 700",
        "--num_train_epochs 2 --learning_rate 3e-4 --eval_step 4000",
        "--num_train_epochs 2 --learning_rate 1e-4 --eval_step 400",
    ),
    "MRPC": (
        "--num_train_epochs 5 --learning_rate 5e-5 --eval_step 115",
        "--num_train_epochs 8 --learning_rate 3e-4 --eval_step 1000 --teacher_states 8",
        "--num_train_epochs 4 --learning_rate 1e-4 --eval_step 57",
    ),
    "TREC": (
        "--num_train_epochs 4 --learning_rate 1e-4 --eval_step 150",
        "--num_train_epochs 10 --learning_rate 3e-4 --eval_step 1000 --teacher_states 8",
        "--num_train_epochs 4 --learning_rate 3e-5 --eval_step 80",
    ),
    "SST-5": (
        "--num_train_epochs 2 --learning_rate 5e-5 --eval_step 130",
        "--num_train_epochs 2 --learning_rate 3e-4 --eval_step 1000 --teacher_states 8",
        "--num_train_epochs 2 --learning_rate 5e-5",
    ),
}
# Layers and width; the inner width is four times that, but of the published student's.
STUDENTS = {"3x312": (3, 312, 1200), "4x312": (4, 312, 1200), "2x192": (2, 192, 768)}
GENERAL = "--num_train_epochs 1 --learning_rate 3e-4"
SCORES = {"MRPC": "f1"}  # as the paper has it; acc for the others
MAPS = {(4, 6): "2,3,5,6"}  # where the teacher's layers are not a multiple of the student's
COLUMNS = "task", "score", "student", "seeds", "teacher's", "student's", "deviation", "share", "by labels", "minutes"
LENGTH = 64  # tokens of a sequence in the general distillation


class Places:
    """Where each result is, under the folder --output."""

    def __init__(self, output):
        self.output = Path(output)

    def general(self, student):
        return self.output / "general" / student

    def teacher(self, task):
        return self.output / "teachers" / task

    def mid(self, task, student):
        return self.output / "intermediate" / f"{task}_{student}"

    def student(self, task, student):
        return self.output / "students" / f"{task}_{student}"


def run(script, *flags):
    """Run a script of the suite, which goes on where it stopped and leaves alone what is finished."""
    command = [sys.executable, str(ROOT / script), *map(str, flags)]
    print("+", " ".join(command[1:]), flush=True)
    subprocess.run(command, check=True)


def layer_map(teacher, student):
    layers = json.loads((Path(teacher) / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    mapped = MAPS.get((STUDENTS[student][0], layers))
    return ["--layer_map", mapped] if mapped else []


def make_general(args, places, student):
    """The general student of a size."""
    template = json.loads((ROOT / "student_model" / "config.json").read_text(encoding="utf-8"))
    names = "num_hidden_layers", "hidden_size", "intermediate_size"
    folder = places.output / "sizes" / student
    folder.mkdir(parents=True, exist_ok=True)
    config = {**template, **dict(zip(names, STUDENTS[student], strict=True))}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    models = ["--teacher_model", args.teacher_model, "--student_model", folder, *layer_map(args.teacher_model, student)]
    lengths = ["--pregenerated_data", places.output / "sequences", "--max_seq_length", LENGTH]
    run("general_distill.py", *models, *lengths, *GENERAL.split(), *args.more, "--output_dir", places.general(student))


def make_students(args, places, task, student):
    """The task's students of a size, one for each seed, and their baselines."""
    tuning, layers, answers = (recipe.split() for recipe in RECIPES[task])
    data = ["--task_name", task, "--data_dir", args.data / task]
    tuned = ["--teacher_model", args.teacher_model, "--output_dir", places.teacher(task)]
    run("task_distill.py", *data, "--do_finetune", *tuned, *tuning)
    shared = [*data, "--teacher_model", places.teacher(task), "--seeds", args.seeds, *args.more]
    mid, general = places.mid(task, student), places.general(student)
    mapped = layer_map(args.teacher_model, student)
    run("task_distill.py", *shared, "--student_model", general, "--output_dir", mid, *mapped, *layers)
    into = ["--student_model", mid, "--output_dir", places.student(task, student)]
    run("task_distill.py", *shared, "--pred_distill", "--baseline", *into, *answers)


def read_row(places, task, student):
    """A row of the table by column; None where the seeds are not all finished."""
    path = places.student(task, student) / RESULTS_NAME
    if not path.is_file():
        return None
    results, score, baselines, times = read_results(path), SCORES.get(task, "acc"), [], []
    for folder in path.parent.glob("seed_*"):
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        (row,) = (row for row in report["table"] if row["title"] == f"dev {score}")
        baselines.append(row["baseline"])
        steps = folder, places.mid(task, student) / folder.name
        times.append(sum(read_effort(step / HISTORY_NAME)["seconds"] for step in steps) / 60)
    mean, teacher, others = results[score], row["teacher"], (np.mean(baselines), np.mean(times))
    found = task, score, student, len(times), teacher, mean, results[f"{score}_deviation"], mean / teacher, *others
    return dict(zip(COLUMNS, found, strict=True))


def as_markdown(rows):
    forms = "{}", "{}", "{}", "{}", "{:.4f}", "{:.4f}", "{:.4f}", "{:.1%}", "{:.4f}", "{:.1f}"
    cells = ([form.format(row[name]) for form, name in zip(forms, COLUMNS, strict=True)] for row in rows)
    return markdown([list(COLUMNS), *cells]) + "\n"


def draw(rows, path):
    """A panel of shares of the teacher's score for each task, a bar with its deviation for each student."""

    def panel(axis, task):
        own = [row for row in rows if row["task"] == task]
        for offset, name in ((-0.2, "student's"), (0.2, "by labels")):
            heights = [row[name] / row["teacher's"] for row in own]
            errors = [row["deviation"] / row["teacher's"] if offset < 0 else 0.0 for row in own]
            axis.bar(np.arange(len(own)) + offset, heights, 0.4, yerr=errors, label=name, capsize=3)
        axis.axhline(1.0, color="0.4", linewidth=1)
        axis.set(title=task, ylabel=f"share of the teacher's {own[0]['score']}", ylim=(0, 1.1))
        axis.set_xticks(range(len(own)), [row["student"] for row in own])
        axis.legend(loc="lower right")

    tasks = dict.fromkeys(row["task"] for row in rows)
    return drawing.save_panels(path, [lambda axis, task=task: panel(axis, task) for task in tasks])


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher_model", type=Path, default=Path("teacher_model"), help="a BERT that knows no task")
    parser.add_argument("--train_corpus", type=Path, default=Path("documents.txt"), help="documents for stage 2")
    parser.add_argument("--data", type=Path, default=Path("."), help="where the tasks' folders are")
    parser.add_argument("--tasks", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--students", nargs="+", choices=STUDENTS, default=list(STUDENTS))
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--output", type=Path, default=Path("results"))
    parser.add_argument("--table", action="store_true", help="only read what is there")
    parser.add_argument("more", nargs="*", help="after --: more flags for all distillations")
    return parser.parse_args()


def main():
    args = parse_args()
    places = Places(args.output)
    places.output.mkdir(parents=True, exist_ok=True)
    if not args.table:
        models = ["--train_corpus", args.train_corpus, "--bert_model", args.teacher_model]
        sizes = ["--max_seq_len", LENGTH, "--epochs_to_generate", 1]
        run("pregenerate_training_data.py", *models, *sizes, "--output_dir", places.output / "sequences")
        for student in args.students:
            make_general(args, places, student)
        for task, student in itertools.product(args.tasks, args.students):
            make_students(args, places, task, student)
    rows = [read_row(places, task, student) for task, student in itertools.product(args.tasks, args.students)]
    rows = list(filter(None, rows))
    (places.output / "results.md").write_text(as_markdown(rows), encoding="utf-8")
    draw(rows, places.output / "results.png")
    print(as_markdown(rows), end="")


if __name__ == "__main__":
    main()
