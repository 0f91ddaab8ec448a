"""A script that is started again: finished before, refused, or overwritten."""

import shutil

import pytest
from pipeline import OUTPUT, SHORT, call
from tiny import tree


@pytest.mark.parametrize("name", OUTPUT)
def test_a_second_run_says_that_it_was_finished_and_changes_nothing(copy, pipeline, name):
    if name == "augment":
        shutil.copy(pipeline.folder / "glue/SST-2/train_aug.tsv", copy / "glue/SST-2/train_aug.tsv")
    before = tree(copy)
    logs = {path: path.read_bytes() for path in copy.rglob("log.txt")}
    process = call(copy, name)
    assert process.returncode == 0 and "finished before" in process.stdout
    assert tree(copy) == before and {path: path.read_bytes() for path in copy.rglob("log.txt")} == logs


@pytest.mark.parametrize("name", OUTPUT)
def test_other_flags_are_refused_and_the_difference_is_named(copy, name):
    before = tree(copy)
    process = call(copy, name, "--seed", 5)
    assert process.returncode == 2
    assert "seed was 42, is now 5" in process.stderr and "--overwrite_output" in process.stderr
    assert tree(copy) == before


def test_more_epochs_with_another_seed_do_not_replace_finished_ones(copy):
    before = tree(copy)
    process = call(copy, "pregenerate", "--epochs_to_generate", 17, "--seed", 5)
    assert process.returncode == 2 and "epochs_to_generate was 16, is now 17" in process.stderr
    assert tree(copy) == before


def test_another_input_is_refused_and_named(copy):
    with open(copy / "corpus.txt", "a", encoding="utf-8") as file:
        file.write("\nthe film is warm .\n")
    assert "train_corpus has changed" in call(copy, "pregenerate").stderr
    dev = copy / "glue" / "SST-2" / "dev.tsv"
    before = dev.read_bytes()
    dev.write_text("sentence\tlabel\nthe film\t1\n")
    assert "dev.tsv has changed" in call(copy, "intermediate").stderr
    dev.write_bytes(before)
    shutil.copy(copy / "3" / "pytorch_model.bin", copy / "teacher" / "SST-2" / "pytorch_model.bin")
    assert "teacher_model has changed" in call(copy, "prediction").stderr


@pytest.mark.parametrize("name", ["augment", "pregenerate", "general", "prediction"])
def test_overwrite_output_replaces_what_is_there(copy, name):
    before, flags = tree(copy), [*SHORT[name], "--seed", 5, "--overwrite_output"]
    assert call(copy, name, *flags).returncode == 0
    after = tree(copy)
    key = {"augment": "glue/SST-2/train_aug.tsv", "pregenerate": "2/epoch_0.json"}
    key = key.get(name, f"{OUTPUT[name]}/pytorch_model.bin")
    assert after[key] != before[key]
    gone = set(before) - set(after)
    if name == "pregenerate":  # of the old epochs none is left
        assert gone == {f"2/epoch_{epoch}{end}" for epoch in range(3, 16) for end in (".json", "_metrics.json")}
    elif name == "general":
        assert gone == {f"3/step_{step}_pytorch_model.bin" for step in (40, 60)}
    else:
        assert not gone


def test_a_moved_folder_and_a_relative_path_are_the_same_input(copy, monkeypatch):
    monkeypatch.chdir(copy)
    flags = ["--data_dir", "glue/SST-2/", "--teacher_model", "teacher", "--student_model", "./3", "--output_dir", "4"]
    process = call(copy, "intermediate", *flags)
    assert process.returncode == 0 and "finished before" in process.stdout
    process = call(copy, "pregenerate", "--bert_model", "teacher", "--output_dir", "./2/", "--num_workers", 1)
    assert process.returncode == 0 and "finished before" in process.stdout
