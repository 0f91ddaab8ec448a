"""A kind of task that only these tests have runs through every step: nothing outside the kinds knows what a kind is."""

import ast
import json
import random
import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch.nn.functional as F
from tiny import NOUNS, ROOT, call_script, make_sentence, make_teacher, names
from torch import nn

from transformer import drawing, evaluation
from transformer.checkpoint import load_state_dict
from transformer.file_utils import UserError
from transformer.glue import TASKS, Task, TaskFile
from transformer.modeling import BertPreTrainedModel
from transformer.outputs import read_results
from transformer.tasks.kind import Kind


class MarkingModel(BertPreTrainedModel):
    """An encoder with a head that is called `marks`."""

    architecture, head = "BertForMarks", "marks"

    def add_heads(self, config):
        self.marks = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, input_ids, token_type_ids=None, attention_mask=None):
        output = self.bert(input_ids, token_type_ids, attention_mask, score_layers=())
        return self.marks(output.pooled), output


def overlap(predictions, gold):
    """The marks that are right as a share of those that are set or should be, the mean over the rows."""
    return ((predictions & gold).sum(axis=1) / (predictions | gold).sum(axis=1).clip(min=1)).mean()


class Marks(Kind):
    """A row has any number of the task's labels, with + between; each of them is an output of its own."""

    model = MarkingModel
    metrics = {"overlap": overlap, "exact": lambda predictions, gold: (predictions == gold).all(axis=1).mean()}
    means = {"mean": ("overlap", "exact")}

    def num_outputs(self, task):
        return len(task.labels)

    def id2label(self, task, labels):
        return dict(enumerate(labels))

    def read_label(self, task, text):
        if set(text.split("+")) <= set(task.labels):
            return text
        raise ValueError("marks with + between")

    def target(self, label, labels):
        return sum(1 << labels.index(mark) for mark in label.split("+"))

    def encode(self, task_file, tokenizer, lengths, labels, limit=None, pad=False):
        sequences = super().encode(task_file, tokenizer, lengths, labels, limit, pad)
        if sequences.labels is None:
            return sequences
        bits = sequences.labels[:, None] >> np.arange(len(labels)) & 1  # (N, C)
        return replace(sequences, labels=bits.astype(np.float32))

    def gold_loss(self, outputs, targets):
        return F.binary_cross_entropy_with_logits(outputs.float(), targets)

    def prediction_loss(self, student_outputs, teacher_outputs, temperature):
        return self.gold_loss(student_outputs / temperature, (teacher_outputs.float() / temperature).sigmoid())

    def answers(self, task, outputs, sequences, labels):
        order = [labels.index(label) for label in task.labels]
        return (outputs[:, order] > 0).numpy(), sequences.labels[:, order] > 0

    def predictions(self, task, outputs, sequences, labels):
        return ["+".join(label for label, value in zip(labels, row, strict=True) if value > 0) for row in outputs]

    def answer_tables(self, task, answers, results):
        gold = answers["student"][0].labels.sum(axis=0)
        found = {model: files[0].predictions.sum(axis=0) for model, files in answers.items()}
        rows = zip(task.labels, *(map(str, counts) for counts in (gold, *found.values())), strict=True)
        return "How often each mark is set", [[["mark", "gold", *found], *map(list, rows)]]

    def answer_text(self, task, answer):
        return "+".join(label for label, value in zip(task.labels, answer, strict=True) if value)

    def panels(self, task, answers):
        panels = []
        for title, each in answers.items():
            counts = zip(task.labels, each.predictions.sum(axis=0), each.labels.sum(axis=0), strict=True)
            groups = {label: {"set": int(found), "gold": int(gold)} for label, found, gold in counts}
            panels.append(partial(drawing.bars, title=title, groups=groups))
        return panels


MARKS = Task("Marks", ("sentence",), "marks", tuple(NOUNS), ("overlap", "exact"), 2, 31, kind=Marks())


