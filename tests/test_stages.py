"""Settling flags, and the record that decides whether a run starts, goes on, or leaves an output alone."""

import argparse
import logging
import re
import time

import pytest
from tiny import call_script

import data_augmentation
import task_distill
from transformer import stages
from transformer.file_utils import UserError
from transformer.files import make_folder


def settings(**values):
    return argparse.Namespace(**{"seed": None, "rate": None, "fp16": None, "precision": None, **values})


def make_record(folder, inputs=None, **values):
    args = argparse.Namespace(**{"seed": 42, "overwrite_output": None, **values})
    return stages.OutputRecord(folder / "run.json", folder / "result.txt", "script", args, inputs or {})


def finish(record, folder):
    assert record.claim([], False) == "fresh"
    record.begin()
    (folder / "result.txt").write_text("done")
    record.finish()


def test_the_first_layer_that_has_a_value_gives_it():
    args = settings(seed=7)
    origins = stages.settle(args, ("header", {"seed": 1, "rate": 2}), ("sample", {"rate": 3}), ("default", {"rate": 4}))
    assert (args.seed, args.rate) == (7, 2)
    assert origins == {"seed": "command line", "rate": "header"}


def test_plain_defaults_have_no_origin():
    args = settings()
    assert stages.settle(args, ("sample", {}), ("default", {"seed": 42, "rate": 0.5})) == {}
    assert (args.seed, args.rate) == (42, 0.5)


def test_a_value_for_a_flag_that_the_script_lacks_is_left_out():
    args = settings()
    stages.settle(args, ("sample", {"no_such_flag": 3}), ("default", {}))
    assert not hasattr(args, "no_such_flag")


def test_an_explicit_zero_wins_over_every_layer():
    args = settings(seed=0)
    stages.settle(args, ("header", {"seed": 5}), ("default", {"seed": 42}))
    assert args.seed == 0


def test_fp16_is_short_for_the_precision():
    args = settings(fp16=True)
    stages.settle(args, ("default", {"precision": "auto"}))
    assert args.precision == "fp16"


def test_a_first_run_is_fresh_and_a_second_one_finished(tmp_path):
    finish(make_record(tmp_path), tmp_path)
    assert make_record(tmp_path).claim([tmp_path / "result.txt"], False) == "finished"


def test_claim_writes_nothing(tmp_path):
    make_record(tmp_path).claim([], False)
    assert list(tmp_path.iterdir()) == []
    finish(make_record(tmp_path), tmp_path)
    before = (tmp_path / "run.json").read_bytes()
    assert make_record(tmp_path, seed=5).claim([tmp_path / "result.txt"], True) == "fresh"
    assert (tmp_path / "result.txt").read_text() == "done" and (tmp_path / "run.json").read_bytes() == before


def test_an_unfinished_run_is_resumed_with_its_progress(tmp_path):
    record = make_record(tmp_path)
    record.claim([], False)
    record.begin()
    with open(tmp_path / "part", "wb") as file:
        record.save_progress(file, {"rows": 17})
    again = make_record(tmp_path)
    assert again.claim([], False) == "resume"
    assert again.progress == {"rows": 17}


@pytest.mark.parametrize(
    "values, told", [({"seed": 5}, "seed was 42, is now 5"), ({"limit": 3}, "limit was not given, is now 3")]
)
def test_another_setting_is_refused_and_named(tmp_path, values, told):
    finish(make_record(tmp_path), tmp_path)
    with pytest.raises(UserError, match=re.escape(told) + ".*--overwrite_output"):
        make_record(tmp_path, **values).claim([], False)


def test_an_input_counts_by_its_content_not_by_its_path(tmp_path):
    (tmp_path / "a.txt").write_text("same")
    (tmp_path / "b.txt").write_text("same")
    out = make_folder(tmp_path / "out")
    finish(make_record(out, {"data": tmp_path / "a.txt"}), out)
    assert make_record(out, {"data": tmp_path / "b.txt"}).claim([], False) == "finished"
    (tmp_path / "b.txt").write_text("diff")
    with pytest.raises(UserError, match="data was"):
        make_record(out, {"data": tmp_path / "b.txt"}).claim([], False)


