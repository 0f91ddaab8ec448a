"""Bad input ends in one line that says what is wrong and where, with status 2, and leaves everything as it was."""

import errno
import fcntl
import json
import math
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from tiny import VOCABULARY, call_script, make_all, make_student_config, make_teacher, run_script, scripts, tree

import task_distill
from transformer import files
from transformer.files import UserError
from transformer.flags import GENERAL, PREGENERATION
from transformer.modeling import BertConfig, TinyBertForPreTraining, TinyBertForSequenceClassification
from transformer.settings import settings_for

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Good inputs for every script: stages 1 and 2 run, a fine-tuned teacher and a general student put in place."""
    folder = make_all(tmp_path_factory.mktemp("inputs"))
    for name in ("augment", "pregenerate"):
        assert call_script(scripts(folder)[name][0], *scripts(folder)[name][1]).returncode == 0
    config = BertConfig.from_pretrained(folder / "teacher")
    fine_tuned = make_teacher(folder / "teacher" / "SST-2")
    TinyBertForSequenceClassification(config).save_pretrained(fine_tuned)
    student = make_teacher(folder / "3", hidden_size=12, num_hidden_layers=2, intermediate_size=20)
    shutil.copytree(student, folder / "5")
    return folder


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "all")


def refused(folder, name, *flags):
    """Run one script that must refuse; returns its message. Nothing but an empty folder may be new, nothing changed."""
    script, usual = scripts(folder)[name]
    if name == "general":
        usual = [*usual, "--output_dir", folder / "out"]  # 3 holds a student that other tests need
    before = tree(folder)
    process = call_script(script, *usual, *flags)
    assert process.returncode == 2, process.stdout + process.stderr
    assert process.stderr.startswith("error: ") and process.stderr.count("\n") == 1, process.stderr
    assert "Traceback" not in process.stderr + process.stdout
    assert tree(folder) == before
    return process.stderr


def fresh(folder, name):
    """Take away what stages 1 and 2 left, for the tests of these stages."""
    gone = {"augment": folder / "glue" / "SST-2" / "train_aug", "pregenerate": folder / "2" / "epoch"}[name]
    for path in [*gone.parent.glob(f"{gone.name}*"), *gone.parent.glob("run.json")]:
        path.unlink()


# --- models


@pytest.mark.parametrize("name", ["augment", "general", "finetune", "intermediate", "prediction"])
def test_missing_teacher_weights_are_named_with_the_command_that_fetches_them(folder, name):
    assert "teacher_model: no weights there" in refused_teacher(folder, name, "pytorch_model.bin")


@pytest.mark.parametrize("name", ["augment", "pregenerate", "general", "finetune", "intermediate", "prediction"])
def test_a_teacher_without_its_vocabulary_is_named_with_the_command_that_fetches_it(folder, name):
    assert "teacher_model: no vocabulary there (vocab.txt or " in refused_teacher(folder, name, "vocab.txt")


@pytest.mark.parametrize("name", ["augment", "general", "finetune", "intermediate", "prediction"])
def test_a_teacher_without_its_config_is_named_with_the_command_that_fetches_it(folder, name):
    assert "teacher_model: no configuration there (config.json)" in refused_teacher(folder, name, "config.json")


def refused_teacher(folder, name, lacking):
    """The message of a script whose teacher_model lacks a file; it ends with step 0's command."""
    if name in ("augment", "pregenerate"):
        fresh(folder, name)
    teacher = folder / "teacher_model"
    shutil.copytree(folder / "teacher", teacher)
    shutil.rmtree(teacher / "SST-2")
    (teacher / lacking).unlink()
    flag = {"augment": "--pretrained_bert_model", "pregenerate": "--bert_model"}.get(name, "--teacher_model")
    student = ["--student_model", folder / "3", "--output_dir", folder / "out"] if name == "prediction" else []
    message = refused(folder, name, flag, teacher, *student)
    assert message.endswith("; fetched into teacher_model/ by: python -m transformer.file_utils teacher\n")
    return message


def test_a_missing_model_folder_is_named(folder):
    assert "no such folder" in refused(folder, "general", "--teacher_model", folder / "absent")
    assert "4: no such folder; run the step that writes it first" in refused(folder, "prediction")


