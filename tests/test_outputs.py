"""The record that decides whether a run starts, goes on, or leaves an output alone; records of before; fingerprints."""

import fcntl
import json
import logging
import os
import re
import time

import pytest
from tiny import ROOT, names, tree

import data_augmentation
import general_distill
import pregenerate_training_data
import task_distill
from transformer import files
from transformer.downloads import model_folder, need
from transformer.epochs import pregenerated_epochs
from transformer.file_utils import UserError
from transformer.files import make_folder
from transformer.flags import ALL, AUGMENTATION, BASELINE, FINETUNE, GENERAL, PREDICTION, PREGENERATION, flags_of
from transformer.outputs import OneProcess, Output, fingerprint, holding, read_results, write_results
from transformer.settings import settings_for
from transformer.tokenization import TOKENIZER_FILES

SAMPLE = ROOT / "1_pre_data" / "sample"


@pytest.fixture(autouse=True)
def without_locks():
    """Frees the folders that a test locked, as the end of a process does."""
    yield
    while files.LOCKS:
        os.close(files.LOCKS.popitem()[1])


def make_output(folder, inputs=None, replaces=("result.txt",), step=GENERAL, **given):
    provenance = settings_for(step, given).provenance
    return Output(folder / "result.txt", provenance, inputs or {}, replaces=tuple(replaces))


def status_of(output):
    """How an output finds what is there: fresh, resume or finished."""
    with output:
        return "finished" if output.finished else "resume" if output.replaced is None else "fresh"


def finish(output):
    with output:
        assert output.replaced is not None
        output.begin()
        output.result.write_text("done")
        output.finish("1 row in")


def start(output):
    """Begin, and stop before the end."""
    with output:
        output.begin()


def test_a_first_run_is_fresh_and_a_second_one_finished(tmp_path):
    finish(make_output(tmp_path))
    assert status_of(make_output(tmp_path, replaces=["result.txt"])) == "finished"


def test_a_claim_writes_nothing(tmp_path):
    assert status_of(make_output(tmp_path)) == "fresh"
    assert list(tmp_path.iterdir()) == []
    finish(make_output(tmp_path))
    before = (tmp_path / "run.json").read_bytes()
    again = make_output(tmp_path, replaces=["result.txt"], seed=5, overwrite_output=True)
    assert status_of(again) == "fresh"
    assert (tmp_path / "result.txt").read_text() == "done" and (tmp_path / "run.json").read_bytes() == before


def test_an_unfinished_run_is_resumed_with_its_progress(tmp_path):
    with make_output(tmp_path) as output, open(tmp_path / "part", "wb") as file:
        output.begin()
        output.save_progress([file], {"rows": 17})
    again = make_output(tmp_path)
    assert status_of(again) == "resume"
    assert again.progress == {"rows": 17}


@pytest.mark.parametrize(
    "given, told", [({"seed": 5}, "seed was 42, is now 5"), ({"limit": 3}, "limit was not given, is now 3")]
)
def test_another_setting_is_refused_and_named(tmp_path, given, told):
    finish(make_output(tmp_path))
    with pytest.raises(UserError, match=re.escape(told) + ".*--overwrite_output"):
        status_of(make_output(tmp_path, **given))


def test_more_than_three_differences_are_counted(tmp_path):
    finish(make_output(tmp_path))
    with pytest.raises(UserError, match=r"; max_steps was not given, is now 2 \(and 1 more\);"):
        status_of(make_output(tmp_path, eval_step=3, limit=1, max_steps=2, seed=5))


def test_an_input_counts_by_its_content_not_by_its_path(tmp_path):
    (tmp_path / "a.txt").write_text("same")
    (tmp_path / "b.txt").write_text("same")
    out = make_folder(tmp_path / "out")
    finish(make_output(out, {"data": tmp_path / "a.txt"}))
    assert status_of(make_output(out, {"data": tmp_path / "b.txt"})) == "finished"
    (tmp_path / "b.txt").write_text("diff")
    with pytest.raises(
        UserError, match="b.txt has changed; --overwrite_output replaces it, --output_dir writes elsewhere"
    ):
        status_of(make_output(out, {"data": tmp_path / "b.txt"}))


