"""--teacher_states: the losses are those of a teacher that runs, it runs once, and a kill changes no byte."""

import os
import re
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from pipeline import Killed, call, clear
from tiny import STUDENT, TEACHER, VOCABULARY, names, tree

from transformer.data import SequencesBuilder
from transformer.distillation import TransformerLearner, attention_loss, relation_loss
from transformer.file_utils import UserError
from transformer.modeling import BertConfig, TinyBertForSequenceClassification
from transformer.processes import Processes
from transformer.settings import Matching
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
@pytest.mark.parametrize("pad_to, mapping", [(None, "uniform"), (9, "top"), (None, "last")])
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


def counting(kept):
    """Count the batches that the teacher computes; with `kept` of these the process ends, as it were."""
    run, calls = TransformerLearner.run_teacher, []

    def count(self, batch):
        if len(calls) == kept:
            raise Killed
        calls.append(len(batch["input_ids"]))
        return run(self, batch)

    return mock.patch.object(TransformerLearner, "run_teacher", count), calls


def losses_of(folder):
    text = (folder / "4" / "eval_results.txt").read_text()
    return {name: float(value) for name, value in re.findall(r"(\w*(?:att|rep)_loss) = (\S+)", text)}


@pytest.mark.parametrize("torn", [pytest.param(0, marks=pytest.mark.slow), 1000], ids=["whole", "torn"])
def test_the_teacher_runs_once_and_a_kill_changes_no_byte(copy, torn):
    without = losses_of(copy)
    clear(copy, "intermediate")
    counted, calls = counting(None)
    with counted:
        found = call(copy, "intermediate", "--teacher_states", 1)
    assert found.returncode == 0 and "teacher's states: 0." in found.stdout
    rows = int(re.search(r"(\d+) rows in", found.stdout)[1])
    dev = len((copy / "glue" / "SST-2" / "dev.tsv").read_text().splitlines()) - 1
    evaluations = found.stdout.count("dev_att_loss") - 1  # one is in the result
    assert sum(calls) == rows + dev * evaluations  # and not in every epoch
    for name, value in losses_of(copy).items():
        assert value == pytest.approx(without[name], rel=1e-2), name
    expected = tree(copy)
    assert "4/teacher_states.bin" not in expected

    clear(copy, "intermediate")
    counted, calls = counting(3)
    with counted, pytest.raises(Killed):
        call(copy, "intermediate", "--teacher_states", 1)
    states = copy / "4" / "teacher_states.bin"
    assert "4/teacher_states.bin" in names(copy) and states.stat().st_size
    os.truncate(states, states.stat().st_size - torn)
    counted, again = counting(None)
    with counted:
        assert call(copy, "intermediate", "--teacher_states", 1).returncode == 0
    assert sum(again) + sum(calls[: 2 if torn else 3]) == rows + dev * evaluations
    assert tree(copy) == expected


@pytest.mark.parametrize(
    "flags, told", [(["1", "--num_train_epochs", "1"], "no row comes twice"), (["1e-6"], r"they would take 0\.\d+ GB")]
)
def test_states_are_not_kept_where_that_is_no_use_or_too_large(copy, flags, told):
    clear(copy, "intermediate")
    found = call(copy, "intermediate", "--teacher_states", *flags)
    assert found.returncode == 0 and re.search(f"computed in each step, not kept: {told}", found.stdout)
    assert not (copy / "4" / "teacher_states.bin").exists()
