"""Task distillation's steps: their order, the teacher that they fine-tune and use again, predictions."""

import os
import re
import shlex
import shutil
from types import SimpleNamespace

import pytest
import torch
from pipeline import LEAVES, MODEL, REPORT, Killed, call
from tiny import ROOT, call_script, make_tokenizer, names, tree

import data_augmentation
import task_distill
from transformer import flags
from transformer.finetuning import doubt_of
from transformer.modeling import TinyBertForSequenceClassification
from transformer.outputs import Output
from transformer.own_tasks import find_task
from transformer.tokenization import BertTokenizer


def test_the_two_task_steps_also_run_in_the_other_order_with_a_warning_each(copy):
    out = copy / "5_task_distill_out"
    for name, student, output in (("prediction", copy / "3", copy / "mid"), ("intermediate", copy / "mid", out)):
        flags = ["--student_model", student, "--output_dir", output, "--num_train_epochs", 1]
        process = call(copy, name, *flags)
        assert process.returncode == 0
        [warning] = [line for line in process.stdout.splitlines() if "the paper's order is the other" in line]
        told, meant = warning.split(" Probably meant / 可能想运行: ")
        assert ("no intermediate step" in told and "预测层蒸馏" in told) is (name == "prediction")
        words = shlex.split(meant)
        assert words[:2] == ["python", "task_distill.py"] and ("--pred_distill" in words) is (name == "intermediate")
        assert words[words.index("--student_model") + 1] == str(student)
        # The command that was meant is understood, and asks for the other step.
        settings, _ = task_distill.read_settings(words[2:])
        assert settings.step == ("prediction" if name == "intermediate" else "intermediate")
    *_, following, last = process.stdout.splitlines()
    assert "5_task_distill_out: there is no score" in last and "--pred_distill" in following
    assert "next: python task_distill.py --pred_distill" in following
    os.replace(out, copy / "out")
    assert names(copy / "out") == names(copy / "mid") - REPORT == MODEL | {"eval_results.txt"}
    assert "rep_loss = " in (copy / "out" / "eval_results.txt").read_text()


def test_the_usual_order_gives_no_warning(copy):
    for name in ("intermediate", "prediction"):
        process = call(copy, name, "--overwrite_output", "--max_steps", 2)
        assert process.returncode == 0 and "Probably meant" not in process.stdout


def test_a_student_without_a_prediction_step_is_measured_after_a_warning(copy):
    flags = ["--do_predict", "--output_dir", copy / "out", "--student_model"]
    for student, warned in ((copy / "4", True), (copy / "5", False)):
        process = call(copy, "evaluate", *flags, student)
        assert process.returncode == 0, process.stderr
        lines = process.stdout.splitlines()
        warnings = [line for line in lines if "which does not train the classifier" in line]
        assert len(warnings) == (2 if warned else 0)  # before the predictions, and before the table
        if warned:
            assert lines.index(warnings[0]) < next(n for n, line in enumerate(lines) if "7 predictions" in line)
            assert lines.index(warnings[-1]) < next(n for n, line in enumerate(lines) if "dev acc" in line)


def test_a_next_command_never_writes_into_its_student_s_folder(tmp_path):
    settings, _ = task_distill.read_settings(["--output_dir", "5_task_distill_out"])
    words = shlex.split(settings.next_command())
    assert words[words.index("--student_model") + 1] == "5_task_distill_out"
    assert words[words.index("--output_dir") + 1] == "5_task_distill_out_prediction"


def test_a_finished_model_is_evaluated_at_the_length_of_its_training_whatever_its_task_says_now(tmp_path):
    (tmp_path / "student").mkdir()
    (tmp_path / "student/config.json").write_text('{"task": {"name": "reviews", "max_seq_length": 31}}')
    shutil.copytree(tmp_path / "student", tmp_path / "seeds/seed_3")
    (tmp_path / "reviews").mkdir()
    (tmp_path / "reviews/train.tsv").write_text("text\tlabel\ngood\t1\nbad\t0\n")
    (tmp_path / "reviews/task.json").write_text('{"max_seq_length": 99}')
    own = ["--task_name", "reviews", "--data_dir", str(tmp_path / "reviews"), "--student_model"]

    def length(*flags):
        settings, _ = task_distill.read_settings([*own, *flags])
        [first] = [each.max_seq_length for each in settings.each_seed()]
        return first

    for mode in ("--do_eval", "--do_predict", "--do_export=int8"):
        assert length(str(tmp_path / "student"), mode) == 31
    assert length(str(tmp_path / "seeds"), "--do_eval", "--seeds", "3") == 31
    assert length(str(tmp_path / "student"), "--do_eval", "--max_seq_length", "55") == 55
    assert length(str(tmp_path / "none"), "--do_eval") == length(str(tmp_path / "student")) == 99


