"""GLUE to the end: the files that its site takes, the diagnostic set, and sweeps over seeds."""

import json
import statistics

import pytest
import torch
from test_glue import LAYOUTS, write
from tiny import STUDENT, VOCABULARY, call_script, make_sst2, make_teacher, make_tokenizer, names

from transformer.glue import TASKS
from transformer.modeling import BertConfig, TinyBertForSequenceClassification
from transformer.outputs import read_results

pytestmark = pytest.mark.usefixtures("no_pictures")

# As the site asks for them; what stands behind the prediction's tab.
BINARY, ENTAILMENT = {"0", "1"}, {"entailment", "not_entailment"}
THREE = {"entailment", "contradiction", "neutral"}
SUBMISSIONS = {
    "CoLA": BINARY,
    "SST-2": BINARY,
    "MRPC": BINARY,
    "STS-B": None,
    "QQP": BINARY,
    "QNLI": ENTAILMENT,
    "RTE": ENTAILMENT,
    "WNLI": BINARY,
    "AX": THREE,
    "MNLI-m": THREE,
    "MNLI-mm": THREE,
}


def make_classifier(folder, labels):
    """A random model with these classes (a score where there are none), with large enough weights to have opinions."""
    torch.manual_seed(len(labels))
    names_of_classes = {"id2label": dict(enumerate(labels))} if labels else {"num_labels": 1}
    sizes = {**STUDENT, "vocab_size": len(VOCABULARY), "initializer_range": 0.9}
    folder.mkdir(parents=True)
    TinyBertForSequenceClassification(BertConfig(**sizes, **names_of_classes)).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def make_task(folder, name, rows=5):
    """Train, dev and test files of a task in the official layout, whose rows differ by a word."""
    task = TASKS[name.lower()]
    for layout, file, header, row, _, _ in LAYOUTS:
        if layout == name:
            files = (
                [file]
                if file not in task.dev_files + task.test_files
                else (task.dev_files if file in task.dev_files else task.test_files)
            )
            for same in files:
                folder.mkdir(parents=True, exist_ok=True)
                lines = [row.replace("film", "film " + " ".join(VOCABULARY[5 : 5 + number])) for number in range(rows)]
                write(folder / same, *([header] if header else []), *lines)
    return folder


def predict(folder, name, data):
    task = TASKS[name.lower()]
    model = make_classifier(folder / "model", task.labels)
    found = call_script(
        "task_distill.py",
        "--do_predict",
        "--task_name",
        name.lower(),
        "--data_dir",
        data,
        "--student_model",
        model,
        "--output_dir",
        folder / "out",
        "--max_seq_length",
        31,
    )
    assert found.returncode == 0, found.stderr
    return folder / "out"


def check_submission(path, labels, count=5):
    header, *lines = path.read_text().splitlines()
    assert header == "index\tprediction"
    assert [line.split("\t")[0] for line in lines] == [str(number) for number in range(count)]
    predictions = [line.split("\t")[1] for line in lines]
    assert set(predictions) <= labels if labels else all(0 <= float(score) <= 5 for score in predictions)


@pytest.mark.parametrize("name", [task.name for task in TASKS.values() if task.name != "MNLI"])
def test_predictions_are_in_the_layout_that_the_site_takes(tmp_path, name):
    output = predict(tmp_path, name, make_task(tmp_path / name, name))
    assert names(output) == {f"{name}.tsv"}
    check_submission(output / f"{name}.tsv", SUBMISSIONS[name])


@pytest.mark.parametrize("beside", [True, False])
def test_mnli_s_predictions_are_of_both_sets_and_of_the_diagnostic_set_where_it_is(tmp_path, beside):
    if beside:
        make_task(tmp_path / "AX", "AX", rows=3)
    output = predict(tmp_path, "MNLI", make_task(tmp_path / "MNLI", "MNLI"))
    assert names(output) == {"MNLI-m.tsv", "MNLI-mm.tsv"} | ({"AX.tsv"} if beside else set())
    for name in ("MNLI-m", "MNLI-mm"):
        check_submission(output / f"{name}.tsv", SUBMISSIONS[name])
    if beside:
        check_submission(output / "AX.tsv", THREE, count=3)


def test_a_bad_file_leaves_every_earlier_prediction_as_it_was(tmp_path):
    make_task(tmp_path / "AX", "AX", rows=3)
    output = predict(tmp_path, "MNLI", make_task(tmp_path / "MNLI", "MNLI"))
    (output / "MNLI-m.tsv").write_text("earlier")
    (tmp_path / "AX" / "AX.tsv").write_text("no\tcolumns\n1\t2\n")
    flags = ["--task_name", "MNLI", "--data_dir", tmp_path / "MNLI", "--student_model", tmp_path / "model"]
    found = call_script("task_distill.py", "--do_predict", *flags, "--output_dir", output, "--max_seq_length", 31)
    assert found.returncode == 2 and "AX.tsv line 1: no column" in found.stderr
    assert (output / "MNLI-m.tsv").read_text() == "earlier"


def test_the_diagnostic_set_is_scored_with_mnli_s_teacher_beside_the_student(tmp_path):
    data = make_task(tmp_path / "AX", "AX")
    rows = ["entailment", "neutral", "contradiction"]
    path = data / "diagnostic-full.tsv"
    header, row, *_ = path.read_text().splitlines()
    write(path, header, *(row.replace("neutral", label) for label in rows))
    student = make_classifier(tmp_path / "student", ("neutral", "entailment", "contradiction"))
    make_classifier(tmp_path / "teacher" / "MNLI", TASKS["mnli"].labels)
    found = call_script(
        "task_distill.py",
        "--do_eval",
        "--task_name",
        "ax",
        "--data_dir",
        data,
        "--student_model",
        student,
        "--teacher_model",
        tmp_path / "teacher",
        "--output_dir",
        tmp_path / "out",
        "--max_seq_length",
        31,
    )
    assert found.returncode == 0, found.stderr
    [line] = [line for line in found.stdout.splitlines() if line.startswith("dev mcc ")]
    assert len(line.split()) >= 4  # two numbers: teacher and student
    assert -1 <= read_results(tmp_path / "out" / "eval_results.txt")["mcc"] <= 1


