"""A run over a task's data: what it leaves, and what it takes away."""

import json

import numpy as np
import pytest
import torch
from tiny import STUDENT, VOCABULARY, make_sst2, make_tokenizer, names

import task_distill
from transformer.distillation import GoldLearner
from transformer.evaluation import Answers
from transformer.files import UserError
from transformer.finetuning import longer_tuning, recorded_tuning
from transformer.modeling import BertConfig, TinyBertForSequenceClassification
from transformer.processes import Processes
from transformer.task_run import TaskRun


def task_run(*flags):
    """A run on SST-2 with these flags of task_distill.py."""
    settings, task = task_distill.read_settings(list(map(str, flags)))
    return TaskRun(task, *settings.parts, Processes(torch.device("cpu")))


def train(folder, *flags, break_off=False):
    """Train a classifier on SST-2's rows for four steps; `break_off`: inside the second evaluation."""
    given = ["--data_dir", folder / "SST-2", "--max_steps", 4, "--eval_step", 2, "--train_batch_size", 5, *flags]
    run = task_run(*given)
    task = run.task
    model = TinyBertForSequenceClassification(BertConfig(vocab_size=len(VOCABULARY), **{**STUDENT, "fit_size": None}))
    data, calls = run.read_data(make_tokenizer(), task.labels), []

    def evaluate():
        calls.append(1)
        if break_off and len(calls) == 2:
            raise KeyboardInterrupt
        return run.evaluator.score(task, model, data.dev)

    with run.output(folder / "out", {}) as output:
        output.begin()
        run.train(GoldLearner(model, task.kind.gold_loss), data, make_tokenizer(), "warmup_linear", evaluate, output)


def test_a_run_that_goes_on_takes_the_report_of_its_earlier_weights_away(tmp_path):
    make_sst2(tmp_path / "SST-2")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, "--max_seq_length", 31, break_off=True)
    (tmp_path / "out" / "report.md").write_text("of what an evaluation saw on the way")
    train(tmp_path, "--max_seq_length", 31)
    files = {"config.json", "vocab.txt", "tokenizer_config.json", "pytorch_model.bin", "run.json"}
    files |= {"eval_results.txt", "log.txt", "train_log.jsonl"}
    assert names(tmp_path / "out") - {"curves.png"} == files


@pytest.mark.parametrize("predictions, told", [([1, 1, 1], True), ([1, 0, 1], False), ([[0.5]] * 3, True)])
def test_a_teacher_that_gives_every_row_the_same_answer_is_warned_of(caplog, predictions, told):
    answers = [Answers("dev.tsv", np.array(predictions), np.array([0, 1, 1]))]
    task_run().warn_of_constant("teacher/SST-2", answers, "train it for longer: ...")
    wanted = "warning: teacher/SST-2 gives all 3 rows of dev.tsv the same answer, so there is nothing to learn from it"
    assert caplog.messages == ([f"{wanted}; train it for longer: ..."] if told else [])


def test_missing_dev_rows_are_told_before_any_model_is_read(tmp_path):
    make_sst2(tmp_path / "SST-2")
    (tmp_path / "SST-2" / "dev.tsv").unlink()
    with pytest.raises(UserError, match="SST-2/dev.tsv: no such file; .*file_utils SST-2"):
        task_run("--data_dir", tmp_path / "SST-2").output(tmp_path / "out", {})


def test_a_teacher_that_is_made_again_keeps_its_recipe_and_one_that_knows_nothing_gets_three_times_the_epochs(tmp_path):
    run, teacher = task_run(), tmp_path / "SST-2"
    teacher.mkdir()
    settings = {"num_train_epochs": 4.0, "learning_rate": 1e-4, "max_steps": 9, "seed": 3}
    record = {"script": "finetune", "settings": settings, "inputs": {}, "finished": True}
    (teacher / "run.json").write_text(json.dumps(record))
    assert recorded_tuning(tmp_path, run.task) == {"num_train_epochs": 4.0, "learning_rate": 1e-4}
    assert recorded_tuning(tmp_path / "elsewhere", run.task) == {}
    assert longer_tuning(teacher, run).startswith("fine-tune it again, from the model")
    (tmp_path / "pytorch_model.bin").write_bytes(b"the teacher of before")
    told = longer_tuning(teacher, run)
    assert told.startswith("train it for longer: python ") and "--num_train_epochs 12.0" in told
    assert f"--teacher_model {tmp_path}" in told and "--overwrite_output" in told
