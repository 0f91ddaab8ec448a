"""Flags: one table, its defaults in --help and in the scripts' headers, what decides, what is handed on."""

import ast
import importlib
import logging
import re
import shlex
import sys
from pathlib import Path

import pytest
from tiny import ROOT

import data_augmentation
import general_distill
import pregenerate_training_data
import task_distill
from transformer import flags
from transformer.file_utils import UserError
from transformer.flags import (
    AUGMENTATION,
    BASELINE,
    EVALUATION,
    FINETUNE,
    FLAGS,
    GENERAL,
    INTERMEDIATE,
    OTHERWISE,
    PREDICTION,
    PREGENERATION,
    SAMPLE,
    SAMPLE_TEACHER,
    SCRIPTS,
    TASK,
    at_root,
    flags_of,
)
from transformer.glue import TASKS
from transformer.history import command_line
from transformer.processes import Processes
from transformer.settings import Batching, Matching, Schedule, Settings, default_text, settings_for

STEPS = {AUGMENTATION: data_augmentation, PREGENERATION: pregenerate_training_data}
STEPS |= {GENERAL: general_distill, INTERMEDIATE: task_distill}  # a script each, by the step it starts from
SST2 = TASKS["sst-2"].settings


def read(script, *given):
    """The settings that a script reads from a command line."""
    settings = script.read_settings(list(map(str, given)))
    return settings if isinstance(settings, Settings) else settings[0]


def given_to(step):
    """A value for every flag of a step that is not its default."""
    values = {}
    for name, flag in flags_of(step).items():
        if flag.type is bool:
            values[name] = True
        elif flag.type in (int, float):
            values[name] = 9 if flag.type is int else 0.25
        elif flag.type is list:
            values[name] = list(flag.choices) or [f"other {name}", "one more"]
        else:
            values[name] = [other for other in (*flag.choices, f"other {name}") if other != flag.value_at(step)][0]
    values |= {"precision": "bf16", "fp16": None, "seeds": None, "student_vocab": "9", "task_name": "SST-2", "seed": 7}
    values |= {} if step == INTERMEDIATE else {"teacher_states": None}  # a contradiction
    return {name: value for name, value in values.items() if name in flags_of(step)}


# --- the table


def test_a_row_speaks_of_steps_that_have_its_flag():
    for (_, steps), rows in FLAGS.items():
        for name, flag in rows.items():
            for values in (flag.default, flag.sample):
                if isinstance(values, dict):
                    assert values.keys() - {OTHERWISE} <= set(steps), name
            assert set(flag.by_task) <= set(steps), name


def test_no_flag_has_two_rows():
    names = [name for rows in FLAGS.values() for name in rows]
    names += [flag.alias for rows in FLAGS.values() for flag in rows.values() if flag.alias]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("step", STEPS)