def test_missing_student_weights_are_named(folder):
    (folder / "3" / "pytorch_model.bin").unlink()
    assert "3: no weights there" in refused(folder, "intermediate")
    assert "student: no weights there" in refused(folder, "general", "--continue_train")


def test_damaged_weights_are_refused(folder):
    path = folder / "teacher" / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:999])
    assert "teacher/pytorch_model.bin" in refused(folder, "general")


def test_weights_of_another_shape_name_both_shapes(folder):
    config = folder / "teacher" / "config.json"
    config.write_text(config.read_text().replace('"intermediate_size": 40', '"intermediate_size": 44'))
    message = refused(folder, "general")
    assert "(40, 24)" in message and "(44, 24)" in message


def test_a_broken_config_is_named_with_its_line(folder):
    (folder / "teacher" / "config.json").write_text('{\n"hidden_size": 24,\n"num_hidden_layers": \n}')
    assert re.search(r"teacher/config\.json, line 4: not valid JSON", refused(folder, "general"))


def test_a_config_value_of_the_wrong_kind_is_named(folder):
    (folder / "student" / "config.json").write_text('{"hidden_size": "wide"}')
    assert "student/config.json: hidden_size is 'wide'" in refused(folder, "general")


def test_a_missing_config_is_named(folder):
    (folder / "student" / "config.json").unlink()
    message = refused(folder, "general")
    assert "student: no configuration there (config.json); copy config.json from where the model came from" in message


def test_a_missing_vocabulary_is_named(folder):
    (folder / "teacher" / "vocab.txt").unlink()
    message = refused(folder, "general")
    assert "teacher: no vocabulary there (vocab.txt or tokenizer.json); copy vocab.txt from where" in message


def test_a_vocabulary_that_does_not_match_the_config_is_refused(folder):
    with open(folder / "teacher" / "vocab.txt", "a", encoding="utf-8") as file:
        file.write("surplus\n")
    size = len(VOCABULARY)
    assert f"vocab.txt has {size + 1} tokens, config.json says vocab_size {size}" in refused(folder, "general")


def test_layers_that_do_not_divide_are_refused(folder):
    make_student_config(folder / "student", num_hidden_layers=3)
    message = refused(folder, "general")
    assert "the teacher's 4 layers are not a multiple of the student's 3" in message


def test_heads_that_differ_are_refused(folder):
    make_student_config(folder / "student", num_attention_heads=3)
    message = refused(folder, "general")
    assert "the student has 3 attention heads, the teacher has 4" in message


def test_a_student_that_does_not_fit_is_refused_in_the_intermediate_step_too(folder):
    make_teacher(folder / "3", hidden_size=12, num_hidden_layers=3, intermediate_size=20)
    assert "not a multiple" in refused(folder, "intermediate")