@pytest.mark.parametrize("name", sorted(stages.NOT_THE_RESULT - {"origins"}))
def test_flags_that_do_not_change_the_result_do_not_count(tmp_path, name):
    finish(make_record(tmp_path), tmp_path)
    assert make_record(tmp_path, **{name: "other"}).claim([], False) == "finished"


def test_files_without_a_record_are_not_replaced(tmp_path):
    (tmp_path / "result.txt").write_text("somebody's")
    with pytest.raises(UserError, match="result.txt: already there"):
        make_record(tmp_path).claim([tmp_path / "result.txt"], False)
    record = make_record(tmp_path)
    assert record.claim([tmp_path / "result.txt"], True) == "fresh"
    record.begin()
    assert not (tmp_path / "result.txt").exists()


def test_a_finished_output_whose_result_was_deleted_is_made_again(tmp_path):
    finish(make_record(tmp_path), tmp_path)
    (tmp_path / "result.txt").unlink()
    assert make_record(tmp_path).claim([], False) == "fresh"


def test_an_output_never_replaces_the_folder_it_reads(tmp_path):
    with pytest.raises(UserError, match="is the folder of --teacher_model"):
        make_record(tmp_path, {"teacher_model": tmp_path / "."})
    with pytest.raises(UserError, match="is the folder of --teacher_model"):
        make_record(tmp_path, {"teacher_model": tmp_path / "SST-2"}, teacher_model=tmp_path)


def test_a_fingerprint_sees_the_ends_of_a_large_file(tmp_path):
    path = tmp_path / "large"
    prints = set()
    for first, last in ((b"a", b"b"), (b"c", b"b"), (b"a", b"d")):
        path.write_bytes(first + bytes(3 << 20) + last)
        prints.add(stages.fingerprint(path))
    assert len(prints) == 3
    assert stages.fingerprint(tmp_path / "absent") == "none"


def test_a_fingerprint_of_a_model_folder_changes_with_each_of_its_files(tmp_path):
    prints = {stages.fingerprint(tmp_path)}
    for name in ("config.json", "vocab.txt", "pytorch_model.bin"):
        (tmp_path / name).write_text(name)
        prints.add(stages.fingerprint(tmp_path))
    (tmp_path / "log.txt").write_text("not read")
    prints.add(stages.fingerprint(tmp_path))
    assert len(prints) == 4


def test_appending_drops_what_stands_after_the_saved_size(tmp_path):
    path = tmp_path / "part"
    path.write_bytes(b"saved and lost")
    with stages.append_to(path, 5) as file:
        file.write(b"!")
    assert path.read_bytes() == b"saved!"


def test_appending_at_zero_starts_the_file_again(tmp_path):
    path = tmp_path / "part"
    path.write_bytes(b"lost")
    with stages.append_to(path, 0) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"


def test_results_are_written_as_key_value_lines(tmp_path):
    stages.write_results(tmp_path / "eval_results.txt", {"global_step": 5, "acc": 0.5})
    assert (tmp_path / "eval_results.txt").read_text() == "global_step = 5\nacc = 0.5\n"


@pytest.mark.parametrize("name", ["max_steps", "limit", "temperature"])
def test_zero_where_a_positive_number_is_needed_is_named(name):
    with pytest.raises(UserError, match=f"--{name} 0: expected a number above 0"):
        stages.check_positive(argparse.Namespace(**{name: 0}), name)


def test_every_default_belongs_to_a_flag_of_its_script():
    import data_augmentation
    import general_distill
    import pregenerate_training_data
    import task_distill

    tables = {
        data_augmentation: [stages.AUGMENTATION, stages.SAMPLE_AUGMENTATION],
        pregenerate_training_data: [stages.PREGENERATION, stages.SAMPLE_PREGENERATION],
        general_distill: [stages.GENERAL_DISTILLATION, stages.SAMPLE_GENERAL_DISTILLATION],
        task_distill: [*stages.TASK_STEPS.values(), *stages.SAMPLE_TASK_STEPS.values()],
    }
    for script, defaults in tables.items():
        known = vars(script.parse_args([]))
        for table in defaults:
            assert set(table) <= set(known), script.__name__