def test_the_log_begins_with_the_first_row_as_text_and_as_numbers(pipeline):
    for name, row in (("4", "train_aug.tsv"), ("teacher/SST-2", "train.tsv"), ("3", None)):
        lines = [line[10:] for line in (pipeline.folder / name / "log.txt").read_text(encoding="utf-8").splitlines()]
        example = dict(line.removeprefix("example, ").split(": ", 1) for line in lines[: 6 if row else 4])
        assert [line.startswith("example, ") for line in lines[:7]] == [True] * len(example) + [False] * (
            7 - len(example)
        )
        ids = list(map(int, example["input_ids"].split()))
        assert make_tokenizer().convert_ids_to_tokens(ids) == example["tokens"].split()
        assert {len(example[part].split()) for part in ("input_mask", "segment_ids")} == {len(ids)}
        if row:
            text, label = (pipeline.folder / "glue" / "SST-2" / row).read_text().splitlines()[1].split("\t")
            assert (example["text"], example["label"]) == (text, f"{label} (trained as {label})")
            assert make_tokenizer().tokenize(text) == example["tokens"].split()[1:-1]


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


@pytest.mark.slow
def test_a_teacher_from_a_short_run_is_not_used_by_a_full_one(copy):
    shutil.rmtree(copy / "teacher" / "SST-2")
    assert call(copy, "intermediate", "--max_steps", 2, "--output_dir", copy / "short").returncode == 0
    again = call(copy, "prediction", "--max_steps", 2, "--output_dir", copy / "short_out")
    assert "fine-tuning" not in again.stdout  # another short run does use it
    full = call(copy, "intermediate", "--num_train_epochs", 1, "--output_dir", copy / "full")
    assert full.returncode == 0 and "fine-tuning the teacher again" in full.stdout
    assert "max_steps" not in (copy / "teacher" / "SST-2" / "run.json").read_text()


def change_labels(folder):
    """Another training file, half of whose rows are left."""
    path = folder / "glue" / "SST-2" / "train.tsv"
    path.write_text("\n".join(path.read_text().splitlines()[:300]) + "\n")


def test_an_augmented_file_of_another_training_file_is_refused_with_the_command_that_makes_it_again(copy):
    change_labels(copy)
    before = tree(copy)
    process = call(copy, "intermediate", "--output_dir", copy / "mid")
    told, again = process.stderr.split("; made again by: ")
    assert process.returncode == 2 and told.endswith("train_aug.tsv: train.tsv has changed since it was made")
    _, script, *flags = shlex.split(again)
    settings, _ = data_augmentation.read_settings(flags)
    assert script == "data_augmentation.py" and settings.overwrite_output
    assert settings.glue_dir == str(copy / "glue") and settings.pretrained_bert_model == str(copy / "teacher")
    assert tree(copy) == before