NOT_THE_RESULT = {name: flag for name, flag in flags_of(PREDICTION).items() if not flag.result}


# The three others act upon flags that count.
@pytest.mark.parametrize("name", sorted(NOT_THE_RESULT.keys() - {"overwrite_output", "fp16", "sample"}))
def test_flags_that_do_not_change_the_result_do_not_count(tmp_path, name):
    finish(make_output(tmp_path, step=PREDICTION))
    kind = NOT_THE_RESULT[name].type
    other = "8" if name == "seeds" else True if kind is bool else 3 if kind is int else str(tmp_path / "other")
    assert status_of(make_output(tmp_path, step=PREDICTION, **{name: other})) == "finished"


def test_the_flags_that_do_not_change_the_result_are_those_of_before():
    rows = {name: flag for step in ALL for name, flag in flags_of(step).items()}
    of_all = (
        "cache_dir data_url debug do_export local_rank no_cuda num_workers overwrite_output reduce_memory sample fp16"
    )
    of_steps = "baseline do_eval do_finetune do_predict no_finetune seeds batch_size eval_batch_size keep_checkpoints"
    folders = "predict_file data_dir output_dir pregenerated_data"
    assert {name for name, flag in rows.items() if not flag.result} == {*f"{of_all} {of_steps} {folders}".split()}


def test_files_without_a_record_are_not_replaced(tmp_path):
    result = tmp_path / "result.txt"
    result.write_text("somebody's")
    with pytest.raises(UserError, match="result.txt: already there"):
        status_of(make_output(tmp_path, replaces=["result.txt"]))
    start(make_output(tmp_path, replaces=["result.txt"], overwrite_output=True))
    assert not result.exists()


def test_a_finished_output_whose_result_was_deleted_is_made_again(tmp_path):
    finish(make_output(tmp_path))
    (tmp_path / "result.txt").unlink()
    assert status_of(make_output(tmp_path)) == "fresh"


def test_an_output_never_replaces_the_folder_it_reads(tmp_path):
    with pytest.raises(UserError, match="is the folder of --teacher_model"):
        status_of(make_output(tmp_path, {"teacher_model": tmp_path / "."}))
    with pytest.raises(UserError, match="is the folder of --teacher_model"):
        status_of(make_output(tmp_path, {"teacher_model": tmp_path / "SST-2"}, teacher_model=str(tmp_path)))
    settings = pregenerate_training_data.read_settings(["--train_corpus", "elsewhere", str(tmp_path)])
    (tmp_path / "data.txt").write_text("text")
    for name, told in (("data.txt", "data.txt"), ("train_corpus", "--train_corpus")):
        with pytest.raises(UserError, match=f"is the folder of {told}; choose another"):
            status_of(make_output(tmp_path, {name: [tmp_path / "data.txt"]}))
    with pytest.raises(UserError, match="is the folder of --train_corpus"):
        status_of(Output(tmp_path / "result.txt", settings.provenance, {"train_corpus": [tmp_path / "a.txt"]}))


def test_an_unfinished_output_goes_on_though_its_command_says_overwrite(tmp_path):
    result, overwriting = tmp_path / "result.txt", {"overwrite_output": True}
    start(make_output(tmp_path, **overwriting))
    assert status_of(make_output(tmp_path, **overwriting)) == "resume"
    assert status_of(make_output(tmp_path, seed=8, **overwriting)) == "fresh"
    with make_output(tmp_path) as output:
        result.write_text("done")
        output.finish("1 row in")
    assert status_of(make_output(tmp_path)) == "finished"
    assert status_of(make_output(tmp_path, replaces=["result.txt"], **overwriting)) == "fresh"


