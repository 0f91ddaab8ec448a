"""The scripts in order as a user runs them: the files that each leaves, and what it prints."""

import re

import pytest
from pipeline import LEAVES, OUTPUT, SHORT, call
from tiny import make_all, make_sst2, names, tree


@pytest.mark.parametrize("name", LEAVES)
def test_each_script_leaves_exactly_its_files(pipeline, name):
    assert pipeline.left[name] == LEAVES[name]


def test_each_script_names_the_command_of_the_next_stage(pipeline):
    hints = {name: re.findall(r"next: python (.*)", text) for name, text in pipeline.printed.items()}
    assert hints.pop("evaluate") == []
    scripts_named = {name: [hint.split()[0] for hint in found] for name, found in hints.items()}
    assert scripts_named == {
        "augment": ["pregenerate_training_data.py"],
        "pregenerate": ["general_distill.py"],
        "general": ["task_distill.py"],
        "finetune": ["general_distill.py"],
        "intermediate": ["task_distill.py"],
        "prediction": ["task_distill.py"],
    }
    assert re.search("next: .*\n.* the task there is SST-2; --task_name chooses another", pipeline.printed["general"])
    assert " --pred_distill " in hints["intermediate"][0] and " --do_eval " in hints["prediction"][0]
    assert f"--student_model {pipeline.folder / '4'}" in hints["intermediate"][0]


@pytest.mark.parametrize(
    "name, loss", [("general", "rep_loss"), ("intermediate", "att_loss"), ("prediction", "cls_loss")]
)
def test_the_student_comes_nearer_to_its_teacher(pipeline, name, loss):
    losses = [
        float(value) for value in re.findall(rf"^.* step \d+/\d+ .*{loss} ([\d.]+)", pipeline.printed[name], re.M)
    ]
    assert len(losses) >= 2 and losses[-1] < losses[0]


def test_the_evaluation_prints_teacher_beside_student(pipeline):
    table = pipeline.printed["evaluate"]
    assert re.search(r"^parameters +[\d,]+ +[\d,]+ +[\d.]+x smaller$", table, re.M)
    line = r"^dev acc +([\d.]+) +([\d.]+) +([\d.]+)% of the teacher's$"
    teacher, student, share = re.search(line, table, re.M).groups()
    assert float(share) == pytest.approx(100 * float(student) / float(teacher), abs=0.1)
    for size in (1, 32):
        for row in (
            f"latency p50, batch of {size}, ms",
            f"latency p95, batch of {size}, ms",
            f"sentences per second, batch of {size}",
        ):
            assert re.search(rf"^{row} +[\d.,]+ +[\d.,]+   [\d.]+x faster$", table, re.M)
    assert (pipeline.folder / "evaluated" / "eval_results.txt").read_text().startswith(f"acc = {student}"[:9])


def test_the_printed_settings_tell_where_they_come_from(pipeline):
    text = pipeline.printed["intermediate"]
    assert re.search(r"learning_rate +0\.003 +command line", text)
    assert re.search(r"task_name +SST-2 +command line", text)
    assert not re.search(r"temperature", text)  # the default


@pytest.mark.slow
def test_data_url_copies_every_finished_output(copy):
    url = copy / "published"
    for name in ("pregenerate", "general", "prediction", "augment"):  # which makes the long augmented file again
        more = ["--baseline"] if name == "prediction" else []  # it goes with its student's folder, not beside it
        assert call(copy, name, *SHORT[name], *more, "--overwrite_output", "--data_url", url / name).returncode == 0
    assert names(url / "augment") == {"train_aug.tsv"}
    # A folder keeps its name, so that the stages do not overwrite each other under one address.
    assert names(url / "pregenerate" / "2") >= {"epoch_0.json", "epoch_0_metrics.json"}
    wanted = {"config.json", "vocab.txt", "tokenizer_config.json", "pytorch_model.bin"}
    for name in ("general", "prediction"):
        assert tree(url / name) == {f"{OUTPUT[name]}/{file}": data for file, data in tree(copy / OUTPUT[name]).items()}
    assert names(url / "general" / "3") >= wanted
    assert names(url / "prediction" / "5") >= wanted | {"eval_results.txt", "baseline/pytorch_model.bin"}
    assert [path.name for path in (url / "prediction").iterdir()] == ["5"]


def test_general_evaluation_measures_without_training(copy):
    before = tree(copy)
    assert call(copy, "general", "--do_eval").returncode == 0
    after = tree(copy)
    results = after.pop("3/eval_results.txt").decode()
    assert after == before
    assert re.fullmatch(r"att_loss = [\d.]+\nrep_loss = [\d.]+\n", results)


def test_a_run_never_touches_its_inputs(pipeline, tmp_path):
    plain, made = make_all(tmp_path / "plain"), tree(pipeline.folder)
    make_sst2(plain / "glue" / "SST-2", train=650)
    assert {name for name, data in tree(plain).items() if made[name] != data} == set()