def test_mnli_mm_is_scored_on_the_mismatched_set_with_mnli_s_models(tmp_path):
    data = make_task(tmp_path / "MNLI", "MNLI-mm")
    models = [make_classifier(tmp_path / name, TASKS["mnli"].labels) for name in ("student", "teacher/MNLI")]
    flags = ["--student_model", models[0], "--teacher_model", tmp_path / "teacher", "--output_dir", tmp_path / "out"]
    flags += ["--task_name", "mnli-mm", "--data_dir", data, "--max_seq_length", 31]
    found = call_script("task_distill.py", "--do_eval", *flags)
    assert found.returncode == 0, found.stderr
    [line] = [line for line in found.stdout.splitlines() if line.startswith("dev acc ")]
    assert len(line.split()) >= 4  # two numbers: teacher and student
    assert list(read_results(tmp_path / "out" / "eval_results.txt")) == ["acc", "eval_loss"]


@pytest.mark.parametrize("name", ["AX", "MNLI-mm"])
def test_nothing_is_trained_on_the_diagnostic_set(tmp_path, name):
    make_teacher(tmp_path / "teacher")
    found = call_script(
        "task_distill.py",
        "--do_finetune",
        "--task_name",
        name,
        "--data_dir",
        tmp_path,
        "--teacher_model",
        tmp_path / "teacher",
        "--max_seq_length",
        31,
    )
    told = f"error: --task_name {name}: nothing to train on; MNLI's models do this task\n"
    assert found.returncode == 2 and found.stderr == told
    found = call_script("data_augmentation.py", "--task_name", name, "--glue_dir", tmp_path)
    assert found.returncode == 2 and found.stderr == told


# --- --seeds


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Both steps and an evaluation with three seeds: (folder, their common flags, what each printed)."""
    folder = tmp_path_factory.mktemp("swept")
    make_sst2(folder / "SST-2")
    make_teacher(folder / "teacher")
    make_classifier(folder / "student", ("negative", "positive"))
    common = [
        "--data_dir",
        folder / "SST-2",
        "--teacher_model",
        folder / "teacher",
        "--max_seq_length",
        31,
        "--train_batch_size",
        13,
        "--max_steps",
        6,
        "--eval_step",
        3,
        "--learning_rate",
        3e-3,
    ]
    steps = (
        ["--student_model", folder / "student", "--output_dir", folder / "4"],
        ["--pred_distill", "--student_model", folder / "4", "--output_dir", folder / "5"],
        ["--do_eval", "--student_model", folder / "5", "--output_dir", folder / "evaluated"],
    )
    printed = []
    for flags in steps:
        found = call_script("task_distill.py", "--seeds", "3,1,2", *common, *flags)
        assert found.returncode == 0, found.stderr
        printed.append(found.stdout)
    return folder, common, printed


@pytest.mark.slow
@pytest.mark.parametrize("place", ["4", "5", "evaluated"])
def test_a_sweep_tells_the_mean_and_deviation_of_its_seeds(swept, place):
    folder, _, printed = swept
    lines = (folder / place / "eval_results.txt").read_text().splitlines()
    results = dict(line.split(" = ") for line in lines)
    runs = [read_results(folder / place / f"seed_{seed}" / "eval_results.txt") for seed in (3, 1, 2)]
    assert results["seeds"] == "3,1,2"
    for name in set(runs[0]) - {"global_step"}:
        values = [run[name] for run in runs]
        assert float(results[name]) == pytest.approx(statistics.mean(values))
        assert float(results[f"{name}_deviation"]) == pytest.approx(statistics.stdev(values))
    assert "seed 3 " in printed[0] and "mean " in printed[0] and "deviation " in printed[0]


@pytest.mark.slow
def test_each_seed_starts_from_its_own_student_and_differs(swept):
    folder, *_ = swept
    for place in ("4", "5"):
        weights = {(folder / place / f"seed_{seed}" / "pytorch_model.bin").read_bytes() for seed in (1, 2, 3)}
        assert len(weights) == 3
    for seed in (1, 2, 3):
        record = json.loads((folder / "5" / f"seed_{seed}" / "run.json").read_text())
        assert record["settings"]["seed"] == seed and record["finished"]


@pytest.mark.slow
def test_a_seed_of_a_sweep_is_the_run_with_that_seed(swept, tmp_path):
    folder, common, _ = swept
    found = call_script(
        "task_distill.py", "--seed", 2, *common, "--student_model", folder / "student", "--output_dir", tmp_path / "4"
    )
    assert found.returncode == 0, found.stderr
    own, swept_one = (place / "pytorch_model.bin" for place in (tmp_path / "4", folder / "4" / "seed_2"))
    assert own.read_bytes() == swept_one.read_bytes()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seeds", "1,x"], "expected different whole numbers"),
        (["--seeds", "1,1"], "expected different"),
        (["--seeds", "1,2", "--do_predict"], "--seeds: for the two steps"),
        (["--seeds", "1,2", "--do_finetune"], "--seeds: for the two steps"),
    ],
)
def test_seeds_that_make_no_sense_are_told(flags, message):
    found = call_script("task_distill.py", *flags)
    assert found.returncode == 2 and message in found.stderr