@pytest.mark.parametrize("name, flags", [("intermediate", []), ("general", ["--continue_train"])])
def test_different_vocabularies_of_student_and_teacher_are_refused(folder, name, flags):
    vocabulary = (folder / "3" / "vocab.txt").read_text().splitlines()
    vocabulary[7], vocabulary[8] = vocabulary[8], vocabulary[7]
    (folder / "3" / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    message = refused(folder, name, "--student_model", folder / "3", *flags)
    assert "3/vocab.txt: differs from the teacher's vocabulary" in message


def test_augmentation_needs_a_masked_lm_head(folder):
    fresh(folder, "augment")
    message = refused(folder, "augment", "--pretrained_bert_model", folder / "teacher" / "SST-2")
    assert "no masked-LM head" in message


def test_more_tokens_than_positions_are_refused(folder):
    assert "37 positions" in refused(folder, "general", "--max_seq_length", 38)
    assert "37 positions" in refused(folder, "intermediate", "--max_seq_length", 38)


def test_the_output_folder_is_never_the_student_s_or_the_teacher_s(folder):
    flags = ["--overwrite_output", "--output_dir"]
    assert "is the folder of --student_model" in refused(folder, "intermediate", *flags, folder / "3")
    assert "is the folder of --teacher_model" in refused(folder, "intermediate", *flags, folder / "teacher")
    assert "is the folder of --teacher_model" in refused(folder, "general", *flags, folder / "teacher")
    assert "is the folder of --student_model" in refused(folder, "general", *flags, folder / "student")


# --- task files


TASK_SCRIPTS = ["augment", "finetune"]


def broken_task(folder, name, lines=None):
    """Change train.tsv (None: take it away) for a script that reads it."""
    if name == "augment":
        fresh(folder, name)
    else:
        shutil.rmtree(folder / "teacher" / "SST-2")
    path = folder / "glue" / "SST-2" / "train.tsv"
    path.unlink()
    if lines is not None:
        path.write_bytes(lines)
    return refused(folder, name)


@pytest.mark.parametrize("name", TASK_SCRIPTS)
@pytest.mark.parametrize(
    "lines, told",
    [
        (None, "train.tsv: no such file; fetched into SST-2/ by: python -m transformer.file_utils SST-2\n"),
        (b"", "train.tsv: the file is empty"),
        (b"sentence\tlabel\n", "train.tsv: no rows"),
        (b"sentence\tlabel\na\t1\na film\tgood\t0\n", "train.tsv line 3: 3 columns, expected 2"),
        (b"sentence\tlabel\na\t1\na\t2\n", "train.tsv line 3: label '2', expected one of 0, 1"),
        (b"text\tlabel\na\t1\n", "train.tsv line 1: no column 'sentence' for SST-2; found text, label"),
        (b"sentence\tlabel\na\t1\na\t1\na \xff b\t0\n", "train.tsv line 4: not UTF-8 text"),
    ],
    ids=["missing", "empty", "header only", "columns", "label", "no column", "not UTF-8"],
)
def test_a_train_file_that_cannot_be_used_is_named_with_its_line(folder, name, lines, told):
    assert told in broken_task(folder, name, lines)


def test_a_fine_tuned_teacher_of_other_classes_is_refused(folder):
    config = BertConfig.from_pretrained(folder / "teacher", num_labels=3)
    TinyBertForSequenceClassification(config).save_pretrained(folder / "teacher" / "SST-2")
    assert "a classifier of 3 classes, SST-2 needs 2" in refused(folder, "intermediate")


@pytest.mark.parametrize("change", ["no projection", "width", "vocabulary"])
def test_a_general_student_that_is_not_the_teacher_s_is_not_evaluated(folder, change):
    output = folder / "out"
    if change == "vocabulary":
        config = BertConfig.from_pretrained(folder / "3", fit_size=24)
        TinyBertForPreTraining(config).save_pretrained(folder / "3")
        words = (folder / "3" / "vocab.txt").read_text().splitlines()
        (folder / "3" / "vocab.txt").write_text("\n".join([*words[:-2], words[-1], words[-2]]) + "\n")
    elif change == "width":
        TinyBertForPreTraining(BertConfig.from_pretrained(folder / "3", fit_size=20)).save_pretrained(folder / "3")
    shutil.copytree(folder / "3", output)
    message = refused(folder, "general", "--do_eval")
    told = {
        "no projection": "its projection is onto width None, the teacher has 24",
        "width": "onto width 20",
        "vocabulary": "differs from the teacher's vocabulary",
    }
    assert told[change] in message


@pytest.mark.parametrize(
    "flags",
    [
        ["--learning_rate", "nan"],
        ["--wd", "inf"],
        ["--attention_weight", "-1"],
        ["--hidden_weight", "nan"],
        ["--attention_weight", "0", "--hidden_weight", "0"],
        ["--seed", "99999999999999999999"],
    ],
    ids=" ".join,
)
def test_numbers_that_are_none_are_refused(folder, flags):
    assert flags[0].replace("wd", "weight_decay") in refused(folder, "general", *flags)


def test_a_file_that_may_not_be_read_is_named(folder, monkeypatch):
    def opened(path, *args, **kwargs):
        if str(path).endswith("dev.tsv"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    real = open
    monkeypatch.setattr("builtins.open", opened)
    assert "dev.tsv: Permission denied" in refused(folder, "intermediate")


def test_a_missing_dev_file_is_named_before_anything_is_trained(folder):
    (folder / "glue" / "SST-2" / "dev.tsv").unlink()
    told = "dev.tsv: no such file; fetched into SST-2/ by: python -m transformer.file_utils SST-2\n"
    assert refused(folder, "intermediate").endswith(told)


def test_the_missing_augmented_file_names_the_script_that_makes_it(folder):
    (folder / "glue" / "SST-2" / "train_aug.tsv").unlink()
    shutil.rmtree(folder / "teacher" / "SST-2")  # found before a teacher is fine-tuned
    message = refused(folder, "intermediate")
    assert "train_aug.tsv: no such file; made by: python data_augmentation.py " in message
    teacher, glue = folder / "teacher", folder / "glue"
    assert message.endswith(f" --pretrained_bert_model {teacher} --glue_dir {glue}\n")


@pytest.mark.parametrize("name", ["augment", "intermediate"])
def test_an_unknown_task_is_named_with_the_known_ones(folder, name):
    place = "--glue_dir" if name == "augment" else "--data_dir"
    message = refused(folder, name, "--task_name", "SST-3", place, folder / "absent")
    assert "SST-3: neither one of CoLA, SST-2" in message and "train.tsv" in message


def test_no_finetune_refuses_a_teacher_without_a_classifier(folder):
    shutil.rmtree(folder / "teacher" / "SST-2")
    assert (
        "no classifier for SST-2; leave out --no_finetune, or make it by: python task_distill.py --do_finetune"
        in refused(folder, "intermediate", "--no_finetune")
    )


# --- word vectors, corpus, epoch files


@pytest.mark.parametrize(
    "lines, told",
    [
        (None, "glove.txt: no such file\n"),
        (b"", "glove.txt: the file is empty"),
        (b"a 1 2 3\nb 1 2\n", "glove.txt line 2: 2 numbers after the word, expected 3"),
        (b"a 1 2 3\nb\nc 1 2 3\n", "glove.txt line 2: 0 numbers after the word, expected 3"),
        (b"a 1 2 3\nb 1 two 3\n", "glove.txt line 2: expected a word and 3 numbers"),
        (b"a 1 2 3\n\xff 1 2 3\n", "glove.txt line 2: not UTF-8"),
    ],
    ids=["missing", "empty", "too short", "a word alone", "no numbers", "not UTF-8"],
)
def test_word_vectors_that_cannot_be_used_are_named_with_their_line(folder, lines, told):
    fresh(folder, "augment")
    (folder / "glove.txt").unlink()
    if lines is not None:
        (folder / "glove.txt").write_bytes(lines)
    assert told in refused(folder, "augment")


def test_missing_glove_vectors_are_named_with_the_command_that_fetches_them(folder):
    fresh(folder, "augment")
    message = refused(folder, "augment", "--glove_embs", folder / "glove.6B.100d.txt")
    told = "no such file; fetched into 1_pre_data/ by: python -m transformer.file_utils glove\n"
    assert message.endswith(f"glove.6B.100d.txt: {told}")


@pytest.mark.parametrize(
    "text, told",
    [
        (None, "corpus.txt: no such file"),
        (b"", "corpus.txt: no text in it"),
        (b"\n \n\n", "corpus.txt: no text in it"),
        (b"the film .\nthe plot .\n", "corpus.txt: one document only"),
        (b"the film .\n\nthe \xe9 plot .\n", "corpus.txt line 3: not UTF-8"),
    ],
    ids=["missing", "empty", "blank", "one document", "not UTF-8"],
)
def test_a_corpus_that_cannot_be_used_is_named(folder, text, told):
    fresh(folder, "pregenerate")
    (folder / "corpus.txt").unlink()
    if text is not None:
        (folder / "corpus.txt").write_bytes(text)
    assert told in refused(folder, "pregenerate")


def test_one_document_is_enough_without_pairs(folder):
    fresh(folder, "pregenerate")
    (folder / "corpus.txt").write_text("the film .\nthe plot .\n")
    script, flags = scripts(folder)["pregenerate"]
    assert call_script(script, *flags, "--one_seq").returncode == 0


def test_missing_epochs_name_the_script_that_makes_them(folder):
    shutil.rmtree(folder / "2")
    assert "no epoch_0_metrics.json; pregenerate_training_data.py makes it" in refused(folder, "general")


def test_an_epoch_without_metrics_is_no_epoch(folder):
    (folder / "2" / "epoch_0_metrics.json").unlink()
    told = refused(folder, "general")
    assert (
        "epoch_0_metrics.json: missing, though its run finished; put it back, or: made again by: python pregenerate"
        in told
    )
    (folder / "2" / "run.json").unlink()
    assert "no epoch_0_metrics.json" in refused(folder, "general")


def test_an_epoch_that_lacks_its_sequences_is_named(folder):
    (folder / "2" / "epoch_1.json").unlink()
    assert "epoch_1.json: missing" in refused(folder, "general")


def test_metrics_that_are_no_metrics_are_named(folder):
    (folder / "2" / "epoch_0_metrics.json").write_text("[]")
    assert "epoch_0_metrics.json: expected one JSON object with num_training_examples and max_seq_len" in refused(
        folder, "general"
    )


def test_an_incomplete_epoch_tells_both_numbers(folder):
    path = folder / "2" / "epoch_0.json"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-2]) + "\n")
    assert f"{len(lines) - 2} sequences, its metrics file says {len(lines)}" in refused(folder, "general")