def test_importing_a_script_changes_no_logging_and_makes_no_file(tmp_path, monkeypatch):
    import subprocess
    import sys

    code = (
        f"import sys; sys.path.insert(0, {str(stages.ROOT)!r})\n"
        "import data_augmentation, general_distill, pregenerate_training_data, task_distill, logging, signal\n"
        "assert not logging.getLogger().handlers\n"
        "assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_ends_with_status_130_and_one_line(monkeypatch):
    import pregenerate_training_data

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(pregenerate_training_data, "main", interrupted)
    process = call_script("pregenerate_training_data.py")
    assert process.returncode == 130
    assert process.stderr.count("\n") == 1 and "Traceback" not in process.stderr


def test_a_log_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot be written .Is a directory"):
        stages.log_to(tmp_path)


def test_an_unfinished_output_goes_on_though_its_command_says_overwrite(tmp_path):
    record = make_record(tmp_path)
    assert record.claim([], True) == "fresh"
    record.begin()
    assert make_record(tmp_path).claim([], True) == "resume"
    assert make_record(tmp_path, seed=8).claim([], True) == "fresh"
    (tmp_path / "result.txt").write_text("done")
    record.finish()
    assert make_record(tmp_path).claim([], False) == "finished"
    assert make_record(tmp_path).claim([tmp_path / "result.txt"], True) == "fresh"


def test_zeros_are_settings_too(tmp_path):
    record = make_record(tmp_path, seed=0)
    record.claim([], False)
    record.begin()
    with pytest.raises(UserError, match="seed was 0, is now not given"):
        make_record(tmp_path, seed=None).claim([], False)
    with pytest.raises(UserError, match="seed was 0, is now 3"):
        make_record(tmp_path, seed=3).claim([], False)


@pytest.mark.parametrize("place", [0, 1_000_003, 2_500_000, 4_194_303, 6_000_000])
def test_a_byte_anywhere_in_an_input_makes_it_another(tmp_path, place):
    data = bytearray(b"abcdefg" * 857_143 + b"z")
    (tmp_path / "input").write_bytes(data)
    before = stages.fingerprint(tmp_path / "input")
    assert stages.fingerprint(tmp_path / "input") == before
    data[place] ^= 1
    (tmp_path / "input").write_bytes(data)
    assert stages.fingerprint(tmp_path / "input") != before


def test_a_summary_tells_what_was_done_and_the_command_to_paste(caplog):
    args = argparse.Namespace(sample=None)
    with caplog.at_level(logging.INFO):
        stages.sum_up("fresh", "5/model", time.monotonic() - 61, "29 rows in, 88 rows out")
        stages.hint_next("task_distill.py", args, {"a": "x y", "b": 3, "c": True, "d": None, "e": 5}, {"b": 3}, "--go")
    assert caplog.messages == [
        "29 rows in, 88 rows out, 1:01",
        "written: 5/model",
        "next: python task_distill.py --go --a 'x y' --c --e 5",
    ]


def test_another_task_takes_the_sample_s_models_and_its_own_data(tmp_path, monkeypatch):
    (tmp_path / "reviews").mkdir()
    for name in ("train", "dev", "test"):
        (tmp_path / "reviews" / f"{name}.csv").write_text("text,label\na good film,good\na bad film,bad\n")
    monkeypatch.setattr(stages, "GLUE", str(tmp_path))
    monkeypatch.setitem(stages.AUGMENTATION, "glue_dir", str(tmp_path))
    for flags in ([], ["--pred_distill"], ["--do_predict"], ["--do_finetune"]):
        own = task_distill.parse_args(["--sample", "--task_name", "reviews", *flags])
        assert own.data_dir == str(tmp_path / "reviews") and not own.aug_train
        assert own.teacher_model == stages.SAMPLE_TEACHER
        assert task_distill.parse_args(["--sample", *flags]).data_dir == f"{stages.SAMPLE}/SST-2"
    own = data_augmentation.parse_args(["--sample", "--task_name", "reviews"])
    assert (own.glue_dir, own.pretrained_bert_model) == (str(tmp_path), stages.SAMPLE_TEACHER)
    assert data_augmentation.parse_args(["--sample"]).glue_dir == stages.SAMPLE