def test_zeros_are_settings_too(tmp_path):
    start(make_output(tmp_path, seed=0, weight_decay=0.0))
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["settings"]["seed"] == 0 and record["settings"]["weight_decay"] == 0.0
    with pytest.raises(UserError, match=r"seed was 0, is now 42; weight_decay was 0.0, is now 0.01"):
        status_of(make_output(tmp_path))
    with pytest.raises(UserError, match="seed was 0, is now 3"):
        status_of(make_output(tmp_path, seed=3, weight_decay=0.0))


def test_a_summary_tells_what_was_done_and_the_command_to_paste(tmp_path, caplog):
    output = make_output(tmp_path)
    output.started = time.monotonic() - 61
    output.next_command = "python next.py --a 'x y'"
    with caplog.at_level(logging.INFO), output:
        output.finish("29 rows in, 88 rows out")
    assert caplog.messages == [
        "29 rows in, 88 rows out, 1:01",
        f"written: {tmp_path / 'result.txt'}",
        "next: python next.py --a 'x y'",
    ]
    caplog.clear()
    (tmp_path / "result.txt").write_text("done")
    with caplog.at_level(logging.INFO):
        assert status_of(make_output(tmp_path)) == "finished"
    assert caplog.messages == [f"finished before: {tmp_path / 'result.txt'}"]


def test_an_error_inside_tells_nothing_of_an_end(tmp_path, caplog):
    with caplog.at_level(logging.INFO), pytest.raises(ZeroDivisionError), make_output(tmp_path) as output:
        output.begin()
        1 / 0  # noqa: B018
    assert caplog.messages == [] and status_of(make_output(tmp_path)) == "resume"


# --- finished output is never replaced without --overwrite_output


def test_more_epochs_with_another_seed_do_not_replace_those_of_a_finished_run(tmp_path):
    def pregeneration(epochs, **given):
        provenance = settings_for(PREGENERATION, {"epochs_to_generate": epochs, **given}).provenance
        return Output(tmp_path / f"epoch_{epochs - 1}_metrics.json", provenance, {}, replaces=("epoch_*.json",))

    finish(pregeneration(2))
    before = tree(tmp_path)
    with pytest.raises(
        UserError, match="epochs_to_generate was 2, is now 3; seed was 42, is now 5; --overwrite_output"
    ):
        status_of(pregeneration(3, seed=5))
    assert tree(tmp_path) == before and status_of(pregeneration(2)) == "finished"


@pytest.mark.parametrize("given", [{}, {"overwrite_output": True}])
@pytest.mark.parametrize("done", [finish, start])
def test_another_script_s_output_is_refused_even_with_overwrite_output(tmp_path, given, done):
    done(make_output(tmp_path))
    before = tree(tmp_path)
    # It would find none of its own files, and none of the others would it remove.
    other = Output(tmp_path / "other", settings_for(PREGENERATION, given).provenance, {}, replaces=("epoch_*",))
    told = "has the output of general_distill, which another script never replaces"
    with pytest.raises(UserError, match=f"{told}.*; --output_dir writes elsewhere") as refused:
        status_of(other)
    assert "--overwrite_output" not in str(refused.value) and tree(tmp_path) == before


def finished_model(folder):
    """A finished output with the files of a model. Returns the `Output` of the same run again."""
    provenance = settings_for(GENERAL, {}).provenance
    with Output(make_folder(folder) / "pytorch_model.bin", provenance, {}) as output:
        output.begin()
        for name in ("config.json", "vocab.txt", "pytorch_model.bin", "curves.png"):
            (folder / name).write_text("{}")
        output.finish("1 row in")
    return Output(folder / "pytorch_model.bin", provenance, {})


def test_a_model_whose_weights_were_converted_is_still_finished(tmp_path):
    again = finished_model(tmp_path)
    os.replace(tmp_path / "pytorch_model.bin", tmp_path / "model.safetensors")
    (tmp_path / "curves.png").unlink()  # an extra
    assert status_of(again) == "finished" and model_folder(tmp_path) == tmp_path