@pytest.fixture(scope="module", autouse=True)
def registered():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "marks", MARKS)
        patch.setattr(evaluation, "SECONDS", 0.05)
        yield


def make_marks(folder):
    """The marks are the nouns of a sentence."""
    rng = random.Random(5)
    folder.mkdir()
    for name, count in (("train", 53), ("dev", 17), ("test", 7)):
        sentences = [make_sentence(rng, rng.random() < 0.5) for _ in range(count)]
        marks = ["+".join(noun for noun in NOUNS if noun in sentence) for sentence in sentences]
        rows = sentences if name == "test" else map("\t".join, zip(sentences, marks, strict=True))
        header = "sentence" if name == "test" else "sentence\tmarks"
        (folder / f"{name}.tsv").write_text("\n".join([header, *rows, ""]), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("marks")
    make_teacher(folder / "teacher")
    make_teacher(folder / "3", hidden_size=12, num_hidden_layers=2, intermediate_size=20)
    make_marks(folder / "data")
    return folder


def flags_of(folder):
    sizes = ["--train_batch_size", 13, "--learning_rate", 3e-3, "--eval_step", 5]
    return ["--task_name", "marks", "--data_dir", folder / "data", "--teacher_model", folder / "teacher", *sizes]


def call(folder, *flags):
    finished = call_script("task_distill.py", *flags_of(folder), *flags)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def printed(folder):
    """{step: what it printed}: every step of task distillation, one after the other."""
    steps = {
        "finetune": ["--do_finetune", "--num_train_epochs", 24],
        "intermediate": ["--student_model", folder / "3", "--output_dir", folder / "4"],
        "prediction": ["--pred_distill", "--baseline", "--student_model", folder / "4", "--output_dir", folder / "5"],
        "evaluation": ["--do_eval", "--student_model", folder / "5", "--output_dir", folder / "evaluated"],
        "test set": ["--do_predict", "--student_model", folder / "5", "--output_dir", folder / "predicted"],
    }
    return {name: call(folder, *flags) for name, flags in steps.items()}


@pytest.mark.slow
def test_its_own_metrics_choose_and_tell_how_good_a_model_is(folder, printed):
    teacher = read_results(folder / "teacher" / "Marks" / "eval_results.txt")
    assert list(teacher) == ["global_step", "overlap", "exact", "mean", "eval_loss", "loss"]
    assert teacher["overlap"] > 0.3
    results, evaluated = (read_results(folder / name / "eval_results.txt") for name in ("5", "evaluated"))
    assert results["mean"] == pytest.approx((results["overlap"] + results["exact"]) / 2)
    assert evaluated == results and list(evaluated)[:4] == ["overlap", "exact", "mean", "eval_loss"]
    assert "teacher on dev: overlap " in printed["intermediate"]
    assert re.search(r"^dev exact +0\.\d{4} +0\.\d{4}", printed["evaluation"], re.M)


@pytest.mark.slow
def test_its_own_head_is_trained_and_read(folder, printed):
    for name in ("teacher/Marks", "4", "5", "5/baseline"):
        heads = {key: tuple(value.shape) for key, value in load_state_dict(folder / name).items() if key[:4] != "bert"}
        width = 24 if name.startswith("teacher") else 12
        heads = {key: shape for key, shape in heads.items() if not key.startswith("fit_dense")}
        assert heads == {"marks.weight": (5, width), "marks.bias": (5,)}
        config = json.loads((folder / name / "config.json").read_text())
        assert config["architectures"] == ["BertForMarks"] and list(config["id2label"].values()) == NOUNS


@pytest.mark.slow
def test_predictions_are_in_its_own_words(folder, printed):
    assert names(folder / "predicted") == {"Marks.tsv"}
    header, *lines = (folder / "predicted" / "Marks.tsv").read_text().splitlines()
    assert header == "index\tprediction" and len(lines) == 7
    found = [set(line.split("\t")[1].split("+")) - {""} for line in lines]
    assert all(marks <= set(NOUNS) for marks in found) and any(found)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["5", "evaluated"])