@pytest.mark.slow
def test_a_teacher_of_another_training_file_is_fine_tuned_again_by_itself(copy):
    change_labels(copy)
    (copy / "glue" / "SST-2" / "train_aug.run.json").unlink()  # nobody knows what the augmented file was made of
    told = "teacher/SST-2: train.tsv has changed since it was trained; "
    out = ["--max_steps", 2, "--output_dir", copy / "mid"]
    before = tree(copy)
    refused = call(copy, "intermediate", *out, "--no_finetune")
    assert refused.returncode == 2 and f"{told}leave out --no_finetune, or make it by: python " in refused.stderr
    measured = call(copy, "evaluate")
    assert measured.returncode == 0 and measured.stdout.count(f"{told}made again by: ") == 1
    given = ["--teacher_model", copy / "teacher" / "SST-2"]  # by itself it is taken, since that may be on purpose
    taken = call(copy, "intermediate", *given, "--max_steps", 2, "--output_dir", copy / "taken")
    assert taken.returncode == 0 and f"{told}made again by: " in taken.stdout and "fine-tuning" not in taken.stdout
    assert f"--teacher_model {copy / 'teacher'} " in taken.stdout
    assert all(tree(copy)[name] == data for name, data in before.items() if name.startswith("teacher/"))
    short = call(copy, "intermediate", *out)  # which must not replace a teacher from a full training
    assert short.returncode == 2 and f"{told}made again by: python task_distill.py --do_finetune " in short.stderr
    out = ["--num_train_epochs", 1, "--output_dir", copy / "mid"]
    again = call(copy, "intermediate", *out)
    assert again.returncode == 0, again.stderr
    assert f"{told}fine-tuning the teacher again" in again.stdout
    assert "fine-tuning" not in call(copy, "intermediate", *out).stdout


def test_a_teacher_of_other_classes_is_doubted(pipeline):
    task, folder = find_task("MNLI"), pipeline.folder / "teacher" / "SST-2"
    run = SimpleNamespace(task=task, folder=pipeline.folder / "absent")
    assert doubt_of(folder, run) == "has a classifier of 2 classes, MNLI needs 3"
    run = SimpleNamespace(task=find_task("SST-2"), folder=pipeline.folder / "glue" / "SST-2")
    assert doubt_of(folder, run) is None


def test_a_task_json_that_is_new_makes_another_teacher_too(copy):
    run = SimpleNamespace(task=find_task("SST-2"), folder=copy / "glue" / "SST-2")
    (run.folder / "task.json").write_text("{}")
    assert doubt_of(copy / "teacher" / "SST-2", run) == "task.json has changed since it was trained"


@pytest.mark.parametrize("name, told", [("3", "another script never replaces"), ("student", "made by something else")])
def test_another_output_in_the_folder_is_found_before_a_teacher_is_fine_tuned(copy, name, told):
    shutil.rmtree(copy / "teacher" / "SST-2")
    before = tree(copy)
    process = call(copy, "intermediate", "--student_model", copy / "4", "--output_dir", copy / name)
    assert process.returncode == 2 and told in process.stderr and "--output_dir writes elsewhere" in process.stderr
    assert tree(copy) == before


@pytest.mark.slow
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


@pytest.mark.slow
def test_from_the_sample_to_one_s_own_data_every_next_line_is_pasted(tmp_path, monkeypatch, no_pictures):
    made = shutil.ignore_patterns("train_aug*", "run.json")
    shutil.copytree(ROOT / "1_pre_data", tmp_path / "1_pre_data", ignore=made)
    shutil.rmtree(tmp_path / "1_pre_data/sample/teacher/SST-2", ignore_errors=True)
    (tmp_path / "reviews").mkdir()
    for name in ("train", "dev"):
        rows = (tmp_path / f"1_pre_data/sample/SST-2/{name}.tsv").read_text().splitlines()
        (tmp_path / f"reviews/{name}.tsv").write_text("\n".join(rows[:50]) + "\n")
    monkeypatch.setattr(flags, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    short = {"task_distill.py": ["--max_steps", 2, "--limit", 40], "general_distill.py": ["--max_steps", 2]}
    for first, count in (
        ("python data_augmentation.py --sample", 6),
        ("python data_augmentation.py --sample --task_name reviews", 4),
    ):
        lines = [first]
        for line in lines:
            _, script, *given = shlex.split(line)
            process = call_script(script, *given, *short.get(script, ["--limit", 40]))
            assert process.returncode == 0, f"{line}\n{process.stderr}"
            lines += re.findall(r"next: (.*)", process.stdout)[-1:]
        assert len(lines) == count and "--do_eval" in lines[-1]
        assert all("--task_name reviews" in line for line in lines) is (count == 4)
    for folder in ("4_task_distill_mid", "5_task_distill_out"):
        assert all((tmp_path / folder / name).is_file() for name in ("run.json", "reviews/run.json"))