def test_a_finished_model_that_lost_a_file_is_not_trained_again_and_the_way_out_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["general_distill.py", "--output_dir", "a b"])
    again = finished_model(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    told = "vocab.txt: missing, though its run finished; "
    with pytest.raises(
        UserError, match=f"{told}put it back, or: made again by: python .* --output_dir 'a b' --overwrite_output$"
    ):
        status_of(again)
    with pytest.raises(UserError, match=f"{told}put it back, or: made again by: python"):
        model_folder(tmp_path)
    with pytest.raises(UserError, match="no vocabulary there .* --output_dir 'a b' --overwrite_output$"):
        need("vocabulary", tmp_path)


@pytest.mark.parametrize("text", ["[1]", "{", '{"script": 5}', '{"settings": {"step": 5}}', '{"inputs": {"a": 1}}'])
def test_a_record_of_another_program_is_refused_with_the_ways_out(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UserError, match="run.json.*; where it is no record of this suite, remove it or choose another"):
        status_of(make_output(tmp_path))
    with pytest.raises(UserError, match="remove it"), holding(tmp_path, tmp_path / "student", OneProcess):
        pass


def test_what_is_there_is_looked_for_under_the_lock(tmp_path):
    late = make_output(tmp_path, replaces=["epoch_*"], seed=5, overwrite_output=True)
    finish(make_output(tmp_path, replaces=["epoch_*"]))
    (tmp_path / "epoch_0").write_text("of the run that went first")
    start(late)
    assert names(tmp_path) == {"result.txt", "run.json"}


def test_an_output_frees_its_folder_at_its_end(tmp_path):
    start(make_output(tmp_path))
    assert not files.LOCKS
    finish(make_output(make_folder(tmp_path / "other")))
    assert not files.LOCKS


def test_a_record_keeps_the_command_of_the_run_that_began(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["general_distill.py", "--seed", "42"])
    start(make_output(tmp_path))
    monkeypatch.setattr("sys.argv", ["elsewhere.py"])
    with make_output(tmp_path) as output:
        output.begin()
        output.result.write_text("done")
        output.finish("1 row in")
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["command"] == "python general_distill.py --seed 42" and record["results"] == ["result.txt"]


# --- what a next stage, an evaluation or predictions may read and write


def test_an_unfinished_input_is_refused_with_the_command_that_finishes_it(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["general_distill.py", "--seed", "42"])
    start(make_output(tmp_path))
    for name in ("config.json", "pytorch_model.bin", "epoch_0.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "epoch_0_metrics.json").write_text('{"num_training_examples": 1, "max_seq_len": 9}')
    for read in (model_folder, pregenerated_epochs):
        with pytest.raises(UserError, match="at work or was stopped; finished by: python general_.* --seed 42$"):
            read(tmp_path)
    (tmp_path / "run.json").write_text('{"finished": false}')  # of an earlier release
    with pytest.raises(UserError, match="its run is at work or was stopped; finished by: the command that began it"):
        model_folder(tmp_path)


def test_results_are_not_written_where_another_run_is_or_was(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LOCK_SECONDS", 0.1)
    start(make_output(tmp_path))
    student, told = tmp_path / "student", "has the output of another run than .*student; choose another"
    with pytest.raises(UserError, match=told), holding(tmp_path, student, OneProcess):
        pass
    with holding(tmp_path, tmp_path / ".", OneProcess):
        assert files.LOCKS
    assert not files.LOCKS
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another run is writing there"), holding(tmp_path, tmp_path, OneProcess):
        pass
    os.close(descriptor)


# --- what is refused before any work


def test_a_check_refuses_what_entering_refuses_and_changes_nothing(tmp_path):
    out = tmp_path / "out"
    make_output(out).check()
    assert not out.exists()
    (tmp_path / "a.txt").write_text("same")
    finish(make_output(make_folder(out), {"teacher_model": tmp_path / "a.txt", "data": tmp_path / "a.txt"}))
    before = tree(tmp_path)
    make_output(out, {"teacher_model": None, "data": tmp_path / "a.txt"}).check()  # the teacher is not known yet
    with pytest.raises(UserError, match="flags: seed was 42, is now 5;"):
        make_output(out, {"teacher_model": None, "data": tmp_path / "a.txt"}, seed=5).check()
    with pytest.raises(UserError, match="flags: data is no input now; more was no input;"):
        make_output(out, {"teacher_model": None, "more": [tmp_path / "a.txt"]}).check()
    with pytest.raises(UserError, match="is the folder of --teacher_model"):
        make_output(out, {"data": tmp_path / "a.txt"}, teacher_model=str(out)).check()
    assert tree(tmp_path) == before


def test_an_output_that_is_one_file_is_named_as_that_file_and_has_no_other_folder(tmp_path):
    for given in ({}, {"seed": 5}):
        provenance = settings_for(AUGMENTATION, given).provenance
        output = Output(tmp_path / "result.txt", provenance, {}, replaces=("result.txt",), whole_folder=False)
        if given:
            with pytest.raises(UserError, match="result.txt: made with other .*; --overwrite_output replaces it$"):
                status_of(output)
        else:
            finish(output)


def test_a_copy_of_an_output_has_no_other_task_s_output_in_it(tmp_path):
    for name in ("out/reviews", "out/baseline", "out"):
        finish(make_output(make_folder(tmp_path / name), data_url=str(tmp_path / "url") if name == "out" else None))
    assert names(tmp_path / "url") == {
        f"out/{name}" for name in ("result.txt", "run.json", "baseline/result.txt", "baseline/run.json")
    }


# --- fingerprints and results


def test_a_fingerprint_sees_the_ends_of_a_large_file(tmp_path):
    path = tmp_path / "large"
    prints = set()
    for first, last in ((b"a", b"b"), (b"c", b"b"), (b"a", b"d")):
        path.write_bytes(first + bytes(3 << 20) + last)
        prints.add(fingerprint(path))
    assert len(prints) == 3
    assert fingerprint(tmp_path / "absent") == "none"


def test_a_fingerprint_of_a_model_folder_changes_with_each_of_its_files(tmp_path):
    prints = {fingerprint(tmp_path)}
    shards = ("model.safetensors.index.json", "model-00001-of-00002.safetensors", "pytorch_model-00002-of-00002.bin")
    for name in ("config.json", "vocab.txt", "pytorch_model.bin", *shards):
        (tmp_path / name).write_text(name)
        prints.add(fingerprint(tmp_path))
    for name in ("log.txt", "step_3_pytorch_model.bin"):
        (tmp_path / name).write_text("not read")
        prints.add(fingerprint(tmp_path))
    assert len(prints) == 7


@pytest.mark.parametrize("place", [0, 1_000_003, 2_500_000, 4_194_303, 6_000_000])
def test_a_byte_anywhere_in_an_input_makes_it_another(tmp_path, place):
    data = bytearray(b"abcdefg" * 857_143 + b"z")
    (tmp_path / "input").write_bytes(data)
    before = fingerprint(tmp_path / "input")
    assert fingerprint(tmp_path / "input") == before
    data[place] ^= 1
    (tmp_path / "input").write_bytes(data)
    assert fingerprint(tmp_path / "input") != before


def test_the_sample_s_files_have_the_fingerprints_that_they_had():
    teacher = "0de77f1c467f+e94571ee5fe8+a308b9ca90f7+568df6209ee1"
    assert fingerprint(SAMPLE / "teacher") == teacher
    assert fingerprint([SAMPLE / "teacher" / name for name in TOKENIZER_FILES]) == "74ee550f66cb"
    assert fingerprint([SAMPLE.parent / "documents.txt"]) == "e83248479944"
    assert fingerprint(SAMPLE / "student") == "cc7ad973046d"
    assert fingerprint(SAMPLE / "vectors.txt") == "34dfcd7e3db5"
    assert fingerprint(SAMPLE / "SST-2" / "train.tsv") == "78685f353d4f"


def test_results_are_written_as_key_value_lines(tmp_path):
    path = tmp_path / "eval_results.txt"
    write_results(path, {"global_step": 5, "acc": 0.5})
    assert path.read_text() == "global_step = 5\nacc = 0.5\n"
    assert read_results(path) == {"global_step": 5, "acc": 0.5}


# --- records that an earlier release wrote

AUGMENTED = """{
  "script": "data_augmentation",
  "settings": {"task_name": "SST-2", "N": 4, "M": 8, "p": 0.4, "seed": 42, "precision": "fp32"},
  "inputs": {"pretrained_bert_model": "", "glove_embs": "", "glue_dir": ""},
  "finished": true
}"""
PREGENERATED = """{
  "script": "pregenerate_training_data",
  "settings": {
    "epochs_to_generate": 2, "max_seq_len": 64, "short_seq_prob": 0.1, "masked_lm_prob": 0.0,
    "max_predictions_per_seq": 20, "seed": 42, "precision": "auto"
  },
  "inputs": {"train_corpus": "", "bert_model": ""},
  "finished": true
}"""
PACKED = """{
  "script": "pregenerate_training_data",
  "settings": {
    "packed": true, "epochs_to_generate": 2, "max_seq_len": 64, "short_seq_prob": 0.1, "masked_lm_prob": 0.15,
    "max_predictions_per_seq": 20, "do_whole_word_mask": true, "seed": 42, "precision": "auto"
  },
  "inputs": {"train_corpus": "", "bert_model": ""},
  "finished": true
}"""
DISTILLED = """{
  "script": "general_distill",
  "settings": {
    "max_seq_length": 64, "init_student": "teacher", "train_batch_size": 32, "learning_rate": 0.0005,
    "weight_decay": 0.0001, "num_train_epochs": 20.0, "warmup_proportion": 0.1, "gradient_accumulation_steps": 1,
    "eval_step": 200, "layer_map": "uniform", "attention_loss": "scores", "attention_weight": 1.0,
    "hidden_weight": 1.0, "seed": 42, "max_steps": 30, "precision": "auto"
  },
  "inputs": {"teacher_model": "", "student_model": "", "epoch_0.json": "", "epoch_1.json": ""},
  "finished": true
}"""
PADDED = """{
  "script": "general_distill",
  "settings": {
    "max_seq_length": 64, "init_student": "random", "train_batch_size": 32, "learning_rate": 0.0005,
    "weight_decay": 0.0001, "num_train_epochs": 20.0, "warmup_proportion": 0.1, "gradient_accumulation_steps": 2,
    "eval_step": 200, "pad_to_max_length": true, "layer_map": "uniform", "attention_loss": "scores",
    "attention_weight": 1.0, "hidden_weight": 1.0, "seed": 42, "max_steps": 10, "precision": "auto"
  },
  "inputs": {"teacher_model": "", "student_model": "", "epoch_0.json": "", "epoch_1.json": ""},
  "finished": true
}"""
RELATIONS = """{
  "script": "general_distill",
  "settings": {
    "max_seq_length": 64, "init_student": "teacher", "train_batch_size": 32, "learning_rate": 0.0005,
    "weight_decay": 0.0001, "num_train_epochs": 20.0, "warmup_proportion": 0.1, "gradient_accumulation_steps": 1,
    "eval_step": 200, "layer_map": "last", "attention_loss": "relations", "attention_weight": 1.0,
    "hidden_weight": 1.0, "seed": 42, "max_steps": 30, "precision": "auto"
  },
  "inputs": {"teacher_model": "", "student_model": "", "epoch_0_ids.npy": "", "epoch_1_ids.npy": ""},
  "finished": true
}"""
FINE_TUNED = """{
  "script": "finetune",
  "settings": {
    "task_name": "SST-2", "max_seq_length": 64, "temperature": 1.0, "train_batch_size": 32, "learning_rate": 0.0002,
    "weight_decay": 0.01, "num_train_epochs": 4.0, "warmup_proportion": 0.1, "gradient_accumulation_steps": 1,
    "eval_step": 100, "layer_map": "uniform", "attention_loss": "scores", "attention_weight": 1.0,
    "hidden_weight": 1.0, "seed": 42, "max_steps": 30, "precision": "auto", "step": "finetune"
  },
  "inputs": {"teacher_model": "", "train.tsv": "", "dev.tsv": ""},
  "finished": true
}"""
INTERMEDIATE = """{
  "script": "task_distill",
  "settings": {
    "task_name": "SST-2", "aug_train": true, "max_seq_length": 64, "temperature": 1.0, "train_batch_size": 32,
    "learning_rate": 0.0005, "weight_decay": 0.0001, "num_train_epochs": 1.5, "warmup_proportion": 0.1,
    "gradient_accumulation_steps": 1, "eval_step": 100, "layer_map": "uniform", "attention_loss": "scores",
    "attention_weight": 1.0, "hidden_weight": 1.0, "seed": 42, "max_steps": 30, "precision": "auto",
    "step": "intermediate"
  },
  "inputs": {"teacher_model": "", "student_model": "", "train_aug.tsv": "", "dev.tsv": ""},
  "finished": true
}"""
SWEPT = INTERMEDIATE.replace('"seed": 42, "max_steps": 30', '"seed": 2, "max_steps": 10')
PREDICTED = """{
  "script": "task_distill",
  "settings": {
    "pred_distill": true, "task_name": "SST-2", "aug_train": true, "max_seq_length": 64, "temperature": 1.0,
    "train_batch_size": 32, "learning_rate": 0.0005, "weight_decay": 0.0001, "num_train_epochs": 1.0,
    "warmup_proportion": 0.1, "gradient_accumulation_steps": 1, "eval_step": 100, "layer_map": "uniform",
    "attention_loss": "scores", "attention_weight": 1.0, "hidden_weight": 1.0, "seed": 42, "max_steps": 30,
    "precision": "auto", "step": "prediction"
  },
  "inputs": {"teacher_model": "", "student_model": "", "train_aug.tsv": "", "dev.tsv": ""},
  "finished": true
}"""
COMPARED = """{
  "script": "baseline",
  "settings": {
    "task_name": "SST-2", "aug_train": true, "max_seq_length": 64, "train_batch_size": 32, "learning_rate": 0.0005,
    "weight_decay": 0.0001, "num_train_epochs": 1.0, "warmup_proportion": 0.1, "gradient_accumulation_steps": 1,
    "eval_step": 100, "seed": 42, "max_steps": 30, "precision": "auto", "step": "baseline"
  },
  "inputs": {"student_model": "", "train_aug.tsv": "", "dev.tsv": ""},
  "finished": true
}"""


def settings_of(script, *flags):
    """The settings that a script reads with --sample and these flags."""
    settings = script.read_settings(["--sample", *flags])
    return settings[0] if isinstance(settings, tuple) else settings


# What were defaults or the sample's values then.
DECAY = ("--weight_decay", "1e-4")
SHORT = ("--max_steps", "30", *DECAY)
LONG, MIDDLE, TUNED = (("--num_train_epochs", epochs) for epochs in ("20", "1.5", "4"))
OF_BEFORE = {
    "pregenerated": (PREGENERATED, lambda *more: settings_of(pregenerate_training_data, *more)),
    "packed": (
        PACKED,
        lambda *more: settings_of(
            pregenerate_training_data, "--packed", "--masked_lm_prob", "0.15", "--do_whole_word_mask", *more
        ),
    ),
    "distilled": (DISTILLED, lambda *more: settings_of(general_distill, *SHORT, *LONG, *more)),
    "padded": (
        PADDED,
        lambda *more: settings_of(
            general_distill,
            *(*DECAY, *LONG, "--max_steps", "10", "--pad_to_max_length", "--init_student", "random"),
            *("--gradient_accumulation_steps", "2", *more),
        ),
    ),
    "relations": (
        RELATIONS,
        lambda *more: settings_of(
            general_distill, *SHORT, *LONG, "--layer_map", "last", "--attention_loss", "relations", *more
        ),
    ),
    "fine-tuned": (FINE_TUNED, lambda *more: settings_of(task_distill, *SHORT[:2], *TUNED, "--do_finetune", *more)),
    "fine-tuned on the way": (
        FINE_TUNED.replace('"num_train_epochs": 4.0', '"num_train_epochs": 3.0'),
        lambda *more: settings_of(task_distill, *SHORT, *more).for_step(FINETUNE),
    ),
    "intermediate": (INTERMEDIATE, lambda *more: settings_of(task_distill, *SHORT, *MIDDLE, *more)),
    "swept": (
        SWEPT,
        lambda *more: list(
            settings_of(task_distill, *DECAY, *MIDDLE, "--max_steps", "10", "--seeds", "1,2", *more).each_seed()
        )[1],
    ),
    "predicted": (PREDICTED, lambda *more: settings_of(task_distill, *SHORT, "--pred_distill", *more)),
    "compared": (
        COMPARED,
        lambda *more: settings_of(task_distill, *SHORT, "--pred_distill", "--baseline", *more).for_step(BASELINE),
    ),
}


def output_of_before(folder, record, settings):
    """The `Output` of a run with these settings in a folder that has a record of before, of the same inputs."""
    record = json.loads(record)
    inputs = {name: folder.parent / name for name in record["inputs"]}
    for name, path in inputs.items():
        path.write_text(name)
        record["inputs"][name] = fingerprint(path)
    make_folder(folder)
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "result.txt").write_text("done")
    return Output(folder / "result.txt", settings.provenance, inputs, replaces=("result.txt",))


@pytest.mark.parametrize("record, settings", OF_BEFORE.values(), ids=OF_BEFORE)
def test_a_record_of_before_is_understood_as_the_same(tmp_path, record, settings):
    output = output_of_before(tmp_path / "out", record, settings())
    assert status_of(output) == "finished"
    written, now = json.loads(record), output.values
    written["settings"].pop("precision", None)
    now["settings"].pop("precision", None)  # pregeneration noted one, and has none
    assert (now["script"], now["settings"]) == (written["script"], written["settings"])


@pytest.mark.parametrize("record, settings", OF_BEFORE.values(), ids=OF_BEFORE)
def test_a_record_of_before_with_another_value_of_a_flag_that_counts_is_refused(tmp_path, record, settings):
    with pytest.raises(UserError) as told:
        status_of(output_of_before(tmp_path / "out", record, settings("--limit", "7")))
    assert str(told.value).removesuffix(", --output_dir writes elsewhere") == (
        f"{tmp_path / 'out'}: made with other inputs or flags: limit was not given, is now 7; "
        "--overwrite_output replaces it"
    )


def test_an_augmentation_of_before_read_all_vectors_and_is_not_taken_for_one_that_reads_some(tmp_path):
    with pytest.raises(UserError, match="glove_words was not given, is now 100000; limit"):
        status_of(output_of_before(tmp_path / "out", AUGMENTED, settings_of(data_augmentation)))


def test_a_setting_of_before_that_is_no_flag_any_more_does_not_count(tmp_path):
    record = PREGENERATED.replace('"precision": "auto"', '"precision": "bf16", "gone": 3')
    assert status_of(output_of_before(tmp_path / "out", record, settings_of(pregenerate_training_data))) == "finished"
    other = PREGENERATED.replace('"masked_lm_prob": 0.0', '"masked_lm_prob": 0.15')
    with pytest.raises(UserError, match="masked_lm_prob was 0.15, is now 0.0;"):
        status_of(output_of_before(tmp_path / "out", other, settings_of(pregenerate_training_data)))
