"""The report on a task's student: what it measures, how it is shown, and the scripts that write it."""

import functools
import importlib.util
import json
import os
import random
import re
import shutil
import subprocess
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import BAD, GOOD, NOUNS, ROOT, call_script, make_all, make_tokenizer, names, scripts, tree

from transformer import comparison, drawing, evaluation, flags, report
from transformer.checkpoint import load_state_dict
from transformer.data import SequencesBuilder
from transformer.evaluation import Answers, Candidate, Evaluator
from transformer.history import read_curves, read_effort
from transformer.modeling import BertConfig, TinyBertForSequenceClassification
from transformer.outputs import fingerprint
from transformer.own_tasks import find_task
from transformer.processes import Processes
from transformer.tasks.classification import confusion_matrix
from transformer.training import TrainingRun

CPU = Processes(torch.device("cpu"))
TOKENIZER = make_tokenizer()
DRAWN = importlib.util.find_spec("matplotlib") is not None


@pytest.fixture(autouse=True)
def quick_timing(monkeypatch):
    monkeypatch.setattr(evaluation, "SECONDS", 0.05)


# --- measuring


class Clock:
    """A clock that only the timed calls move."""

    def __init__(self):
        self.now, self.log = 0.0, []

    def __call__(self):
        return self.now

    def call(self, name, seconds):
        def work():
            self.now += seconds
            self.log.append(name)

        return work