@pytest.mark.parametrize(
    "line, told",
    [
        ("{broken", "epoch_0.json line 3: not valid JSON"),
        ('{"tokens": ["the"]}', "epoch_0.json line 3: 'segment_ids' is missing"),
        ('{"tokens": ["absent"], "segment_ids": [0]}', "epoch_0.json line 3: 'absent'"),
        (json.dumps({"tokens": ["the"] * 32, "segment_ids": [0] * 32}), "line 3: 32 tokens, --max_seq_length is 31"),
    ],
    ids=["no JSON", "no field", "no token", "too long"],
)
def test_a_bad_sequence_is_named_with_its_line(folder, line, told):
    path = folder / "2" / "epoch_0.json"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], line, *lines[3:]]) + "\n")
    assert told in refused(folder, "general")


# --- flags


@pytest.mark.parametrize(
    "name, flags",
    [
        ("augment", "--N -1"),
        ("augment", "--M 0"),
        ("augment", "--p 1.5"),
        ("augment", "--p -0.1"),
        ("augment", "--limit 0"),
        ("pregenerate", "--max_seq_len 7"),
        ("pregenerate", "--num_workers 0"),
        ("pregenerate", "--epochs_to_generate 0"),
        ("pregenerate", "--short_seq_prob 2"),
        ("pregenerate", "--masked_lm_prob -0.1"),
        ("pregenerate", "--max_predictions_per_seq 0"),
        ("general", "--train_batch_size 0"),
        ("general", "--learning_rate -1"),
        ("general", "--wd -1"),
        ("general", "--num_train_epochs 0"),
        ("general", "--warmup_proportion 1"),
        ("general", "--eval_step 0"),
        ("general", "--gradient_accumulation_steps 0"),
        ("general", "--max_seq_length 0"),
        ("general", "--max_steps 0"),
        ("general", "--eval_batch_size 0"),
        ("general", "--num_train_epochs inf"),
        ("general", "--num_train_epochs 1000000001"),
        *((name, f"{flag} {10**30}") for name, flag in (("augment", "--N"), ("augment", "--limit"))),
        *((name, f"{flag} {10**30}") for name, flag in (("general", "--train_batch_size"), ("finetune", "--seed"))),
        ("intermediate", "--warmup_proportion -0.1"),
        ("intermediate", "--temperature 0"),
        ("intermediate", "--max_seq_length 1"),
        ("prediction", "--temperature -1"),
        ("finetune", "--train_batch_size -3"),
        ("evaluate", "--eval_batch_size 0"),
    ],
)
def test_a_number_out_of_range_is_named_with_its_flag(folder, name, flags):
    flag, value = flags.split()
    flag = {"--wd": "--weight_decay"}.get(flag, flag)
    message = refused(folder, name, *flags.split())
    assert value in message and (flag in message or "maximum length" in message)


