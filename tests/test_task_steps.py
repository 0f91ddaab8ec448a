"""Task distillation's steps: their order, the teacher that they fine-tune and use again, predictions."""

import re
import shutil

import pytest
import torch
from pipeline import LEAVES, MODEL, REPORT, Killed, call
from tiny import call_script, names, tree

import task_distill
from transformer.modeling import TinyBertForSequenceClassification
from transformer.outputs import Output
from transformer.tokenization import BertTokenizer


def test_the_two_task_steps_also_run_in_the_other_order(copy):
    for name, student, output in (("prediction", "3", "mid"), ("intermediate", "mid", "out")):
        flags = ["--student_model", copy / student, "--output_dir", copy / output, "--num_train_epochs", 1]
        assert call(copy, name, *flags).returncode == 0
    assert names(copy / "out") == names(copy / "mid") - REPORT == MODEL | {"eval_results.txt"}
    assert "rep_loss = " in (copy / "out" / "eval_results.txt").read_text()


def test_the_ways_to_choose_layers_and_losses_run_in_both_scripts(copy):
    ways = ["--layer_map", "2,3", "--attention_loss", "relations", "--attention_weight", 0.5, "--hidden_weight", 2]
    assert call(copy, "general", *ways, "--max_steps", 3, "--overwrite_output").returncode == 0
    assert call(copy, "intermediate", *ways, "--max_steps", 3, "--overwrite_output").returncode == 0
    process = call(copy, "intermediate", "--layer_map", "2,9", "--overwrite_output")
    assert process.returncode == 2 and "2 numbers from 1 to 4" in process.stderr


def test_a_teacher_is_fine_tuned_once_and_used_again(copy):
    shutil.rmtree(copy / "teacher" / "SST-2")
    out = ["--num_train_epochs", 1, "--output_dir"]
    first = call(copy, "intermediate", *out, copy / "mid")
    assert first.returncode == 0, first.stderr
    assert "fine-tuning it first" in first.stdout
    assert "local_rank" not in first.stdout and len(re.findall(r"task_name .*command line", first.stdout)) == 2
    assert {f"teacher/SST-2/{name}" for name in names(copy / "teacher/SST-2")} == LEAVES["finetune"]
    before = tree(copy / "teacher")
    second = call(copy, "prediction", *out, copy / "out")
    assert second.returncode == 0 and "fine-tuning" not in second.stdout
    assert tree(copy / "teacher") == before
    for process in (first, second):
        lines = process.stdout.splitlines()
        told = next(index for index, line in enumerate(lines) if "teacher on dev: acc" in line)
        assert told < next(index for index, line in enumerate(lines) if re.search("att_loss|cls_loss", line))


def test_the_fine_tuned_teacher_keeps_the_settings_of_fine_tuning(copy):
    shutil.rmtree(copy / "teacher" / "SST-2")
    settings, _ = task_distill.read_settings(["--do_finetune", "--num_train_epochs", "1"])
    assert settings.learning_rate == 3e-5
    assert call(copy, "intermediate", "--max_steps", 2, "--output_dir", copy / "mid").returncode == 0
    record = (copy / "teacher" / "SST-2" / "run.json").read_text()
    assert '"learning_rate": 3e-05' in record  # not the step's own 3e-3


def test_no_finetune_refuses(copy):
    shutil.rmtree(copy / "teacher" / "SST-2")
    process = call(copy, "intermediate", "--no_finetune", "--output_dir", copy / "mid")
    assert process.returncode == 2 and "no classifier for SST-2" in process.stderr
    assert not (copy / "teacher" / "SST-2").exists()


def test_a_teacher_from_a_short_run_is_not_used_by_a_full_one(copy):
    shutil.rmtree(copy / "teacher" / "SST-2")
    assert call(copy, "intermediate", "--max_steps", 2, "--output_dir", copy / "short").returncode == 0
    again = call(copy, "prediction", "--max_steps", 2, "--output_dir", copy / "short_out")
    assert "fine-tuning" not in again.stdout  # another short run does use it
    full = call(copy, "intermediate", "--num_train_epochs", 1, "--output_dir", copy / "full")
    assert full.returncode == 0 and "fine-tuning the teacher again" in full.stdout
    assert "max_steps" not in (copy / "teacher" / "SST-2" / "run.json").read_text()


def test_a_fine_tuning_that_was_stopped_is_finished_by_the_next_step(copy):
    shutil.rmtree(copy / "teacher" / "SST-2")
    usual = ["--teacher_model", copy / "teacher", "--data_dir", copy / "glue" / "SST-2", "--max_seq_length", 31]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Output, "finish", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            call_script("task_distill.py", "--do_finetune", *usual)
    assert '"finished": false' in (copy / "teacher" / "SST-2" / "run.json").read_text()
    process = call(copy, "intermediate", "--max_seq_length", 31, "--num_train_epochs", 1, "--output_dir", copy / "mid")
    assert process.returncode == 0, process.stderr
    assert '"finished": true' in (copy / "teacher" / "SST-2" / "run.json").read_text()


def test_do_predict_writes_the_submission(copy):
    flags = ["--do_predict", "--student_model", copy / "5", "--output_dir", copy / "predicted"]
    process = call(copy, "prediction", *flags)
    assert process.returncode == 0, process.stderr
    assert names(copy / "predicted") == {"SST-2.tsv"}
    lines = (copy / "predicted" / "SST-2.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction" and [line.split("\t")[0] for line in lines[1:]] == list("0123456")
    tokenizer = BertTokenizer.from_pretrained(copy / "5")
    model = TinyBertForSequenceClassification.from_pretrained(copy / "5").eval()
    for line, row in zip(lines[1:], (copy / "glue/SST-2/test.tsv").read_text().splitlines()[1:], strict=True):
        ids, _ = tokenizer.encode_pair(tokenizer.ids(row.split("\t")[1]))
        with torch.no_grad():
            logits, _ = model(torch.tensor([ids]))
        assert line.split("\t")[1] == str(int(logits.argmax()))