def test_models_are_timed_by_turns_the_slow_one_less_often(monkeypatch):
    monkeypatch.setattr(evaluation, "SECONDS", 1.5)
    clock = Clock()
    calls = {"teacher": clock.call("teacher", 0.07), "student": clock.call("student", 0.001)}
    seconds = evaluation.time_by_turns(calls, clock)
    assert seconds["student"] == pytest.approx([0.001] * evaluation.REPETITIONS)
    assert 22 <= len(seconds["teacher"]) <= 24 and seconds["teacher"] == pytest.approx([0.07] * len(seconds["teacher"]))
    turns = re.findall(r"t+|s+", "".join(name[0] for name in clock.log))
    assert [turn[0] for turn in turns] == list("ts" * (1 + evaluation.TURNS))  # the first of each is not counted
    assert {len(turn) for turn in turns} == {6, evaluation.REPETITIONS // evaluation.TURNS}


def test_a_model_of_seconds_a_batch_is_timed_a_few_times_only():
    clock = Clock()
    seconds = evaluation.time_by_turns({"teacher": clock.call("teacher", 9.0)}, clock)
    assert seconds == {"teacher": pytest.approx([9.0] * evaluation.TURNS)}
    assert len(clock.log) == evaluation.TURNS + 1


def make_sequences(lengths):
    builder = SequencesBuilder(len(TOKENIZER.vocab))
    for length in lengths:
        builder.add([TOKENIZER.cls_token_id, *range(5, 3 + length), TOKENIZER.sep_token_id], length, 0)
    return builder.build()


@pytest.mark.parametrize("length", [1, 2, 31])
def test_every_sequence_of_a_timed_batch_has_the_length_and_no_padding(length):
    batch = evaluation.full_batch(make_sequences([7, 4, 5]), 13, length, TOKENIZER)
    assert batch["input_ids"].shape == batch["token_type_ids"].shape == (13, length)
    assert batch["attention_mask"] is None and not batch["token_type_ids"].any()
    assert (batch["input_ids"][:, 0] == TOKENIZER.cls_token_id).all()
    assert length == 1 or (batch["input_ids"][:, -1] == TOKENIZER.sep_token_id).all()
    assert not (batch["input_ids"] == TOKENIZER.pad_token_id).any()


def test_both_batch_sizes_of_each_model_are_measured():
    config = {
        "vocab_size": len(TOKENIZER.vocab),
        "hidden_size": 12,
        "num_hidden_layers": 1,
        "num_attention_heads": 3,
        "intermediate_size": 20,
        "max_position_embeddings": 37,
    }
    model = TinyBertForSequenceClassification(BertConfig(**config)).train()
    student = Candidate(None, model, TOKENIZER, [("dev.tsv", make_sequences([7, 4]))], [])
    seconds = evaluation.measure_speed({"student": student}, 31, Evaluator(13, CPU))
    assert list(seconds) == [1, 32]
    for by_name in seconds.values():
        assert list(by_name) == ["student"] and len(by_name["student"]) >= evaluation.TURNS
        assert min(by_name["student"]) > 0
    assert not model.training


def test_a_confusion_matrix_counts_answers_by_true_class():
    answers = Answers("dev.tsv", np.array([0, 1, 2, 2, 1, 1, 2]), np.array([0, 1, 1, 2, 1, 0, 0]))
    assert confusion_matrix(answers, 4).tolist() == [[1, 1, 1, 0], [0, 2, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_intervals_come_from_the_same_samples_of_rows_for_every_model(monkeypatch):
    monkeypatch.setattr(evaluation, "RESAMPLES", 300)
    task, gold = find_task("SST-2"), np.arange(101) % 2
    half = np.where(np.arange(101) < 50, 1 - gold, gold)
    right, wrong, mixed, again = (
        evaluation.resampled_results(task, [Answers("dev.tsv", each, gold)])["acc"]
        for each in (gold, 1 - gold, half, half)
    )
    assert set(right) == {1.0} and set(wrong) == {0.0} and (mixed == again).all()
    low, high = comparison.interval(mixed)
    assert 0.38 < low < 0.45 and 0.56 < high < 0.63  # 51 of 101: 0.505 and twice 0.05


def test_agreement_is_the_share_of_equal_answers_and_for_scores_their_correlation():
    classes, scores = find_task("SST-2").kind, find_task("STS-B").kind
    assert classes.agreement(np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0])) == ("same answer as the teacher", 0.75)
    title, value = scores.agreement(np.array([1.0, 2.0, 4.0]), np.array([-1.0, -2.0, -4.0]))
    assert title == "correlation with the teacher" and value == pytest.approx(-1)


def test_the_worst_errors_are_told_with_their_texts(tmp_path):
    lines = [f"a *bold* film | number {row}\t{row % 2}" for row in range(13)]
    (tmp_path / "dev.tsv").write_text("\n".join(["sentence\tlabel", *lines, ""]))
    gold, task = np.arange(13) % 2, find_task("SST-2")
    own = np.where(np.isin(np.arange(13), [2, 5, 7]), 1 - gold, gold)
    losses = np.where(np.arange(13) == 0, 9.0, np.arange(13) / 8)  # a right answer with a large loss is no error
    answers = {
        "teacher": [Answers("dev.tsv", gold, gold)],
        "student": [Answers("dev.tsv", own, gold, row_losses=losses)],
    }
    told, table = report.error_sections(task, tmp_path, answers)
    assert told.startswith("The rows of `dev.tsv` that are not answered as their label says")
    assert table.splitlines()[0] == "| line | text | gold | teacher | student | student's loss |"
    assert table.splitlines()[2:] == [
        r"| 9 | a \*bold\* film \| number 7 | positive | positive | negative | 0.875 |",
        r"| 7 | a \*bold\* film \| number 5 | positive | positive | negative | 0.625 |",
        r"| 4 | a \*bold\* film \| number 2 | negative | negative | positive | 0.250 |",
    ]
    right = {"student": [Answers("dev.tsv", gold, gold, row_losses=losses)]}
    assert report.error_sections(task, tmp_path, right) == ["None of the 13 rows of `dev.tsv`."]


def test_of_many_classes_the_worst_confusions_are_told():
    labels = tuple(f"label {number}" for number in range(31))
    task, gold = replace(find_task("SST-2"), labels=labels, label_names=()), np.arange(310) % 31
    own = gold.copy()
    own[gold == 3], own[[4, 9]] = 30, 17  # ten times one confusion, and two others
    answers = Answers("dev.tsv", own, gold)
    _, [table] = task.kind.answer_tables(task, {"student": [answers]}, {})
    assert table[:2] == [
        ["gold label of `dev.tsv`", "student's answer", "rows", "share of the label's rows"],
        ["label 3", "label 30", "10", "100.0%"],
    ]
    assert sorted(row[:3] for row in table[2:]) == [["label 4", "label 17", "1"], ["label 9", "label 17", "1"]]
    [axis] = drawn(task.kind.panels(task, {"answers": answers}))
    assert axis.get_title() == "answers,\nthe 12 most confused of 31 labels"
    ticks = [text.get_text() for text in axis.get_xticklabels()]
    assert len(ticks) == 13 and ticks[-1] == "other" and {"label 3", "label 30", "label 17"} < set(ticks)


def test_labels_that_no_font_has_are_drawn_by_number(monkeypatch):
    pytest.importorskip("matplotlib")
    assert drawing.drawable("good, très bien") and not drawing.drawable("\U000f1234")
    task = replace(find_task("SST-2"), labels=("0", "1"), label_names=("fine", "\U000f1234"))
    answers = Answers("dev.tsv", np.array([0, 1]), np.array([0, 0]))
    _, [legend_table, counts] = task.kind.answer_tables(task, {"student": [answers]}, {})
    assert legend_table == [["in the picture", "label"], ["#2", "\U000f1234"]] and counts[2][0] == "\U000f1234"
    [axis] = drawn(task.kind.panels(task, {"answers": answers}))
    assert [text.get_text() for text in axis.get_xticklabels()] == ["fine", "#2"]


def test_scatter_plots_of_two_models_have_the_same_axes():
    task, gold = find_task("STS-B"), np.array([0, 1, 5.0])
    answers = {"student": Answers("dev.tsv", gold - 3, gold), "teacher": Answers("dev.tsv", gold + 1, gold)}
    one, other = drawn(task.kind.panels(task, answers))
    assert one.get_xlim() == one.get_ylim() == other.get_xlim() == other.get_ylim()
    assert one.get_xlim() == pytest.approx((-3.36, 6.36))


def test_a_broken_matplotlib_costs_the_picture_only(tmp_path, caplog):
    pytest.importorskip("matplotlib")
    (tmp_path / "report.png").write_bytes(b"of another run")
    assert not drawing.save_panels(tmp_path / "report.png", [lambda axis: 1 / 0])
    assert not list(tmp_path.iterdir()) and "no report.png: division by zero" in caplog.text


def test_a_log_tells_how_much_work_a_training_was(tmp_path):
    lines = [
        {"step": 1, "losses": {}, "steps": 1, "seconds": 2.0, "rows": 29, "command": "python x.py"},
        {"step": 3, "losses": {}, "steps": 2, "seconds": 4.0},
        {"step": 3, "evaluation": {}},
        {"step": 6, "losses": {}, "steps": 2, "seconds": 4.0},  # the run was stopped at step 4 and went on
    ]
    (tmp_path / "train_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    effort = read_effort(tmp_path / "train_log.jsonl")
    assert effort == {
        "steps": 6,
        "seconds": pytest.approx(12.0),
        "rows": 29,
        "unlabelled": None,
        "examples": None,
        "command": "python x.py",
    }
    step = report.Step("", tmp_path, {"train_batch_size": 13}, {}, {}, {}, effort)
    assert report.effort_words(step) == ["29 rows", "6 steps (2 epochs)", "12.0 seconds of training"]
    assert report.effort_words(step._replace(effort=read_effort(tmp_path / "none"))) == []


# --- the table


def make_table(folder, models, *dev):
    """The report's table of models, {name: (parameters, {metric: value}, [seconds of a batch of 1])}. `dev`: as in a
    `Candidate`."""
    candidates = {}
    for name, (parameters, _, _) in models.items():
        (folder / name).mkdir()
        with open(folder / name / "pytorch_model.bin", "wb") as file:
            file.truncate(4 * parameters)
        counts = {"": parameters, "bert.embeddings": parameters // 4}
        model = types.SimpleNamespace(num_parameters=lambda part="", counts=counts: counts[part])
        candidates[name] = Candidate(folder / name, model, TOKENIZER, dev, [ANSWERS])
    seconds = {
        size: {name: [size * value for value in times] for name, (_, _, times) in models.items()} for size in (1, 32)
    }
    results = {name: results for name, (_, results, _) in models.items()}
    samples = {name: dict.fromkeys(each, np.arange(101) / 100) for name, each in results.items()}
    rows = comparison.rows_of(find_task("SST-2"), candidates, comparison.Measured(results, samples, seconds))
    return comparison.table_of(rows, list(candidates))


ANSWERS = Answers("dev.tsv", np.array([0, 1, 1]), np.array([0, 0, 1]))
LONG = {"acc": 0.9, "f1": 0.8, "acc_and_f1": 0.85, "mm_acc": 0.7, "mm_acc_and_f1": 0.4, "spearmanr": 0.12345}


@pytest.mark.parametrize(
    "who", [["student"], ["teacher", "student"], ["teacher", "student", "baseline"], ["student", "baseline"]]
)
def test_columns_align_whatever_the_metrics_are_called(tmp_path, who):
    models = {name: (110_000_000 // (1 + index * 7), LONG, [123.4567]) for index, name in enumerate(who)}
    head, *rows = comparison.format_table(make_table(tmp_path, models), len(who)).splitlines()
    ends = [head.index(name) + len(name) for name in who]
    assert len(rows) == 3 + 2 * len(LONG) + ("teacher" in who) + 6
    assert {line.index(" to ") for line in rows if "interval" in line} == {ends[0] - 9}
    for line in rows:
        if "interval" in line or "same answer" in line:
            continue
        title = re.match(r"(\S+ ?)+", line)[0]
        assert len(title) + 2 <= ends[0] - 11
        for start, end in zip([len(title), *ends], ends, strict=False):
            assert re.fullmatch(r" {2,}[\d,.]+", line[start:end]), line
        rest = line[ends[-1] :]
        assert re.fullmatch(r"   [\d.]+(x (smaller|faster)|% of the teacher's)", rest) if "teacher" in who else not rest
    assert head.endswith(("ratio", who[-1])) and ("student's ratio" in head) == (len(who) == 3)


def test_the_ratios_say_what_the_student_is_to_the_teacher(tmp_path):
    models = {
        "teacher": (700_000, {"acc": 0.8, "mcc": -0.1}, [0.003]),
        "student": (100_000, {"acc": 0.6, "mcc": 0.2}, [0.0015]),
        "baseline": (100_000, {"acc": 0.1, "mcc": 0.1}, [0.001]),
    }
    assert make_table(tmp_path, models) == [
        ["", "teacher", "student", "baseline", "student's ratio"],
        ["parameters", "700,000", "100,000", "100,000", "7.0x smaller"],
        ["of which embeddings", "175,000", "25,000", "25,000", "7.0x smaller"],
        ["size on disk, MB", "2.8", "0.4", "0.4", "7.0x smaller"],
        ["dev acc", "0.8000", "0.6000", "0.1000", "75.0% of the teacher's"],
        ["dev acc, 95% interval", *["0.025 to 0.975"] * 3, ""],
        ["dev mcc", "-0.1000", "0.2000", "0.1000", ""],  # a share of less than nothing says nothing
        ["dev mcc, 95% interval", *["0.025 to 0.975"] * 3, ""],
        ["same answer as the teacher", "", "1.0000", "1.0000", ""],
        ["latency p50, batch of 1, ms", "3.00", "1.50", "1.00", "2.0x faster"],
        ["latency p95, batch of 1, ms", "3.00", "1.50", "1.00", "2.0x faster"],
        ["sentences per second, batch of 1", "333", "667", "1,000", "2.0x faster"],
        ["latency p50, batch of 32, ms", "96.00", "48.00", "32.00", "2.0x faster"],
        ["latency p95, batch of 32, ms", "96.00", "48.00", "32.00", "2.0x faster"],
        ["sentences per second, batch of 32", "333", "667", "1,000", "2.0x faster"],
    ]


def test_percentiles_and_throughput_come_from_the_timings(tmp_path):
    times = [milliseconds / 1000 for milliseconds in range(1, 102)]
    table = make_table(tmp_path, {"student": (100, {}, times)})
    assert table[4:7] == [
        ["latency p50, batch of 1, ms", "51.00"],
        ["latency p95, batch of 1, ms", "96.00"],
        ["sentences per second, batch of 1", f"{101 / 5.151:,.0f}"],
    ]


def test_speed_is_that_of_windows_where_rows_are_read_in_several(tmp_path):
    rows = make_sequences([7, 4, 5])
    windows = replace(rows, rows=np.array([0, 0, 1]))
    assert windows.count_rows(np.array([0, 1])) == 1 and rows.count_rows(np.array([0, 1])) == 2
    for name, sequences, unit in (("a", rows, "sentences"), ("b", windows, "windows")):
        (tmp_path / name).mkdir()
        table = make_table(tmp_path / name, {"student": (100, {}, [0.002])}, ("dev.json", sequences))
        assert table[6] == [f"{unit} per second, batch of 1", "500"]


def test_a_report_tells_which_models_it_has_columns_for(tmp_path):
    assert report.reported(tmp_path) == []
    head = ["", "teacher", "student", "ratio"]
    (tmp_path / "report.md").write_text(f"# T\n\n{comparison.markdown([head, ['dev acc', '0.5', '0.4', '']])}\n")
    assert report.reported(tmp_path) == ["teacher", "student", "ratio"]
    assert "\n| dev acc | 0.5 | 0.4 | |\n" in (tmp_path / "report.md").read_text()


def test_the_conditions_name_device_threads_precision_and_version():
    text = report.conditions_of(Processes(torch.device("cpu"), dtype=torch.bfloat16))
    threads, version = torch.get_num_threads(), re.escape(torch.__version__)
    assert re.search(rf"^\S.*, {threads} threads?, bfloat16, torch {version}$", text)


# --- how the student was trained


def make_run(folder, step, start, entries, script="task_distill"):
    folder.mkdir(parents=True)
    (folder / "pytorch_model.bin").write_text(folder.name)
    (folder / "train_log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    inputs = {"student_model": fingerprint(start)} if start else {}
    settings = {"step": step, "learning_rate": 5e-5, "train_batch_size": 13, "layer_map": "uniform", "temperature": 1.0}
    record = {"script": script, "settings": settings, "inputs": inputs, "finished": True}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


LAYERS = [
    {
        "step": step,
        "losses": {
            "att_loss/1": 4 / step,
            "att_loss/2": 3 / step,
            "rep_loss/0": 2 / step,
            "rep_loss/1": 1.5 / step,
            "rep_loss/2": 1 / step,
        },
    }
    for step in (5, 10, 13)
]
PREDICTION = [
    {"step": step, **entry}
    for step in (7, 14)
    for entry in ({"losses": {"cls_loss": 1 / step}}, {"evaluation": {"acc": 1 - step / 16}})
]


@pytest.fixture
def trained(tmp_path):
    (tmp_path / "unfit").mkdir()
    general = make_run(tmp_path / "3", None, None, LAYERS, "general_distill")
    middle = make_run(tmp_path / "4", "intermediate", general, LAYERS)
    make_run(tmp_path / "another", "intermediate", general, LAYERS)
    return make_run(tmp_path / "5", "prediction", middle, PREDICTION)


def test_the_steps_that_led_to_a_student_are_found_by_what_they_left(trained):
    steps = report.training_steps(trained)
    assert [(step.title, step.folder.name) for step in steps] == [
        ("general distillation", "3"),
        ("intermediate step", "4"),
        ("prediction step", "5"),
    ]
    assert steps[1].layered["att_loss"][2] == [(5, 3 / 5), (10, 3 / 10), (13, 3 / 13)]
    assert steps[2].scores == {"acc": [(7, 0.5625), (14, 0.125)]}
    (trained.parent / "4" / "pytorch_model.bin").write_text("of a later run")  # not what this student started from
    assert [step.folder.name for step in report.training_steps(trained)] == ["5"]
    assert report.training_steps(trained.parent / "unfit") == []


def test_the_general_student_is_where_task_distillation_began(trained):
    assert report.general_student(trained) == trained.parent / "3"
    (trained.parent / "3" / "run.json").unlink()  # downloaded, not made here
    assert report.general_student(trained) == trained.parent / "3"
    (trained.parent / "3" / "pytorch_model.bin").write_text("another")
    assert report.general_student(trained) is None


def test_the_losses_of_a_step_are_told_layer_by_layer(trained):
    general, _, prediction = report.training_steps(trained)
    text = report.step_section(find_task("SST-2"), general)
    assert text.startswith("## General distillation\n\n`") and "batch size 13, learning rate 5e-05" in text
    assert text.splitlines()[4:] == [
        "| layer | attention, first | attention, last | hidden states, first | hidden states, last |",
        "|---|---:|---:|---:|---:|",
        "| embeddings | | | 0.4000 | 0.1538 |",
        "| layer 1 | 0.8000 | 0.3077 | 0.3000 | 0.1154 |",
        "| layer 2 | 0.6000 | 0.2308 | 0.2000 | 0.0769 |",
    ]
    text = report.step_section(find_task("SST-2"), prediction)
    assert "cls_loss: 0.1429 at step 7, 0.0714 at step 14" in text and "temperature 1.0" in text
    assert "dev acc: best 0.5625 at step 7, at the end 0.1250" in text and "layer" not in text


def test_a_log_that_a_kill_cut_short_has_the_curves_before_it(tmp_path):
    path = tmp_path / "train_log.jsonl"
    assert read_curves(path) == {"losses": {}, "evaluation": {}}
    path.write_text('{"step": 3, "losses": {"loss": 2}}\n[1]\n\n{"losses": {"loss": 1}}\n{"step": 5, "losses": {"lo')
    assert read_curves(path) == {"losses": {"loss": [(3, 2.0)]}, "evaluation": {}}


# --- the picture


def drawn(panels):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    axes = Figure().subplots(len(panels)) if len(panels) > 1 else [Figure().subplots()]
    for axis, panel in zip(axes, panels, strict=True):
        panel(axis)
    return axes


def legend(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


def test_each_layer_has_its_curve_on_a_logarithmic_scale(trained):
    candidate = Candidate(trained, None, TOKENIZER, [], [Answers("dev.tsv", np.array([0, 1]), np.array([0, 0]))])
    steps = report.training_steps(trained)
    measured = comparison.Measured({"student": {"acc": 0.5}}, {"student": {"acc": np.arange(101) / 100}}, {})
    axes = drawn(report.make_panels(find_task("SST-2"), {"student": candidate}, measured, steps))
    titles = [
        "dev scores, 95% intervals",
        "student's answers to dev.tsv",
        "dev acc by step",
        "loss of attention, intermediate step",
        "loss of hidden states, intermediate step",
        "loss, prediction step",
        "loss of attention, general distillation",
        "loss of hidden states, general distillation",
    ]
    assert [axis.get_title() for axis in axes] == titles
    for number in (3, 6):
        assert legend(axes[number]) == ["layer 1", "layer 2"] and axes[number].get_yscale() == "log"
        assert legend(axes[number + 1]) == ["embeddings", "layer 1", "layer 2"]
    assert axes[3].lines[1].get_xydata().tolist() == [[5, 3 / 5], [10, 3 / 10], [13, 3 / 13]]
    assert axes[2].lines[0].get_xydata().tolist() == [[7, 0.5625], [14, 0.125]]
    texts = [text.get_text() for text in axes[1].texts]
    assert texts == ["1\n50.0%", "1\n50.0%", "0\n0.0%", "0\n0.0%"]


def test_without_matplotlib_there_is_no_picture_and_none_of_before(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (tmp_path / "report.png").write_bytes(b"of another run")
    assert not drawing.save_panels(tmp_path / "report.png", [lambda axis: None])
    assert not list(tmp_path.iterdir())


def test_any_label_can_stand_in_a_table_and_in_a_picture(tmp_path, recwarn):
    assert comparison.markdown([["", "a|b"], ["$c", "1"]]) == "| | a\\|b |\n|---|---:|\n| $c | 1 |"
    pytest.importorskip("matplotlib")
    for labels in (["$x^", "a|b", "正面"], [f"a rather long label {number}" for number in range(17)]):
        counts = np.arange(len(labels) ** 2).reshape(len(labels), -1)
        panel = functools.partial(drawing.matrix, title="$", counts=counts, names=labels)
        assert drawing.save_panels(tmp_path / "a.png", [panel])
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


@pytest.mark.parametrize("count", [1, 2, 3, *(pytest.param(count, marks=pytest.mark.slow) for count in range(4, 12))])
def test_a_picture_has_a_place_for_each_panel(tmp_path, count):
    pytest.importorskip("matplotlib")
    seen = []
    assert drawing.save_panels(tmp_path / "a.png", [seen.append] * count)
    assert len(set(map(id, seen))) == count
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


# --- the scripts


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    """A finished student of few steps, with all that led to it."""
    folder = make_all(tmp_path_factory.mktemp("distilled"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "SECONDS", 0.05)
        for name in ("pregenerate", "general", "finetune", "intermediate", "prediction"):
            process = call(folder, name)
            assert process.returncode == 0, process.stderr
    return folder


def call(folder, name, *flags):
    script, usual = scripts(folder)[name]
    short = {"pregenerate": [], "evaluate": [], "prediction": ["--max_steps", 6]}.get(name, ["--max_steps", 4])
    return call_script(script, *[flag for flag in usual if flag != "--aug_train"], *short, *flags)


@pytest.fixture
def copy(distilled, tmp_path):
    return shutil.copytree(distilled, tmp_path / "copy")


def test_the_report_tells_scores_speeds_answers_and_losses(distilled):
    text = (distilled / "5" / "report.md").read_text()
    title, said, table, *_ = text.split("\n\n")
    assert title == "# SST-2: teacher, student" and table.startswith("| | teacher | student | ratio |\n|---|---:")
    assert re.fullmatch(
        r"The student's acc on dev is 0\.\d{4}, [\d.]+% of the teacher's, with [^.]+\.[^;]+ms .*\.", said
    )
    numbers = json.loads((distilled / "5" / "report.json").read_text())
    assert numbers["summary"] == said and numbers["table"][0]["title"] == "parameters"
    for row in (
        "parameters",
        "size on disk, MB",
        "dev acc",
        "latency p50, batch of 1, ms",
        "latency p95, batch of 32, ms",
        "sentences per second, batch of 32",
    ):
        assert re.search(rf"^\| {row} \| [\d.,]+ \| [\d.,]+ \| [\d.]+(x|%) .*\|$", text, re.M), row
    assert f"31 tokens, {report.conditions_of(CPU)}" in text
    assert "`dev.tsv` (13 rows). 53.8% of the rows of dev.tsv have the commonest label, negative. 95% intervals" in text
    assert "baseline" not in text.lower()
    assert f"| student | `{distilled}/5` | 2 layers, width 12, 4 heads, 0.0 M parameters |" in text
    rows = re.findall(r"^\| (negative|positive) \| (\d+) \| (\d+) \| [\d.]+% \|$", text, re.M)
    assert [row[0] for row in rows] == ["negative", "positive"] * 2  # of teacher and student
    assert [int(first) + int(second) for _, first, second in rows] == [7, 6] * 2
    accuracy = (int(rows[2][1]) + int(rows[3][2])) / 13
    assert re.search(rf"dev acc \| [\d.]+ \| {accuracy:.4f} ", text)
    assert re.findall(r"^## (.*)$", text, re.M)[2:] == [
        "The student's worst errors",
        "General distillation",
        "Intermediate step",
        "Prediction step",
        "Teacher: fine-tuning",
    ]
    assert len(re.findall(r"^```bash\npython task_distill.py .*--max_steps \d+.*\n```$", text, re.M)) == 3
    assert re.search(r"/5`, 29 rows, 6 steps \(2 epochs\), [\d.]+ seconds of training, .*, seed 42", text)
    assert ("](report.png)" in text) == DRAWN == (distilled / "5" / "report.png").exists()


@pytest.mark.slow
def test_two_reports_differ_in_their_timings_only(copy):
    def without_timings(text):
        kept = [line for line in text.splitlines() if not line.startswith(("| latency", "| sentences"))]
        return [re.sub(r"of \d.*? batches|[\d.]+ ms a text \([\d.]+x faster\)", "", line) for line in kept]

    before = (copy / "5" / "report.md").read_text()
    (copy / "5" / "report.md").unlink()
    printed = call(copy, "prediction").stdout
    after = (copy / "5" / "report.md").read_text()
    # The copy stands in another folder.
    first, second = (without_timings(re.sub(r"`/[^`]*/", "`", text)) for text in (before, after))
    assert first == second and len(first) > 40
    assert "finished before" in printed and re.search(r"^dev acc +[\d.]+ +[\d.]+ +[\d.]+% of the", printed, re.M)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["report.md", "report.json"])
def test_a_report_that_a_kill_cut_short_is_whole_after_the_same_command(copy, name, monkeypatch):
    for file in ("report.md", "report.json"):
        (copy / "5" / file).unlink()
    replace = os.replace
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "replace", lambda *paths: die() if str(paths[1]).endswith(name) else replace(*paths))
        call(copy, "prediction")
    assert call(copy, "prediction").returncode == 0
    assert {"5/report.md", "5/report.json"} <= names(copy)


def die():
    raise Killed


@pytest.mark.slow
def test_a_report_that_a_kill_prevented_is_made_by_the_same_command(copy):
    expected, asked = tree(copy), names(copy / "5")
    (copy / "5" / "report.md").unlink()
    assert call(copy, "prediction").returncode == 0
    assert tree(copy) == expected and names(copy / "5") == asked
    made = (copy / "5" / "report.md").read_bytes()
    assert "latency" not in call(copy, "prediction").stdout  # there already
    assert (copy / "5" / "report.md").read_bytes() == made


@pytest.mark.slow
def test_the_baseline_is_trained_reported_and_used_again(copy):
    before = tree(copy)
    process = call(copy, "prediction", "--baseline")
    assert process.returncode == 0, process.stderr
    assert "finished before" in process.stdout and "baseline, trained on gold labels alone" in process.stdout
    after = tree(copy)
    made = {name: data for name, data in after.items() if name.startswith("5/baseline/")}
    general = {name: data for name, data in after.items() if name.startswith("5/baseline_general/")}
    assert {name: data for name, data in after.items() if name not in made | general} == before
    assert {name.replace("_general", "") for name in general} == set(made)
    assert {name.rsplit("/", 1)[1] for name in made} == {
        "pytorch_model.bin",
        "config.json",
        "vocab.txt",
        "run.json",
        "tokenizer_config.json",
        "eval_results.txt",
    }
    assert made["5/baseline/config.json"] == before["5/config.json"]  # the same student
    record = json.loads(made["5/baseline/run.json"])
    assert record["script"] == "baseline" and record["finished"] and record["settings"]["learning_rate"] == 3e-3
    student, baseline = load_state_dict(copy / "5"), load_state_dict(copy / "5" / "baseline")
    key = "bert.encoder.layer.0.intermediate.dense.weight"
    assert student[key].shape == baseline[key].shape and not torch.allclose(student[key], baseline[key], atol=0.01)
    log = read_curves(copy / "5" / "baseline" / "train_log.jsonl")
    assert log["losses"]["loss"][-1][0] == 6  # as many steps as the student's

    text = (copy / "5" / "report.md").read_text()
    assert "| | teacher | student | baseline | general baseline | TF-IDF | student's ratio |" in text
    assert "Baseline: the student's architecture, starting with random weights" in text
    assert "General baseline: the student's architecture, starting with the general student's weights" in text
    assert "(batches of 13, learning rate 0.003)" in text and "| baseline | `" in text
    assert re.search(r"The student's acc differs from the baseline's by [+-]\d", text)
    assert re.search(r"^ +teacher +student +baseline +general baseline +TF-IDF +student's ratio$", process.stdout, re.M)
    again = call(copy, "prediction", "--baseline")
    assert again.stdout.count("finished before") == 3 and "latency" not in again.stdout
    assert tree(copy) == after
    evaluated = call(copy, "evaluate", "--baseline")  # it knows how the student was trained
    assert evaluated.returncode == 0, evaluated.stderr
    assert "finished before" in evaluated.stdout
    assert tree(copy / "5" / "baseline") == {name.removeprefix("5/baseline/"): data for name, data in made.items()}


class Killed(BaseException):
    """Stands for the end of the process, which no handler sees."""


@pytest.mark.slow
def test_a_baseline_that_was_killed_goes_on_to_the_same_bytes(copy, tmp_path):
    other = shutil.copytree(copy, tmp_path / "other")
    assert call(other, "prediction", "--baseline").returncode == 0
    saved, count = TrainingRun.save_state, 0

    def killed_later(run):
        nonlocal count
        count += 1
        if count > 2:
            raise Killed
        saved(run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingRun, "save_state", killed_later)
        with pytest.raises(Killed):
            call(copy, "prediction", "--baseline")
    assert (copy / "5" / "baseline" / "training_state.bin").exists()
    process = call(copy, "prediction", "--baseline")
    assert process.returncode == 0 and "going on from step 5 of 6" in process.stdout
    assert tree(copy / "5" / "baseline") == tree(other / "5" / "baseline")
    assert "baseline" in report.reported(copy / "5")


@pytest.mark.slow
def test_evaluation_trains_a_baseline_by_the_settings_of_the_student_s_run(copy):
    flags = ["--baseline", "--output_dir", copy / "evaluated", "--student_model", copy / "5"]
    task = ["--data_dir", copy / "glue" / "SST-2", "--teacher_model", copy / "teacher"]
    process = call_script("task_distill.py", "--do_eval", *task, *flags, "--max_seq_length", 31)
    assert process.returncode == 0, process.stderr
    assert re.search(r"learning_rate +0\.003 +earlier run", process.stdout)
    settings = json.loads((copy / "evaluated" / "baseline" / "run.json").read_text())["settings"]
    known = json.loads((copy / "5" / "run.json").read_text())["settings"]
    shared = {"learning_rate", "train_batch_size", "num_train_epochs", "max_steps", "seed", "weight_decay"}
    assert {name: settings[name] for name in shared} == {name: known[name] for name in shared}
    assert not {"temperature", "layer_map", "pred_distill", "teacher_model"} & set(settings)
    assert "baseline" in report.reported(copy / "evaluated") and not (copy / "5" / "baseline").exists()


@pytest.mark.slow
def test_replacing_the_student_takes_its_baseline_and_its_report_along(copy):
    assert call(copy, "prediction", "--baseline").returncode == 0
    assert call(copy, "prediction", "--overwrite_output", "--seed", 5).returncode == 0
    assert report.reported(copy / "5") == ["teacher", "student", "ratio"]
    assert names(copy / "5" / "baseline") == names(copy / "5" / "baseline_general") == {"run.json"}
    assert call(copy, "prediction", "--baseline", "--seed", 5).returncode == 0
    assert json.loads((copy / "5" / "baseline" / "run.json").read_text())["settings"]["seed"] == 5


@pytest.mark.parametrize("flags", [[], ["--do_finetune"], ["--do_predict"]])
def test_a_baseline_needs_a_student_to_be_compared_with(flags):
    process = call_script("task_distill.py", "--baseline", *flags)
    assert process.returncode == 2 and process.stderr.count("\n") == 1
    assert process.stderr.startswith("error: --baseline: goes with --pred_distill or --do_eval")


@pytest.mark.slow
def test_evaluation_without_a_teacher_reports_the_student_alone(copy, monkeypatch):
    monkeypatch.setattr(flags, "ROOT", copy)  # whatever teacher the checkout has
    given = ["--student_model", copy / "5", "--data_dir", copy / "glue" / "SST-2", "--output_dir", copy / "alone"]
    process = call_script("task_distill.py", "--do_eval", *given, "--max_seq_length", 31)
    assert process.returncode == 0, process.stderr
    assert report.reported(copy / "alone") == ["student"]
    assert re.search(r"^parameters +[\d,]+$", process.stdout, re.M)
    assert names(copy / "alone") == {"eval_results.txt", "report.md", "report.json", *(["report.png"] if DRAWN else [])}


def make_pairs(folder, files, label_column, label_of):
    """A task of sentence pairs; odd numbers of rows."""
    rng = random.Random(3)
    folder.mkdir(parents=True)
    for number, name in enumerate(files):
        rows = []
        for index in range(23 - 2 * number):
            word = rng.choice(GOOD + BAD)
            rows.append(f"the {rng.choice(NOUNS)} is good\t{word} {rng.choice(NOUNS)}\t{label_of(index, word)}")
        (folder / name).write_text("\n".join([f"sentence1\tsentence2\t{label_column}", *rows, ""]))
    return folder


def distil_pairs(distilled, tmp_path, task, *flags):
    """Both the teacher and the student learn a task in a few steps; returns what was printed and the output folder."""
    usual = [
        "--task_name",
        task,
        "--data_dir",
        tmp_path / task,
        "--max_seq_length",
        31,
        "--train_batch_size",
        13,
        "--eval_step",
        2,
        "--max_steps",
        5,
        "--learning_rate",
        "3e-3",
    ]
    teacher = shutil.copytree(distilled / "teacher", tmp_path / "teacher")
    process = call_script(
        "task_distill.py",
        "--pred_distill",
        *usual,
        "--teacher_model",
        teacher,
        "--student_model",
        distilled / "3",
        "--output_dir",
        tmp_path / "out",
        *flags,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout, (tmp_path / "out" / "report.md").read_text()


@pytest.mark.slow
def test_a_regression_task_reports_correlations(distilled, tmp_path):
    def similarity(index, word):
        return 4.5 if word in GOOD else index % 3

    make_pairs(tmp_path / "STS-B", ["train.tsv", "dev.tsv"], "score", similarity)
    printed, text = distil_pairs(distilled, tmp_path, "STS-B", "--baseline")
    rows = [("dev corr", "corr"), ("dev pearson", "pearson"), ("dev spearmanr", "spearmanr")]
    assert all(re.search(rf"^{title} +-?[\d.]+ +-?[\d.]+ +-?[\d.]+", printed, re.M) for title, _ in rows)
    results = dict(re.findall(r"^(\w+) = (\S+)$", (tmp_path / "out" / "eval_results.txt").read_text(), re.M))
    told = "".join(rf" {float(results[name]):.4f} \|" for _, name in rows)
    assert "| correlation | corr | pearson | spearmanr | mean absolute error, `dev.tsv` |" in text
    assert re.search(rf"^\| student \|{told} [\d.]+ \|$", text, re.M)
    assert "\n| correlation with the teacher | | " in text
    assert "| baseline | " in text and "negative" not in text
    assert "](report.png)" in text or not DRAWN


@pytest.mark.slow
def test_two_dev_sets_report_their_scores_and_answers_apart(distilled, tmp_path):
    classes = ["neutral", "entailment", "contradiction"]
    files = ["train.tsv", "dev_matched.tsv", "dev_mismatched.tsv"]
    make_pairs(tmp_path / "MNLI", files, "gold_label", lambda index, word: classes[index % 3])
    printed, text = distil_pairs(distilled, tmp_path, "MNLI")
    assert re.search(r"^dev acc +[\d.]+ +[\d.]+", printed, re.M) and re.search(r"^dev mm_acc +[\d.]+", printed, re.M)
    assert "`dev_matched.tsv` (21 rows), `dev_mismatched.tsv` (19 rows)" in text
    head = r"^\| gold label of `(\w+).tsv` \| (\w+): contradiction \| .* neutral \| right \|\n.*\n"
    tables = re.findall(rf"{head}((?:.+\n)+)", text, re.M)
    assert [table[:2] for table in tables] == [
        (file, who) for file in ("dev_matched", "dev_mismatched") for who in ("teacher", "student")
    ]
    for file, _, rows in tables:
        counts = [list(map(int, re.findall(r" (\d+) (?=\|)", row))) for row in rows.splitlines()]
        assert sum(map(sum, counts)) == {"dev_matched": 21, "dev_mismatched": 19}[file]
        assert [row.split()[1] for row in rows.splitlines()] == ["contradiction", "entailment", "neutral"]


@pytest.mark.slow
def test_two_processes_write_one_report(distilled, tmp_path):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(ROOT / "task_distill.py"),
    ]
    _, usual = scripts(shutil.copytree(distilled, tmp_path / "copy"))["prediction"]
    flags = [flag for flag in usual if flag != "--aug_train"]
    flags += ["--max_steps", 3, "--output_dir", tmp_path / "out", "--baseline"]
    process = subprocess.run([*command, *map(str, flags)], capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    assert len(re.findall(r"^dev acc ", process.stdout, re.M)) == 1
    columns = ["teacher", "student", "baseline", "general baseline", "TF-IDF", "student's ratio"]
    assert report.reported(tmp_path / "out") == columns