@pytest.mark.parametrize(
    "name, flag",
    [("pregenerate", "--output_dir"), ("pregenerate", "--train_corpus"), ("augment", "--glove_embs")]
    + [("general", "--teacher_model"), ("prediction", "--output_dir")],
)
def test_an_empty_path_is_named_with_its_flag(folder, name, flag):
    assert refused(folder, name, flag, "") == f'error: {flag} "": expected a path\n'


def test_the_home_of_nobody_is_no_folder(folder, monkeypatch):
    assert "~nobody-here: no such" in refused(folder, "general", "--teacher_model", "~nobody-here")
    fresh(folder, "pregenerate")
    assert "~nobody-here: no such" in refused(folder, "pregenerate", "--train_corpus", "~nobody-here")


def test_an_evaluation_beside_another_run_s_student_is_refused(folder):
    student = shutil.copytree(folder / "2", folder / "other")  # any output will do
    for mode in ("--do_eval", "--do_predict"):
        told = refused(folder, "evaluate", mode, "--output_dir", student)
        assert f"--output_dir {student}: has the output of another run than {folder / '5'}" in told
    record = '{"script": "general_distill", "settings": {}, "inputs": {}, "finished": false, "command": "python a.py"}'
    (folder / "5" / "run.json").write_text(record)
    assert "5: its run is at work or was stopped; finished by: python a.py\n" in refused(folder, "evaluate")
    (folder / "3" / "run.json").write_text(record)
    assert "3: its run is at work or was stopped" in refused(
        folder, "general", "--do_eval", "--output_dir", folder / "3"
    )