def test_the_report_has_its_own_section(folder, printed, place):
    text = (folder / place / "report.md").read_text()
    section = text.split("## How often each mark is set\n\n")[1].split("\n\n")[0].splitlines()
    models = ["teacher", "student", "baseline"] if place == "5" else ["teacher", "student"]
    assert section[0] == "| mark | gold | " + " | ".join(models) + " |"
    assert [line.split(" | ")[0] for line in section[2:]] == [f"| {noun}" for noun in NOUNS]
    for title in ("dev overlap", "dev exact", "dev mean"):
        assert f"\n| {title} |" in text
    assert "gold label" not in section[0] and "Answers against" not in text
    if place == "5":
        assert "The student's overlap differs from the baseline's by" in text


def test_a_label_that_is_none_is_told_in_its_own_words(tmp_path):
    (tmp_path / "train.tsv").write_text("sentence\tmarks\na film\tfilm\na song\tfilm+song\na plot\tgood\n")
    with pytest.raises(UserError, match=r"train.tsv line 4: label 'good', expected marks with \+ between"):
        list(TaskFile(tmp_path / "train.tsv", MARKS))


@pytest.mark.slow
def test_a_teacher_without_its_head_is_told_by_the_head_s_name(folder, tmp_path):
    make_teacher(tmp_path / "teacher")
    flags = ["--no_finetune", "--student_model", folder / "3", "--output_dir", tmp_path / "4"]
    found = call_script("task_distill.py", *flags_of(folder), "--teacher_model", tmp_path / "teacher", *flags)
    assert found.returncode == 2 and f"{tmp_path / 'teacher'}: no marks for Marks" in found.stderr
    flags = ["--do_predict", "--student_model", folder / "3", "--output_dir", tmp_path / "4"]
    found = call_script("task_distill.py", *flags_of(folder), *flags)
    assert found.returncode == 2 and "has no marks; give a model that was trained on the task" in found.stderr


# --- what the others may not know

KINDS = ("transformer/tasks/", "transformer/modeling.py")
# There it is a column's largest number, which decides about the column's sign.
NO_ANSWERS = "transformer/initialization.py"


def code_of(path):
    """The code of a file: without comments, docstrings and the flags' help texts."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            node.body[0] = ast.Pass()
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Flag":
            node.args[1] = ast.Constant("help")
    return ast.unparse(tree)


def code_outside_the_kinds():
    """{name: code} of the four scripts and the package, without what may know kinds."""
    paths = [*ROOT.glob("*.py"), *ROOT.glob("transformer/**/*.py")]
    files = {path.relative_to(ROOT).as_posix(): path for path in paths}
    return {name: code_of(path) for name, path in files.items() if not name.startswith(KINDS)}


def test_nobody_else_says_what_an_answer_is():
    code = code_outside_the_kinds()
    assert {"task_distill.py", "transformer/evaluation.py", "transformer/report.py"} <= set(code)
    assert [name for name, text in code.items() if "argmax" in text and name != NO_ANSWERS] == []
    # What a published classifier's config means, and the published classes.
    published = {"transformer/configuration.py", "transformer/published.py"}
    assert {name for name, text in code.items() if "classifier" in text.lower()} <= published


def test_kinds_are_called_by_name_only_where_tasks_are_made():
    called = [
        name
        for name, text in code_outside_the_kinds().items()
        if re.search(r"\b(CLASSIFICATION|REGRESSION|MULTILABEL|TOKENS|SPANS)\b", text)
    ]
    assert set(called) == {"transformer/glue.py", "transformer/own_tasks.py"}


def test_the_search_sees_code_and_passes_over_prose(tmp_path):
    text = '"""A classifier."""\nFlag(bool, "no classifier")\n# argmax\nvalue = {"classifier": x.argmax()}  # argmax\n'
    (tmp_path / "code.py").write_text(text)
    assert code_of(tmp_path / "code.py").splitlines()[-1] == "value = {'classifier': x.argmax()}"
    assert code_of(tmp_path / "code.py").count("classifier") == 1
