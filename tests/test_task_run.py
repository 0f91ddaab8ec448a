"""A run over a task's data: what it leaves, and what it takes away."""

import pytest
import torch
from tiny import STUDENT, VOCABULARY, make_sst2, make_tokenizer, names

import task_distill
from transformer.distillation import GoldLearner
from transformer.modeling import BertConfig, TinyBertForSequenceClassification
from transformer.processes import Processes
from transformer.task_run import TaskRun


def train(folder, *flags, break_off=False):
    """Train a classifier on SST-2's rows for four steps; `break_off`: inside the second evaluation."""
    given = ["--data_dir", folder / "SST-2", "--max_steps", 4, "--eval_step", 2, "--train_batch_size", 5, *flags]
    settings, task = task_distill.read_settings(list(map(str, given)))
    run = TaskRun(task, *settings.parts, Processes(torch.device("cpu")))
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