def test_predictions_are_never_written_among_the_files_that_they_are_for(folder):
    data = folder / "glue" / "SST-2"
    shutil.copy(folder / "teacher" / "SST-2" / "pytorch_model.bin", folder / "5")
    shutil.copy(folder / "teacher" / "SST-2" / "config.json", folder / "5")
    for mode, told in (("--do_predict", "test.tsv"), ("--do_eval", "--data_dir")):
        script, flags = scripts(folder)["evaluate"]
        before = tree(folder)
        process = call_script(script, *(flag for flag in flags if flag != "--do_eval"), mode, "--output_dir", data)
        assert process.stderr == f"error: --output_dir {data}: is the folder of {told}; choose another\n"
        assert process.returncode == 2 and tree(folder) == before


@pytest.mark.parametrize("name", ["augment", "pregenerate", "general", "intermediate"])
def test_a_word_for_a_number_and_an_unknown_flag_end_with_status_2(folder, name):
    for flags in (["--seed", "many"], ["--no_such_flag"]):
        process = call_script(scripts(folder)[name][0], *flags)
        assert process.returncode == 2 and flags[0] in process.stderr and "Traceback" not in process.stderr


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("max_steps", "2", "a whole number"),
        ("max_steps", 2.0, "a whole number"),
        ("max_steps", [2], "a whole number"),
        ("seed", True, "a whole number"),
        ("learning_rate", "1e-3", "a number"),
        ("learning_rate", {}, "a number"),
        ("no_cuda", 1, "True or False"),
        ("sample", "yes", "True or False"),
        ("precision", "fp8", "one of auto, fp32, bf16, fp16"),
        ("precision", [], "one of auto, fp32, bf16, fp16"),
        ("output_dir", 4, "text in quotes"),
        ("task_name", ["SST-2"], "text in quotes"),
        ("seeds", (1, 2), "text in quotes"),
    ],
)
def test_a_header_s_value_of_the_wrong_kind_is_named(monkeypatch, name, value, expected):
    monkeypatch.setattr(task_distill, "HEADER", {name: value})
    process = call_script("task_distill.py")
    assert process.returncode == 2
    assert process.stderr == f"error: HEADER: {name!r} is {value!r}, expected {expected}\n"


def test_a_header_s_value_that_fits_is_taken_as_the_command_line_s():
    read = settings_for(GENERAL, {}, {"num_train_epochs": 2, "output_dir": Path("a"), "limit": None, "no_cuda": False})
    assert (read.num_train_epochs, type(read.num_train_epochs)) == (2.0, float)
    assert (read.output_dir, read.limit, read.no_cuda) == ("a", None, False) and "limit" not in read.origins
    for value in ("a", ["a", Path("b")]):
        assert settings_for(PREGENERATION, {}, {"train_corpus": value}).train_corpus == ["a", "b"][: len(value)]
    for value in ([], ["a", 3], 3):
        with pytest.raises(UserError, match="HEADER: 'train_corpus' is .*, expected text in quotes"):
            settings_for(PREGENERATION, {}, {"train_corpus": value})


@pytest.mark.parametrize("name", ["pregenerate", "general", "intermediate", "prediction"])
def test_an_output_folder_that_cannot_be_made_is_named(folder, name):
    shutil.copytree(folder / "3", folder / "4")
    message = refused(folder, name, "--output_dir", folder / "corpus.txt" / "inside")
    assert "corpus.txt/inside: cannot be created" in message