def test_help_shows_the_default_of_every_flag(step, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)  # where paths are short
    monkeypatch.setenv("COLUMNS", "5000")
    with pytest.raises(SystemExit) as end:
        STEPS[step].read_settings(["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0 and text.split("options:")[0].strip().endswith(STEPS[step].__doc__.strip())
    for name, flag in flags_of(step).items():
        [shown] = re.findall(rf"^  --{name}[ ,\n].*\n?(?:   .*\n)?", text, flags=re.MULTILINE)
        shown = " ".join(shown.split())
        told = default_text(flag, step)
        assert shown.endswith(f"{flag.help}{told}"), name
        default = flag.value_at(step)
        if flag.type is bool:
            assert default is None and told == "", name  # a switch is off
        elif default is None:
            assert shown.endswith(")"), name  # (off), or what is taken instead
        else:
            assert told.startswith(f" ({' '.join(default) if flag.type is list else default}"), name


def test_help_shows_what_a_switch_or_a_task_makes_of_a_default():
    rows = flags_of(INTERMEDIATE)
    assert default_text(rows["learning_rate"], INTERMEDIATE) == " (5e-05; with --do_finetune 3e-05)"
    assert default_text(rows["max_seq_length"], INTERMEDIATE) == " (128, or the task's own)"
    assert default_text(rows["max_seq_length"], GENERAL) == " (128)"
    assert default_text(rows["limit"], INTERMEDIATE) == " (off)"


# --- the headers


def header_lines(script):
    """[(name, value)] of the commented lines in a script's HEADER."""
    block = re.search(r"^HEADER = \{\n(.*?)^\}", (ROOT / script).read_text(encoding="utf-8"), re.M | re.S)[1]
    lines = [re.fullmatch(r'    # "(\w+)": (.+?),(?:  # .*)?', line) for line in block.splitlines()]
    assert all(lines), f"{script}: a line of HEADER that cannot be read"
    return [(line[1], ast.literal_eval(line[2])) for line in lines]


@pytest.mark.parametrize("step", STEPS)
def test_the_values_in_a_header_s_comments_are_the_table_s_defaults(step, monkeypatch):
    monkeypatch.chdir(ROOT)
    rows, lines = flags_of(step), header_lines(SCRIPTS[step])
    assert len(lines) >= 10 and len(dict(lines)) == len(lines)
    for name, value in lines:
        if rows[name].type is bool:
            assert value is True, name
        elif (default := rows[name].value_at(step)) is not None:
            assert value == default and type(value) is type(default), name


@pytest.mark.parametrize("step", STEPS)
def test_a_header_with_its_comments_taken_away_is_obeyed(step):
    header = dict(header_lines(SCRIPTS[step]))
    settings = settings_for(step, {}, header)
    assert {name: settings[name] for name in header} == header
    assert all(settings.origins[name] == "script header" for name in header)
    assert STEPS[step].HEADER == {}


# --- what decides


def test_the_first_source_that_has_a_value_gives_it():
    header = {"learning_rate": 1.0, "eval_step": 2, "sample": True, "weight_decay": 0.5}
    recorded = {"learning_rate": 2.0, "eval_step": 3, "train_batch_size": 4, "num_train_epochs": 5.0}
    task = ("mine", {"max_seq_length": 99, "data_dir": "mine", "num_train_epochs": 7.0})
    settings = settings_for(INTERMEDIATE, {"learning_rate": 0.25}, header, task, recorded)
    expected = {
        "learning_rate": (0.25, "command line"),
        "eval_step": (2, "script header"),
        "weight_decay": (0.5, "script header"),
        "train_batch_size": (4, "earlier run"),
        "num_train_epochs": (5.0, "earlier run"),
        "max_seq_length": (64, "sample"),
        "teacher_model": (at_root(SAMPLE_TEACHER), "sample"),
        "warmup_proportion": (0.1, None),
    }
    assert {name: (settings[name], settings.origins.get(name)) for name in expected} == expected
    plain = settings_for(INTERMEDIATE, {}, task=task)
    assert (plain.num_train_epochs, plain.origins["num_train_epochs"]) == (7.0, "mine")
    assert (plain.max_seq_length, plain.data_dir, plain.task_name) == (99, "mine", "mine")
    assert settings_for(PREDICTION, {}, task=task).num_train_epochs == 3.0  # for every task


def test_plain_defaults_have_no_origin():
    settings = settings_for(GENERAL, {})
    assert settings.origins == {} and (settings.seed, settings.learning_rate) == (42, 5e-5)
    assert set(settings) == set(flags_of(GENERAL)) and len(settings) == len(flags_of(GENERAL))


def test_a_recorded_value_that_is_no_flag_is_left_out():
    settings = settings_for(PREDICTION, {}, recorded={"no_such_flag": 3, "seed": 5})
    assert "no_such_flag" not in settings and settings.seed == 5
    with pytest.raises(UserError, match="HEADER: 'no_such_flag' is no flag of this script"):
        settings_for(GENERAL, {}, {"no_such_flag": 3})


def test_an_explicit_zero_wins_over_every_layer():
    assert settings_for(GENERAL, {"seed": 0, "weight_decay": 0.0}, {"seed": 5}, recorded={"weight_decay": 1.0}) == {
        **settings_for(GENERAL, {}),
        "seed": 0,
        "weight_decay": 0.0,
    }


def test_fp16_is_short_for_the_precision():
    assert settings_for(GENERAL, {"fp16": True, "precision": "bf16"}).precision == "fp16"


def test_settings_never_change():
    settings = settings_for(GENERAL, {})
    with pytest.raises(AttributeError, match="settings never change"):
        settings.seed = 5
    with pytest.raises(AttributeError, match="settings never change"):
        settings.nothing = 5
    with pytest.raises(TypeError):
        settings["seed"] = 5
    with pytest.raises(TypeError):
        settings.origins["seed"] = "me"
    with pytest.raises(AttributeError, match="temperature is no setting of the general step"):
        settings.temperature  # noqa: B018
    assert settings.seed == settings["seed"] == 42


def test_what_was_given_does_not_change():
    given, header = {"seed": 3}, {"sample": True}
    settings_for(INTERMEDIATE, given, header, SST2, changes={"limit": 3}).for_step(FINETUNE, seed=4)
    assert (given, header) == ({"seed": 3}, {"sample": True})


@pytest.mark.parametrize("name", ["max_steps", "limit", "temperature"])
def test_zero_where_a_positive_number_is_needed_is_named(name):
    with pytest.raises(UserError, match=f"--{name} 0: expected a number above 0"):
        settings_for(PREDICTION, {name: 0})


@pytest.mark.parametrize(
    "step, given, told",
    [
        (GENERAL, {"seed": -1}, "--seed -1: expected 0 or more, below 2^63"),
        (GENERAL, {"seed": 1 << 63}, f"--seed {1 << 63}: expected 0 or more, below 2^63"),
        (GENERAL, {"learning_rate": float("inf")}, "--learning_rate inf: expected a number that is not negative"),
        (GENERAL, {"learning_rate": float("nan")}, "--learning_rate nan: expected a number that is not negative"),
        (GENERAL, {"warmup_proportion": 1.0}, "--warmup_proportion 1.0: expected 0 up to 1, 1 excluded"),
        (GENERAL, {"attention_weight": 0.0, "hidden_weight": 0.0}, "nothing is left to learn"),
        (PREGENERATION, {"max_seq_len": 7}, "--max_seq_len 7: expected 8 to 65535"),
        (PREGENERATION, {"short_seq_prob": 1.5}, "--short_seq_prob 1.5: expected 0 to 1"),
        (INTERMEDIATE, {"baseline": True}, "--baseline: goes with --pred_distill or --do_eval"),
        (INTERMEDIATE, {"seeds": "1,1"}, "--seeds 1,1: expected different whole numbers"),
        (INTERMEDIATE, {"seeds": "a"}, "--seeds a: expected different whole numbers"),
        (FINETUNE, {"seeds": "1,2"}, "--seeds: for the two steps of distillation and for --do_eval only"),
        (EVALUATION, {"seeds": "1,2", "do_predict": True}, "--seeds: for the two steps of distillation"),
    ],
)
def test_a_value_out_of_range_is_named_wherever_it_comes_from(step, given, told):
    for layers in ((given, {}), ({}, given)):
        with pytest.raises(UserError, match=re.escape(told)):
            settings_for(step, *layers)


def test_another_task_takes_the_sample_s_models_and_its_own_data(tmp_path, monkeypatch):
    (tmp_path / "reviews").mkdir()
    for name in ("train", "dev", "test"):
        (tmp_path / "reviews" / f"{name}.csv").write_text("text,label\na good film,good\na bad film,bad\n")
    monkeypatch.setattr(flags, "ROOT", tmp_path)
    for switch in ([], ["--pred_distill"], ["--do_predict"], ["--do_finetune"]):
        own = read(task_distill, "--sample", "--task_name", "reviews", *switch)
        assert own.data_dir == str(tmp_path / "reviews") and not own.aug_train
        assert own.teacher_model == at_root(SAMPLE_TEACHER)
        sample = read(task_distill, "--sample", *switch)
        assert sample.data_dir == at_root(f"{SAMPLE}/SST-2")
        assert sample.aug_train == (None if switch == ["--do_finetune"] else True)
    own = read(data_augmentation, "--sample", "--task_name", "reviews")
    assert (own.glue_dir, own.pretrained_bert_model) == (at_root("."), at_root(SAMPLE_TEACHER))
    assert read(data_augmentation, "--sample").glue_dir == at_root(SAMPLE)


def test_the_sample_s_task_may_be_written_in_any_case():
    for script in (task_distill, data_augmentation):
        assert dict(read(script, "--sample", "--task_name", "sst-2")) == dict(read(script, "--sample"))


def test_the_header_counts_as_the_command_line_does(monkeypatch):
    monkeypatch.setattr(task_distill, "HEADER", {"sample": True, "pred_distill": True, "task_name": "mnli", "limit": 5})
    settings = read(task_distill, "--limit", 3)
    assert (settings.step, settings.task_name, settings.limit) == (PREDICTION, "MNLI", 3)
    assert settings.data_dir == at_root("MNLI") and settings.origins["limit"] == "command line"
    monkeypatch.setattr(pregenerate_training_data, "HEADER", {"train_corpus": "one.txt"})
    assert read(pregenerate_training_data).train_corpus == ["one.txt"]


@pytest.mark.parametrize(
    "switches, step",
    [
        ([], INTERMEDIATE),
        (["--pred_distill"], PREDICTION),
        (["--do_eval"], EVALUATION),
        (["--do_predict"], EVALUATION),
        (["--do_eval", "--pred_distill"], EVALUATION),
        (["--do_finetune", "--pred_distill"], FINETUNE),
    ],
)
def test_the_switches_choose_the_step(switches, step):
    assert read(task_distill, *switches).step == step


@pytest.mark.parametrize("step", STEPS)
def test_abbreviated_and_unknown_flags_are_refused(step):
    for flag in ("--see", "--no_such_flag"):
        with pytest.raises(SystemExit) as end:
            read(STEPS[step], flag, "3")
        assert end.value.code == 2


# --- small parts of the settings


def test_parts_are_made_of_the_flags_of_their_names():
    settings = settings_for(INTERMEDIATE, given_to(INTERMEDIATE) | {"baseline": None}, task=SST2)
    for kind in (Schedule, Batching, Matching):
        part = settings.part(kind)
        assert all(getattr(part, name) == settings[name] for name in kind.__dataclass_fields__)
    reading, schedule, batching, provenance = settings.parts
    assert (reading.data_dir, schedule.seed, batching.train_batch_size) == ("other data_dir", 7, 9)
    assert provenance.script == "task_distill" and provenance.overwrite and provenance.data_url == "other data_url"


def test_the_defaults_of_the_parts_are_the_table_s():
    settings = settings_for(INTERMEDIATE, {})
    for kind in (Schedule, Batching, Matching):
        assert {name: value or None for name, value in vars(kind()).items()} == vars(settings.part(kind)), kind


# --- trainings inside another step

# What fine-tuning took from the step that it was part of, and what the baseline had nothing to do with, when these
# were lists of names in task_distill.py.
KEPT = (
    "teacher_model",
    "data_dir",
    "task_name",
    "dev_fraction",
    "sample",
    "seed",
    "precision",
    "limit",
    "max_steps",
    "no_cuda",
    "do_lower_case",
    "max_seq_length",
    "doc_stride",
    "max_query_length",
    "cache_dir",
    "data_url",
    "local_rank",
    "debug",
    "pad_to_max_length",
    "gradient_accumulation_steps",
    "eval_batch_size",
    "compile",
)
OF_DISTILLATION = (
    "teacher_model",
    "student_vocab",
    "no_finetune",
    "pred_distill",
    "do_eval",
    "do_predict",
    "predict_file",
    "do_export",
    "baseline",
    "temperature",
    "unlabelled",
    "layer_map",
    "attention_loss",
    "attention_weight",
    "hidden_weight",
    "teacher_precision",
    "teacher_states",
)


@pytest.mark.parametrize("layer", ["given", "header"])
def test_fine_tuning_takes_over_what_the_table_says(layer):
    given = given_to(PREDICTION)
    settings = settings_for(PREDICTION, *((given, {}) if layer == "given" else ({}, given)), SST2)
    tuning = settings.for_step(FINETUNE)
    plain = settings_for(FINETUNE, {"sample": True}, task=SST2)
    assert tuning.step == FINETUNE and set(tuning) == set(flags_of(FINETUNE)) == set(settings)
    for name in tuning:
        assert tuning[name] == (settings if name in KEPT else plain)[name], name
        assert name not in KEPT or settings[name] != plain[name] or name in ("task_name", "sample"), name
    # Beside the names of before: --fp16, which they took over as the precision that it stands for.
    table = {name for name, flag in flags_of(FINETUNE).items() if FINETUNE in flag.heirs}
    assert table == {*KEPT, "fp16"}
    assert settings_for(PREDICTION, {"fp16": True}, task=SST2).for_step(FINETUNE).precision == "fp16"


@pytest.mark.parametrize("layer", ["given", "header"])
def test_the_baseline_takes_over_all_that_is_not_of_distillation(layer):
    given = given_to(PREDICTION)
    settings = settings_for(PREDICTION, *((given, {}) if layer == "given" else ({}, given)), SST2)
    baseline = settings.for_step(BASELINE)
    # --do_finetune and --seeds were off where a baseline was trained.
    assert set(baseline) == set(settings) - {*OF_DISTILLATION, "do_finetune", "seeds"}
    assert dict(baseline) == {name: settings[name] for name in baseline}
    assert baseline.provenance.settings["step"] == BASELINE == baseline.provenance.script


def test_the_baseline_of_a_finished_student_takes_over_its_record():
    recorded = {"learning_rate": 1e-3, "train_batch_size": 5, "seed": 8, "layer_map": "top", "step": PREDICTION}
    settings = settings_for(EVALUATION, {"do_eval": True, "baseline": True, "seed": 9, "limit": 3}, task=SST2)
    baseline = settings.for_step(BASELINE, recorded, student_model="S", output_dir="O")
    assert (baseline.learning_rate, baseline.train_batch_size) == (1e-3, 5)
    assert (baseline.seed, baseline.limit, baseline.student_model, baseline.output_dir) == (9, 3, "S", "O")
    assert baseline.origins["learning_rate"] == "earlier run" and "layer_map" not in baseline
    # What nobody says is the prediction step's.
    assert (baseline.eval_step, baseline.weight_decay, baseline.num_train_epochs) == (50, 0.01, 3.0)
    sample = settings_for(EVALUATION, {"do_eval": True, "baseline": True, "sample": True}, task=SST2)
    of_step = settings_for(PREDICTION, {"sample": True}, task=SST2)
    assert dict(sample.for_step(BASELINE, student_model=of_step.student_model)) == {
        name: of_step[name] for name in flags_of(BASELINE)
    }


def test_the_home_folder_is_found_in_every_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/of/mine")
    given = {"data_dir": "~/data", "student_model": "~", "unlabelled": ["~/a.txt", "b~.txt"], "output_dir": "out~"}
    settings = settings_for(PREDICTION, given, {"output_dir": "~/out", "cache_dir": Path("~/cache")}, task=SST2)
    assert (settings.data_dir, settings.student_model) == ("/home/of/mine/data", "/home/of/mine")
    assert settings.unlabelled == ["/home/of/mine/a.txt", "b~.txt"] and settings.output_dir == "out~"
    assert settings.cache_dir == "/home/of/mine/cache"
    for given, header in (({"output_dir": "~nobody-here/out"}, {}), ({}, {"output_dir": "~nobody-here/out"})):
        with pytest.raises(UserError, match="^--output_dir ~nobody-here/out: no such user; a name that begins with ~"):
            settings_for(PREDICTION, given, header)


@pytest.mark.parametrize("value", ["x", [1], {}, True])
def test_what_a_record_holds_is_of_its_flag_s_type(value):
    with pytest.raises(UserError, match="^run.json of an earlier run: 'learning_rate' is .*, expected a number$"):
        settings_for(FINETUNE, {}, recorded={"learning_rate": value, "step": 3})
    assert settings_for(FINETUNE, {}, recorded={"learning_rate": 1, "step": 3}).learning_rate == 1.0


@pytest.mark.parametrize("more", [{}, {"seed": 9}])
def test_a_sweep_has_a_seed_and_folders_for_each_run_and_what_is_trained_inside_it(tmp_path, more):
    (tmp_path / "student" / "seed_3").mkdir(parents=True)
    folders = {"student_model": str(tmp_path / "student"), "output_dir": "out"}
    settings = settings_for(PREDICTION, {"seeds": "3,5", "baseline": True, **folders, **more}, task=SST2)
    with pytest.raises(
        UserError, match="student/seed_5: no such folder; the step before this one makes it with --seeds"
    ):
        next(settings.each_seed())  # before seed 3 is trained
    (tmp_path / "student" / "pytorch_model.bin").touch()  # a student for every seed that has none of its own
    runs = list(settings.each_seed())
    assert [(run.seed, run.seeds, run.output_dir) for run in runs] == [(3, None, "out/seed_3"), (5, None, "out/seed_5")]
    assert [run.student_model for run in runs] == [str(tmp_path / "student" / "seed_3"), str(tmp_path / "student")]
    for step in (FINETUNE, BASELINE):
        assert [run.for_step(step).seed for run in runs] == [3, 5]
    single = settings_for(PREDICTION, more, task=SST2)
    assert list(single.each_seed()) == [single]


@pytest.mark.parametrize("url", ["https://127.0.0.1/x", "s3://", "gs://bucket/x", __file__])
@pytest.mark.parametrize("script", [data_augmentation, pregenerate_training_data, general_distill, task_distill])
def test_a_data_url_that_takes_no_copy_is_refused_before_any_work(script, url):
    with pytest.raises(UserError, match="cannot upload to .*, expected a folder or s3://bucket/prefix"):
        read(script, "--data_url", url)


def test_no_password_of_an_address_stands_in_log_record_or_command(caplog, monkeypatch):
    settings = read(general_distill, "--teacher_model", "https://me:s3cret@127.0.0.1/model?token=s3cret")
    assert settings.teacher_model == "https://me:s3cret@127.0.0.1/model?token=s3cret"
    caplog.set_level(logging.INFO)
    settings.log()
    monkeypatch.setattr(sys, "argv", ["general_distill.py", "--teacher_model", settings.teacher_model])
    command = command_line(Processes(None))
    told = [*caplog.messages, command, settings.next_command(), str(settings.provenance.settings)]
    assert not [text for text in told if "s3cret" in text]
    assert all("https://...@127.0.0.1/model?..." in text for text in told[-3:]) and len(told) > 3


# --- the command to paste


def follow(script, *given):
    return read(script, *given).next_command()


def test_each_step_tells_the_command_of_the_next_one(monkeypatch):
    monkeypatch.chdir(ROOT)
    task = "python task_distill.py"
    assert follow(data_augmentation) == "python pregenerate_training_data.py"
    assert follow(pregenerate_training_data) == "python general_distill.py"
    assert follow(general_distill) == task
    assert follow(task_distill, "--do_finetune") == "python general_distill.py"
    assert follow(task_distill) == f"{task} --pred_distill"
    assert follow(task_distill, "--pred_distill") == f"{task} --do_eval"
    for script in (data_augmentation, pregenerate_training_data, general_distill, task_distill):
        assert follow(script, "--sample") == f"{follow(script)} --sample"


def test_the_next_command_has_what_the_next_step_would_not_take_by_itself(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert follow(data_augmentation, "--pretrained_bert_model", "a b", "--N", 3) == (
        "python pregenerate_training_data.py --bert_model 'a b'"
    )
    made = ["--output_dir", "x y", "--bert_model", "b", "--max_seq_len", 31, "--do_lower_case"]
    assert follow(pregenerate_training_data, *made) == (
        "python general_distill.py --pregenerated_data 'x y' --teacher_model b --max_seq_length 31 --do_lower_case"
    )
    without = read(pregenerate_training_data, *made).next_command(teacher_model=None)  # made from a vocabulary alone
    assert without == "python general_distill.py --pregenerated_data 'x y' --max_seq_length 31 --do_lower_case"
    assert follow(general_distill, "--output_dir", "s", "--teacher_model", "t", "--sample") == (
        "python task_distill.py --student_model s --teacher_model t --sample"
    )
    assert follow(task_distill, "--do_finetune", "--teacher_model", "t", "--output_dir", "o") == (
        "python general_distill.py --teacher_model t"
    )
    given = ["--task_name", "mnli", "--output_dir", "o", "--max_seq_length", 31, "--no_cuda", "--aug_train"]
    assert follow(task_distill, *given, "--learning_rate", "1e-3") == (
        "python task_distill.py --pred_distill --task_name MNLI --max_seq_length 31 --no_cuda --student_model o "
        "--aug_train"
    )
    assert follow(task_distill, *given, "--pred_distill", "--data_dir", "d") == (
        "python task_distill.py --do_eval --task_name MNLI --data_dir d --max_seq_length 31 --no_cuda "
        "--student_model o --output_dir o"
    )
    [first, second] = read(task_distill, "--seeds", "1,2", "--output_dir", "o").each_seed()
    assert first.next_command() == "python task_distill.py --pred_distill --student_model o/seed_1"
    assert second.next_command() == "python task_distill.py --pred_distill --student_model o/seed_2"


@pytest.fixture
def reviews(tmp_path, monkeypatch):
    """A repository elsewhere with a task of one's own, reviews."""
    (tmp_path / "reviews").mkdir()
    for name in ("train", "dev"):
        (tmp_path / "reviews" / f"{name}.csv").write_text("text,label\na good film,good\na bad film,bad\n")
    monkeypatch.setattr(flags, "ROOT", tmp_path)
    return tmp_path


def paste(line):
    """The settings of each command of a line."""
    commands = [shlex.split(command) for command in line.split(" && ")]
    assert all(words[0] == "python" and Path(words[1]).resolve().parent == flags.ROOT for words in commands)
    return [read(importlib.import_module(Path(script).stem), *given) for _, script, *given in commands]


def test_each_task_s_students_have_folders_of_their_own(reviews):
    def folders(*given):
        settings = read(task_distill, *given)
        return [str(Path(settings[name]).relative_to(reviews)) for name in ("student_model", "output_dir")]

    mid, out = "4_task_distill_mid", "5_task_distill_out"
    for more in ([], ["--sample"]):
        assert folders("--task_name", "reviews", *more) == ["3_general_distill", f"{mid}/reviews"]
        assert folders("--task_name", "reviews", "--pred_distill", *more) == [f"{mid}/reviews", f"{out}/reviews"]
        assert folders("--task_name", "reviews", "--do_eval", *more) == [f"{out}/reviews", f"{out}/reviews"]
        assert folders("--task_name", "sst-2", "--pred_distill", *more) == [mid, out]
    assert folders("--task_name", "ax", "--do_predict") == [f"{out}/MNLI", f"{out}/AX"]  # answered by MNLI's student
    given = read(task_distill, "--task_name", "reviews", "--output_dir", "o")
    assert given.output_dir == "o" and read(task_distill, "--task_name", "cola").origins["output_dir"] == "CoLA"


def test_a_path_of_pasted_commands_leads_through_all_steps_of_a_task(reviews):
    asked = ["--sample", "--task_name", "reviews"]
    *general, middle = paste(follow(data_augmentation, *asked))
    assert [settings.step for settings in general] == [PREGENERATION, GENERAL]  # there is no general student yet
    assert all(settings.sample for settings in general)
    (reviews / "3_general_distill").mkdir()
    (reviews / "3_general_distill" / "pytorch_model.bin").write_text("weights")
    assert paste(follow(data_augmentation, *asked)) == [middle]
    assert paste(follow(task_distill, "--do_finetune", "--aug_train", *asked)) == [middle]
    [prediction] = paste(middle.next_command())
    [evaluation] = paste(prediction.next_command())
    for settings, step in ((middle, INTERMEDIATE), (prediction, PREDICTION), (evaluation, EVALUATION)):
        assert (settings.step, settings.task_name, settings.sample) == (step, "reviews", True)
        assert settings.data_dir == str(reviews / "reviews") and (settings.aug_train or step == EVALUATION)
    assert prediction.student_model == middle.output_dir and evaluation.student_model == prediction.output_dir
    [augmentation] = paste(middle.command_of(AUGMENTATION))
    assert augmentation == read(data_augmentation, *asked)
    [tuning] = paste(prediction.command_of(FINETUNE, overwrite_output=True))
    assert tuning == read(task_distill, "--do_finetune", "--overwrite_output", *asked)


def test_a_command_keeps_zeros_and_another_step_replaces_nothing():
    given = "--seed", 0, "--attention_weight", 0, "--overwrite_output", "--teacher_states", 9
    settings = read(task_distill, *given)
    assert settings.command_of(PREDICTION).endswith("--pred_distill --seed 0 --attention_weight 0.0")


def test_a_baseline_s_hint_needs_no_teacher(reviews):
    baseline = read(task_distill, "--do_eval", "--baseline", "--task_name", "reviews").for_step(BASELINE)
    assert "data_augmentation.py" in baseline.command_of(AUGMENTATION)


def test_a_header_s_mode_does_not_forbid_the_command_of_another_step(monkeypatch):
    monkeypatch.setattr(task_distill, "HEADER", {"do_eval": True, "baseline": True})
    assert read(task_distill, "--limit", 3).command_of(FINETUNE).endswith(" --do_finetune --limit 3")
    assert read(task_distill, "--limit", 3).command_of(INTERMEDIATE).endswith("task_distill.py --limit 3")


def test_the_command_after_fine_tuning_has_the_teacher_where_it_went(reviews):
    *_, middle = paste(follow(task_distill, "--do_finetune", "--task_name", "reviews", "--output_dir", "tuned"))
    assert (middle.teacher_model, middle.task_name) == ("tuned", "reviews")


def test_the_command_that_augments_finds_the_task_s_folder_and_model(reviews, monkeypatch):
    monkeypatch.setattr(task_distill, "HEADER", {"task_name": "reviews", "data_dir": str(reviews / "reviews")})
    given = read(task_distill, "--teacher_model", "t", "--aug_train")
    [augmentation] = paste(given.command_of(AUGMENTATION, overwrite_output=True))
    assert (augmentation.task_name, augmentation.pretrained_bert_model) == ("reviews", "t")
    assert Path(augmentation.glue_dir) == reviews and augmentation.overwrite_output


@pytest.mark.parametrize("out", ["5_task_distill_out", "./5_task_distill_out/", str(ROOT / "5_task_distill_out")])
def test_no_command_writes_into_its_student_s_folder(monkeypatch, out):
    monkeypatch.chdir(ROOT)
    given = read(task_distill, "--output_dir", out)
    [following] = paste(given.next_command())
    [other] = paste(read(task_distill, "--student_model", out, "--baseline", "--do_eval").command_of(PREDICTION))
    [general] = paste(follow(general_distill, "--output_dir", "4_task_distill_mid"))
    for settings in (following, other, general):
        assert Path(settings.output_dir).resolve() != Path(settings.student_model).resolve()


@pytest.mark.parametrize("step", [AUGMENTATION, PREGENERATION, GENERAL, *TASK[:2], FINETUNE])
def test_the_next_command_can_be_pasted(step):
    # Those that ask for other steps, and what SST-2's dev file forbids.
    switches = ("do_eval", "do_predict", "predict_file", "do_export")
    others = dict.fromkeys(("sample", "baseline", "dev_fraction", *switches))
    others |= {"unlabelled": None} if step == FINETUNE else {}
    words = settings_for(step, given_to(step) | others, task=("SST-2", {})).next_command()
    _, script, *given = [word.strip("'") for word in re.findall(r"'[^']*'|\S+", words)]
    settings = read(importlib.import_module(script.removesuffix(".py")), *given)
    assert {name for name, origin in settings.origins.items() if origin == "command line"}
    _, handed_on = flags.NEXT[step]
    for name, own in handed_on.items():
        value = (given_to(step) | others)[own]
        assert settings[name] == value, name
