"""--teacher_states: the losses are those of a teacher that runs, it runs once, and a kill changes no byte."""

import errno
import os
import re
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from pipeline import Killed, call, clear
from tiny import STUDENT, TEACHER, VOCABULARY, tree

from transformer.data import SequencesBuilder
from transformer.distillation import TransformerLearner, attention_loss, relation_loss
from transformer.file_utils import UserError
from transformer.modeling import BertConfig, TinyBertForSequenceClassification
from transformer.processes import Processes
from transformer.settings import Matching, settings_for
from transformer.teacher_states import TeacherStates

CPU = Processes(torch.device("cpu"))
LENGTHS = [7, 3, 5, 5, 1, 2, 5, 4]


def make_learner(attention=attention_loss, teacher=None, **matching):
    torch.manual_seed(2)
    sizes = {"vocab_size": len(VOCABULARY), "initializer_range": 0.3}
    teacher = TinyBertForSequenceClassification(BertConfig(**{**sizes, **TEACHER, **(teacher or {})}))
    config = BertConfig(**{**sizes, **STUDENT, "fit_size": teacher.config.hidden_size})
    kinds = {"attention": attention, "matching": Matching(**matching)}
    return TransformerLearner(TinyBertForSequenceClassification(config).eval(), teacher, **kinds)


def make_sequences(**padding):
    builder, rng = SequencesBuilder(len(VOCABULARY), **padding), np.random.default_rng(3)
    for length in LENGTHS:
        builder.add(rng.integers(1, len(VOCABULARY), length).tolist(), length)
    return builder.build()


@pytest.mark.parametrize("attention, loss", [(attention_loss, "scores"), (relation_loss, "relations")])
@pytest.mark.parametrize("pad_to, mapping", [(None, "uniform"), (9, "top"), (None, "last"), (None, "4,4")])
@pytest.mark.parametrize("rows", [[2, 3, 6], [0, 4, 1, 7]], ids=["alike", "padded"])
def test_the_losses_are_those_of_a_teacher_that_runs(tmp_path, attention, loss, pad_to, mapping, rows):
    how = {"attention_loss": loss, "layer_map": mapping, "pad_to_max_length": pad_to is not None}
    learner, sequences = make_learner(attention, **how), make_sequences(pad_to=pad_to)
    states = TeacherStates(tmp_path / "states", learner, sequences, batch_size=2)
    states.make(CPU)
    assert os.path.getsize(tmp_path / "states") == states.size
    expected = learner(sequences.batch(np.array(rows)))
    with mock.patch.object(learner, "run_teacher", side_effect=AssertionError):
        found = learner(replace(sequences, states=states).batch(np.array(rows)))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value.item(), rel=2e-3, abs=1e-6), name


def test_a_teacher_beyond_float16_is_refused(tmp_path):
    learner = make_learner()
    learner.teacher.bert.embeddings.LayerNorm.bias.data.fill_(1e5)
    with pytest.raises(UserError, match="do not fit into float16"):
        TeacherStates(tmp_path / "states", learner, make_sequences(), batch_size=2).make(CPU)


def counting(stop_at=None):
    """Count the sequences of each batch that the teacher's layers run over; before batch `stop_at` the process ends, as
    it were."""
    run, counts = TransformerLearner.run_teacher, []

    def count(self, batch):
        if len(counts) == stop_at:
            raise Killed
        counts.append(len(batch["input_ids"]))
        return run(self, batch)

    return mock.patch.object(TransformerLearner, "run_teacher", count), counts


def losses_of(folder):
    text = (folder / "4" / "eval_results.txt").read_text()
    return {name: float(value) for name, value in re.findall(r"(\w*(?:att|rep)_loss) = (\S+)", text)}


@pytest.mark.parametrize("torn", [pytest.param(0, marks=pytest.mark.slow), 1000], ids=["whole", "torn"])
def test_the_teacher_runs_once_and_a_kill_changes_no_byte(copy, torn):
    without = losses_of(copy)
    clear(copy, "intermediate")
    counted, counts = counting()
    with counted:
        found = call(copy, "intermediate", "--teacher_states", 1)
    assert found.returncode == 0 and found.stdout.count("teacher's states of") == 2
    rows = int(re.search(r"(\d+) rows in", found.stdout)[1])
    dev = len((copy / "glue" / "SST-2" / "dev.tsv").read_text().splitlines()) - 1
    assert sum(counts) == rows + dev  # and not in every epoch and evaluation
    for name, value in losses_of(copy).items():
        assert value == pytest.approx(without[name], rel=1e-2), name
    expected = tree(copy)
    assert not {name for name in expected if "teacher_states" in name}

    clear(copy, "intermediate")
    counted, before = counting(stop_at=3)
    with counted, pytest.raises(Killed):
        call(copy, "intermediate", "--teacher_states", 1)
    states = copy / "4" / "teacher_states.bin"
    os.truncate(states, states.stat().st_size - torn)
    counted, after = counting()
    sizes = [] if torn else ["--eval_batch_size", 5]  # which must change no weight, only the losses' last digits on dev
    with counted:
        assert call(copy, "intermediate", "--teacher_states", 1, *sizes).returncode == 0
    assert sum(after) + sum(before[: 2 if torn else 3]) == rows + dev
    found = tree(copy)
    assert {name for name in expected if found[name] != expected[name]} <= ({"4/eval_results.txt"} if sizes else set())


def test_a_file_that_is_too_long_is_made_again(tmp_path):
    learner, sequences = make_learner(), make_sequences()
    states = TeacherStates(tmp_path / "states", learner, sequences, batch_size=2)
    states.make(CPU)
    expected = (tmp_path / "states").read_bytes()
    (tmp_path / "states").write_bytes(bytes(len(expected) + 1))
    states.make(CPU)
    assert (tmp_path / "states").read_bytes() == expected


def test_a_disk_without_room_is_told_with_the_file(tmp_path):
    states = TeacherStates(tmp_path / "states", make_learner(), make_sequences(), batch_size=2)
    full = mock.patch("os.fsync", side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with full, pytest.raises(UserError, match=f"{tmp_path}/states: cannot be written: No space left on device"):
        states.make(CPU)


@pytest.mark.parametrize(
    "flags, told", [(["1", "--num_train_epochs", "1"], "no row comes twice"), (["1e-6"], r"they would take \d\.\d+ GB")]
)
def test_states_are_not_kept_where_that_is_no_use_or_too_large(copy, flags, told):
    clear(copy, "intermediate")
    found = call(copy, "intermediate", "--teacher_states", *flags)
    assert found.returncode == 0 and re.search(f"computed in each step, not kept: {told}", found.stdout)
    assert not (copy / "4" / "teacher_states.bin").exists()


def test_a_disk_with_too_little_room_is_told_before_the_teacher_runs(copy):
    clear(copy, "intermediate")
    little = mock.patch("shutil.disk_usage", return_value=mock.Mock(free=1000))
    with little:
        found = call(copy, "intermediate", "--teacher_states", 1)
    assert found.returncode == 2 and not (copy / "4" / "teacher_states.bin").exists()
    assert re.search(r"4: 0\.\d\d GB of states are to be written, 0\.00 GB are free; make room", found.stderr)


def test_only_the_intermediate_step_keeps_states():
    for step in ("prediction", "evaluation", "finetune"):
        with pytest.raises(UserError, match="--teacher_states: for the intermediate step only"):
            settings_for(step, {"teacher_states": 1.0})
    settings = settings_for("intermediate", {"teacher_states": 1.0})
    assert "teacher_states" not in settings.next_command() and settings.for_step("finetune").teacher_states is None