@pytest.mark.slow
def test_a_failed_run_does_not_stand_in_the_way_of_the_next(folder):
    path = folder / "glue" / "SST-2" / "train.tsv"
    for name in ("augment", "finetune"):
        good = path.read_bytes()
        broken_task(folder, name, b"sentence\tlabel\na\t7\n")
        path.write_bytes(good)
        process = call_script(scripts(folder)[name][0], *scripts(folder)[name][1])
        assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("name", ["augment", "pregenerate", "general", "finetune"])
def test_overwriting_removes_nothing_before_the_inputs_are_known_to_be_good(folder, name):
    if name in ("general", "finetune"):
        out = ["--output_dir", folder / "out"] if name == "general" else []
        process = call_script(scripts(folder)[name][0], *scripts(folder)[name][1], "--overwrite_output", *out)
        assert process.returncode == 0
    (folder / "corpus.txt").write_bytes(b"one document")
    (folder / "glove.txt").write_bytes(b"")
    (folder / "2" / "epoch_0.json").write_bytes(b"")
    (folder / "glue" / "SST-2" / "dev.tsv").write_bytes(b"")
    refused(folder, name, "--overwrite_output")


def test_debug_shows_the_traceback(folder):
    (folder / "corpus.txt").unlink()
    fresh(folder, "pregenerate")
    script, flags = scripts(folder)["pregenerate"]
    process = run_script(script, *flags, "--debug", check=False)
    assert process.returncode != 0 and "Traceback" in process.stderr and "corpus.txt: no such file" in process.stderr
    process = run_script(script, *flags, check=False)
    assert process.returncode == 2 and "Traceback" not in process.stderr


def test_a_model_that_carries_code_is_refused(folder):
    torch.save({"weights": shutil.copytree}, folder / "teacher" / "pytorch_model.bin")
    assert "refused" in refused(folder, "general")


def test_weights_that_are_no_numbers_are_named(folder):
    state = torch.load(folder / "3" / "pytorch_model.bin", weights_only=True)
    state["bert.pooler.dense.bias"][3] = math.nan
    torch.save(state, folder / "3" / "pytorch_model.bin")
    assert "bert.pooler.dense.bias holds NaN or infinite numbers" in refused(folder, "intermediate")


@pytest.mark.parametrize(
    "name, output",
    [
        ("augment", "glue/SST-2"),
        ("pregenerate", "2"),
        ("general", "out"),
        ("finetune", "teacher/SST-2"),
        ("intermediate", "4"),
    ],
)
def test_a_second_run_in_the_same_folder_is_refused(folder, name, output, monkeypatch):
    monkeypatch.setattr(files, "LOCK_SECONDS", 0.1)
    (folder / output).mkdir(exist_ok=True)
    descriptor = os.open(folder / output, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        assert "another run is writing there" in refused(folder, name, "--overwrite_output")
    finally:
        os.close(descriptor)
    script, flags = scripts(folder)[name]
    assert call_script(script, *flags, "--overwrite_output").returncode == 0


@pytest.mark.parametrize("name", ["augment", "pregenerate", "general", "intermediate"])
def test_an_output_on_a_disk_that_is_read_only_is_told(folder, name, monkeypatch):
    if name in ("augment", "pregenerate"):
        fresh(folder, name)
    really_open = open

    def open_to_read(path, mode="r", *args, **kwargs):
        if set(mode) & set("wax+") and str(path).startswith(str(folder)):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return really_open(path, mode, *args, **kwargs)

    monkeypatch.setattr("builtins.open", open_to_read)
    message = refused(folder, name)
    assert "Read-only file system" in message and str(folder) in message


def test_a_doubled_column_is_named(folder):
    train = folder / "glue" / "SST-2" / "train.tsv"
    train.write_text("sentence\tlabel\tlabel\na film\t0\t1\n")
    assert "train.tsv line 1: more than one column 'label'" in refused(folder, "finetune", "--overwrite_output")


def test_general_distillation_s_evaluation_leaves_other_students_results_alone(folder):
    (folder / "3" / "run.json").write_text('{"script": "task_distill", "settings": {}, "inputs": {}, "finished": true}')
    (folder / "3" / "eval_results.txt").write_text("acc = 0.5\n")
    told = refused(folder, "general", "--do_eval", "--output_dir", folder / "3")
    assert "3: has the output of task_distill; expected a student of general_distill.py" in told
    assert (folder / "3" / "eval_results.txt").read_text() == "acc = 0.5\n"
