"""The training loop: what is trained on when, gradients in parts and over processes, stopping and going on."""

import copy
import json
import logging
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from tiny import ROOT, STUDENT, TEACHER, VOCABULARY, make_student_config, make_teacher, run_script

from transformer import processes
from transformer.checkpoint import read_tensors
from transformer.data import SequencesBuilder
from transformer.distillation import TransformerLearner
from transformer.evaluation import Evaluator
from transformer.file_utils import UserError
from transformer.history import History
from transformer.modeling import WEIGHTS_NAME, BertConfig, TinyBertForPreTraining
from transformer.processes import Processes, choose_precision
from transformer.training import STATE_NAME, Batching, Guard, Plan, Schedule, TrainingRun, step_seed, sum_by_kind

CPU = torch.device("cpu")


def make_sequences(count=29, seed=1):
    rng = np.random.default_rng(seed)
    builder = SequencesBuilder(len(VOCABULARY))
    for _ in range(count):
        length = int(rng.integers(3, 12))
        builder.add(rng.integers(1, len(VOCABULARY), length).tolist(), length // 2 + 1)
    return builder.build()


def make_learner(dropout=0.0):
    torch.manual_seed(2)
    sizes = {"vocab_size": len(VOCABULARY), "initializer_range": 0.2}
    teacher = TinyBertForPreTraining(BertConfig(**{**sizes, **TEACHER}))
    student = BertConfig(
        **{
            **sizes,
            **STUDENT,
            "fit_size": TEACHER["hidden_size"],
            "hidden_dropout_prob": dropout,
            "attention_probs_dropout_prob": dropout,
        }
    )
    return TransformerLearner(TinyBertForPreTraining(student), teacher)


def plan_of(load_epoch, sizes, epochs=3, max_steps=None, batch_size=13):
    schedule = Schedule(num_train_epochs=epochs, max_steps=max_steps, seed=3)
    return Plan(load_epoch, sizes, schedule, Batching(train_batch_size=batch_size))


def make_plan(batch_size=13, epochs=3, max_steps=None, sequences=None):
    sequences = sequences or make_sequences()
    return plan_of(lambda epoch: sequences, [len(sequences)], epochs, max_steps, batch_size)


def make_run(folder, learner=None, plan=None, here=None, eval_step=4, accumulation=1, compiled=False, **options):
    """A run of nine steps on 29 sequences."""
    folder.mkdir(exist_ok=True)
    plan = plan or make_plan()
    plan.schedule = replace(plan.schedule, learning_rate=1e-2, weight_decay=0.01, eval_step=eval_step)
    plan.batching = replace(plan.batching, gradient_accumulation_steps=accumulation, compile=compiled)
    return TrainingRun(folder, learner or make_learner(), plan, here or Processes(CPU), "warmup_linear", **options)


def weights_of(folder, name=WEIGHTS_NAME):
    return torch.load(folder / name, weights_only=True)


def assert_same_weights(state, other, tolerance):
    assert state.keys() == other.keys()
    for key, value in state.items():
        torch.testing.assert_close(value, other[key], rtol=tolerance, atol=tolerance)


# --- the plan


def steps_of(plan, start=0):
    """Each step's (examples of its epoch, indices)."""
    return [(len(sequences), indices.tolist()) for sequences, indices in plan.steps(start)]


class Epochs:
    """Data sets of several sizes; notes which of them were loaded."""

    def __init__(self, *sizes):
        self.sizes, self.data, self.loaded = sizes, [make_sequences(size, size) for size in sizes], []

    def __call__(self, epoch):
        self.loaded.append(epoch)
        return self.data[epoch % len(self.data)]


@pytest.mark.parametrize("epochs, expected", [(1, 3), (2.0, 6), (0.7, 2), (1.34, 4), (2.9, 9), (3, 9)])
def test_a_fraction_of_an_epoch_is_a_fraction_of_its_steps(epochs, expected):
    plan = make_plan(epochs=epochs)
    assert plan.total_steps == expected == len(steps_of(plan))


def test_each_whole_epoch_trains_on_every_example_once():
    steps = steps_of(make_plan(epochs=2))
    for epoch in (steps[:3], steps[3:]):
        assert sorted(index for _, indices in epoch for index in indices) == list(range(29))
    assert steps[:3] != steps[3:]


def test_epochs_of_several_sizes_take_turns():
    epochs = Epochs(29, 14, 5)
    plan = plan_of(epochs, epochs.sizes, 4.5)
    assert plan.total_steps == 3 + 2 + 1 + 3 + 1
    assert [size for size, _ in steps_of(plan)] == [29, 29, 29, 14, 14, 5, 29, 29, 29, 14]
    assert epochs.loaded == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("count", [1e9, 1e300])
def test_any_number_of_epochs_is_planned_at_once(count):
    epochs = Epochs(29, 14)
    plan = plan_of(epochs, epochs.sizes, count, max_steps=4)
    assert plan.total_steps == 4 and [size for size, _ in steps_of(plan)] == [29, 29, 29, 14]
    assert plan_of(epochs, epochs.sizes, count).total_steps == int(count) // 2 * 5


def test_a_later_start_takes_up_the_same_steps_and_loads_only_what_it_needs():
    epochs = Epochs(29, 14)
    plan = plan_of(epochs, epochs.sizes)
    everything = steps_of(plan)
    for start in range(len(everything) + 1):
        assert steps_of(plan, start) == everything[start:]
    epochs.loaded.clear()
    steps_of(plan, 5)
    assert epochs.loaded == [2]


@pytest.mark.parametrize("max_steps", range(1, 9))
def test_max_steps_gives_the_first_steps_and_no_more(max_steps):
    epochs = Epochs(29, 14)
    everything = steps_of(plan_of(epochs, epochs.sizes))
    epochs.loaded.clear()
    plan = plan_of(epochs, epochs.sizes, 3, max_steps)
    assert plan.total_steps == max_steps
    assert steps_of(plan) == everything[:max_steps]
    assert epochs.loaded == [0, 1, 2][: 1 + (max_steps > 3) + (max_steps > 5)]
    for start in range(max_steps):
        assert steps_of(plan, start) == everything[start:max_steps]


def test_max_steps_beyond_the_end_change_nothing():
    assert steps_of(make_plan(max_steps=99)) == steps_of(make_plan())


def test_an_epoch_without_examples_is_passed_over():
    epochs = Epochs(29, 0, 14)
    assert [size for size, _ in steps_of(plan_of(epochs, epochs.sizes))] == [29, 29, 29, 14, 14]


@pytest.mark.parametrize("count, epochs", [(29, 0.1), (0, 3)])
def test_nothing_to_train_on_is_told(count, epochs):
    with pytest.raises(UserError, match="num_train_epochs"):
        plan_of(lambda epoch: make_sequences(count), [count], epochs)


# --- one batch in parts and over processes


def gradients_and_losses(folder, accumulation=1, rank=0, world_size=1, count=13):
    learner = make_learner()
    run = make_run(folder, learner, here=Processes(CPU, rank, world_size), accumulation=accumulation)
    losses = run.forward_backward(learner, make_sequences(), np.arange(count))
    gradients = {
        name: parameter.grad for name, parameter in learner.student.named_parameters() if parameter.grad is not None
    }
    largest = max(gradient.abs().max() for gradient in gradients.values())
    assert largest > 0.1 if rank < count else largest == 0  # a process without examples adds nothing
    return gradients, {name: value.item() for name, value in losses.items()}


@pytest.mark.parametrize("accumulation", [2, 5, 13, 20])
def test_a_batch_in_parts_has_the_gradient_and_losses_of_the_whole(tmp_path, accumulation):
    gradients, losses = gradients_and_losses(tmp_path)
    parts_gradients, parts_losses = gradients_and_losses(tmp_path, accumulation)
    assert_same_weights(parts_gradients, gradients, 1e-6)
    assert parts_losses == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize("world_size, count", [(2, 13), (3, 13), (3, 2)])
def test_the_mean_over_processes_is_the_gradient_of_the_whole_batch(tmp_path, world_size, count):
    gradients, losses = gradients_and_losses(tmp_path, count=count)
    of_ranks = [gradients_and_losses(tmp_path, 1, rank, world_size, count) for rank in range(world_size)]
    mean = {name: sum(other[name] for other, _ in of_ranks) / world_size for name in gradients}
    assert_same_weights(mean, gradients, 1e-6)
    assert {name: sum(other[name] for _, other in of_ranks) for name in losses} == pytest.approx(losses, rel=1e-5)


def test_training_in_parts_ends_in_the_weights_of_training_at_once(tmp_path):
    make_run(tmp_path / "one").train()
    make_run(tmp_path / "parts", accumulation=3).train()
    initial = make_learner().student.state_dict()
    assert (weights_of(tmp_path / "one")["fit_dense.weight"] - initial["fit_dense.weight"]).abs().max() > 1e-2
    assert_same_weights(weights_of(tmp_path / "parts"), weights_of(tmp_path / "one"), 1e-5)


def write_epochs(folder, count):
    """One pregenerated epoch of `count` sequences of random words."""
    folder.mkdir()
    rng = np.random.default_rng(5)
    with open(folder / "epoch_0.json", "w", encoding="utf-8") as file:
        for _ in range(count):
            words = [VOCABULARY[index] for index in rng.integers(5, len(VOCABULARY), rng.integers(2, 20))]
            tokens = ["[CLS]", *words, "[SEP]"]
            file.write(json.dumps({"tokens": tokens, "segment_ids": [0] * len(tokens)}) + "\n")
    metrics = {"num_training_examples": count, "max_seq_len": 31}
    (folder / "epoch_0_metrics.json").write_text(json.dumps(metrics), encoding="utf-8")


def logged_losses(folder):
    """{name: value} of the last log line with losses."""
    line = [line for line in (folder / "log.txt").read_text(encoding="utf-8").splitlines() if "att_loss" in line][-1]
    return {name: float(value) for name, value in re.findall(r"(\w+_loss) ([\d.]+)", line)}


@pytest.mark.slow
def test_two_processes_train_to_the_weights_of_one(tmp_path):
    make_teacher(tmp_path / "teacher")
    make_student_config(tmp_path / "student", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    write_epochs(tmp_path / "epochs", 27)  # batches of 13, 13 and 1: the second process has none of the last
    flags = [
        "--pregenerated_data",
        tmp_path / "epochs",
        "--teacher_model",
        tmp_path / "teacher",
        "--student_model",
        tmp_path / "student",
        "--max_seq_length",
        31,
        "--train_batch_size",
        13,
        "--num_train_epochs",
        2,
        "--eval_step",
        4,
        "--learning_rate",
        "1e-2",
        "--no_cuda",
    ]
    run_script("general_distill.py", *flags, "--output_dir", tmp_path / "one")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(ROOT / "general_distill.py"),
        *map(str, flags),
        "--output_dir",
        str(tmp_path / "two"),
        "--gradient_accumulation_steps",
        "2",
    ]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stdout + process.stderr
    assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}
    for name in ("step_4_pytorch_model.bin", "step_6_pytorch_model.bin", WEIGHTS_NAME):
        assert_same_weights(weights_of(tmp_path / "two", name), weights_of(tmp_path / "one", name), 1e-5)
    losses = logged_losses(tmp_path / "one")
    assert len(losses) == 2 and logged_losses(tmp_path / "two") == pytest.approx(losses, abs=2e-4)
    logged = [
        [json.loads(line) for line in (tmp_path / name / "train_log.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    for one, two in zip(*logged, strict=True):
        assert one["step"] == two["step"] and two["losses"] == pytest.approx(one["losses"], rel=1e-5)


@pytest.mark.slow
def test_a_run_killed_on_two_processes_goes_on_with_one(tmp_path):
    make_teacher(tmp_path / "teacher")
    make_student_config(tmp_path / "student", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    write_epochs(tmp_path / "epochs", 27)
    flags = [
        "--pregenerated_data",
        tmp_path / "epochs",
        "--teacher_model",
        tmp_path / "teacher",
        "--student_model",
        tmp_path / "student",
        "--max_seq_length",
        31,
        "--train_batch_size",
        13,
        "--num_train_epochs",
        12,
        "--eval_step",
        6,
        "--learning_rate",
        "1e-3",
        "--no_cuda",
    ]
    run_script("general_distill.py", *flags, "--output_dir", tmp_path / "one")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(ROOT / "general_distill.py"),
        *map(str, flags),
        "--output_dir",
        str(tmp_path / "two"),
    ]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while not list((tmp_path / "two").glob("step_6_*")) and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert (tmp_path / "two" / STATE_NAME).is_file(), "it was done already"
    run_script("general_distill.py", *flags, "--output_dir", tmp_path / "two")
    assert "going on from step" in (tmp_path / "two" / "log.txt").read_text(encoding="utf-8")
    assert_same_weights(weights_of(tmp_path / "two"), weights_of(tmp_path / "one"), 1e-4)


@pytest.mark.slow
def test_compiled_steps_train_to_the_weights_of_others(tmp_path, monkeypatch):
    compile_model, compiled = torch.compile, []

    def compile_quickly(model, **options):  # what is built around the model is tried, not the compiler
        compiled.append(options)
        return compile_model(model, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", compile_quickly)
    make_run(tmp_path / "plain").train()
    assert compiled == []
    make_run(tmp_path / "compiled", compiled=True).train()
    assert compiled == [{"dynamic": True}]
    assert_same_weights(weights_of(tmp_path / "compiled"), weights_of(tmp_path / "plain"), 1e-6)


# --- what is kept


def test_without_a_score_the_latest_weights_are_kept(tmp_path):
    run = make_run(tmp_path, keep_step_files=3)
    results = run.train()
    assert set(results) == {"global_step", "att_loss", "rep_loss", "loss"} and results["global_step"] == 9
    names = {
        "step_4_pytorch_model.bin",
        "step_8_pytorch_model.bin",
        "step_9_pytorch_model.bin",
        WEIGHTS_NAME,
        "train_log.jsonl",
    }
    assert {path.name for path in tmp_path.iterdir()} == {*names, STATE_NAME}
    assert_same_weights(weights_of(tmp_path), run.learner.student.state_dict(), 0)
    assert_same_weights(weights_of(tmp_path, "step_9_pytorch_model.bin"), weights_of(tmp_path), 0)
    run.finish()
    assert {path.name for path in tmp_path.iterdir()} - {"curves.png"} == names


def test_with_a_score_the_weights_of_the_best_one_are_kept(tmp_path):
    scores, seen = iter([0.5, 0.7, 0.7, 0.6, 0.3]), []

    def evaluate():
        assert not run.learner.training  # no dropout in an evaluation
        seen.append({key: value.clone() for key, value in run.learner.student.state_dict().items()})
        score = next(scores)
        return score, {"acc": score}

    run = make_run(tmp_path, make_learner(dropout=0.1), eval_step=2, evaluate=evaluate)
    assert run.train().items() >= {"global_step": 4, "acc": 0.7}.items()
    assert run.learner.training and len(seen) == 5
    assert_same_weights(weights_of(tmp_path), seen[1], 0)


def test_an_evaluation_does_not_change_what_follows(tmp_path):
    def evaluate():
        torch.rand(7)
        return None, {}

    for name, eval_step in (("often", 1), ("once", 100)):
        make_run(tmp_path / name, make_learner(dropout=0.1), eval_step=eval_step, evaluate=evaluate).train()
    assert (tmp_path / "often" / WEIGHTS_NAME).read_bytes() == (tmp_path / "once" / WEIGHTS_NAME).read_bytes()


# --- stopping and going on


class Interrupting(torch.nn.Module):
    """A learner that has something happen in the middle of one step."""

    def __init__(self, learner, step, action):
        super().__init__()
        self.student, self.learner = learner.student, [learner]  # in a list: no second way to the same weights
        self.calls, self.step, self.action = 0, step, action

    def forward(self, batch):
        self.calls += 1
        if self.calls == self.step:
            self.action()
        return self.learner[0](batch)


def fail():
    raise RuntimeError("pulled the plug")


def assert_same_states(folder, other):
    """The saved states are equal to the bit; their bytes may differ, as pickle writes equal strings in two ways."""
    states = [torch.load(place / STATE_NAME, weights_only=True) for place in (folder, other)]
    tensors = [state.pop("model") for state in states]
    moments = [state["optimizer"].pop("state") for state in states]
    assert_same_weights(*tensors, 0)
    for one, same in zip(moments[0].values(), moments[1].values(), strict=True):
        assert_same_weights(one, same, 0)
    assert states[0] == states[1] and len(moments[0]) > 20


def test_a_run_ended_by_a_signal_goes_on_to_the_same_bytes(tmp_path):
    straight = make_run(tmp_path / "straight", make_learner(dropout=0.2), keep_step_files=3).train()
    handler = signal.getsignal(signal.SIGTERM)
    stopped = tmp_path / "stopped"
    learner = Interrupting(make_learner(dropout=0.2), 6, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as caught:
        make_run(stopped, learner, keep_step_files=3).train()
    assert caught.value.code == 143 and learner.calls == 6
    assert signal.getsignal(signal.SIGTERM) is handler
    left = {"step_4_pytorch_model.bin", WEIGHTS_NAME, STATE_NAME, "train_log.jsonl"}
    assert {path.name for path in stopped.iterdir()} == left
    learner = Interrupting(make_learner(dropout=0.2), 99, fail)
    assert make_run(stopped, learner, keep_step_files=3).train() == straight
    assert learner.calls == 3  # steps 7, 8 and 9
    for path in (tmp_path / "straight").glob(f"*{WEIGHTS_NAME}"):
        assert (stopped / path.name).read_bytes() == path.read_bytes(), path.name
    assert_same_states(stopped, tmp_path / "straight")


def test_a_run_that_was_killed_goes_on_from_its_last_evaluation_to_the_same_bytes(tmp_path):
    def evaluate():
        return 0.5, {"acc": 0.5}

    straight = make_run(tmp_path / "straight", make_learner(0.2), evaluate=evaluate).train()
    killed, learner = tmp_path / "killed", Interrupting(make_learner(0.2), 7, fail)
    with pytest.raises(RuntimeError, match="plug"):
        make_run(killed, learner, evaluate=evaluate).train()
    learner = Interrupting(make_learner(0.2), 99, fail)
    results = make_run(killed, learner, evaluate=evaluate).train()
    assert results == straight and results["global_step"] == 4  # the best score was remembered: no later one beat it
    assert learner.calls == 5
    assert (killed / WEIGHTS_NAME).read_bytes() == (tmp_path / "straight" / WEIGHTS_NAME).read_bytes()
    assert_same_states(killed, tmp_path / "straight")


def test_a_signal_during_the_last_step_leaves_a_finished_run(tmp_path):
    learner = Interrupting(make_learner(), 9, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert make_run(tmp_path, learner).train()["global_step"] == 9


def test_a_step_that_fails_after_a_signal_stops_the_run_at_the_step_before(tmp_path):
    def interrupt():  # as Ctrl-C does that also ends the compiler
        os.kill(os.getpid(), signal.SIGINT)
        raise RuntimeError("the compiler was interrupted")

    straight = make_run(tmp_path / "straight", make_learner(dropout=0.2)).train()
    with pytest.raises(SystemExit) as caught:
        make_run(tmp_path / "stopped", Interrupting(make_learner(dropout=0.2), 6, interrupt)).train()
    assert caught.value.code == 130
    assert make_run(tmp_path / "stopped", make_learner(dropout=0.2)).train() == straight
    assert_same_states(tmp_path / "stopped", tmp_path / "straight")


def test_the_results_hold_the_mean_losses_since_the_last_evaluation(tmp_path):
    run, seen = make_run(tmp_path, eval_step=4), []
    add = run.history.add_step
    run.history.add_step = lambda losses, *more: (seen.append(losses), add(losses, *more))
    results = run.train()
    [last] = [sum_by_kind(losses) for losses in seen[8:]]  # the last evaluation came after step 8
    assert results == {
        "global_step": 9,
        **{name: value.item() for name, value in last.items()},
        "loss": results["loss"],
    }
    assert results["loss"] == pytest.approx(sum(last.values()).item())


def test_a_second_signal_ends_the_run_at_once(tmp_path):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        make_run(tmp_path, Interrupting(make_learner(), 2, twice)).train()


def test_a_complete_state_trains_no_further(tmp_path):
    results = make_run(tmp_path).train()
    before = (tmp_path / WEIGHTS_NAME).read_bytes()
    assert make_run(tmp_path, Interrupting(make_learner(), 1, fail)).train() == results
    assert (tmp_path / WEIGHTS_NAME).read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("mode", ["w", "a"])  # the state's and the weights' files; the history's
def test_a_disk_that_fills_leaves_the_last_good_state_to_go_on_from(tmp_path, monkeypatch, mode):
    def fill():
        monkeypatch.setattr(
            "builtins.open",
            lambda path, *args, **kwargs: real_open(
                "/dev/full" if mode in "".join(map(str, args)) else path, *args, **kwargs
            ),
        )

    make_run(tmp_path / "whole").train()
    real_open = open
    with pytest.raises(UserError, match="cannot be written .No space left on device"):
        make_run(tmp_path / "cut", Interrupting(make_learner(), 6, fill)).train()
    monkeypatch.undo()
    assert torch.load(tmp_path / "cut" / STATE_NAME, weights_only=True)["step"] == 4
    make_run(tmp_path / "cut").train()
    assert_same_states(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory: you tried")], ids=type)
def test_a_state_or_weights_that_find_no_memory_are_not_called_damaged(tmp_path, monkeypatch, error):
    run = make_run(tmp_path)
    run.save_state()
    monkeypatch.setattr(torch, "load", fail_with(error))
    for read in (run.load_state, lambda: read_tensors(tmp_path / STATE_NAME)):
        with pytest.raises(type(error)):
            read()


def fail_with(error):
    def fail(*args, **kwargs):
        raise error

    return fail


def test_a_clock_that_jumps_back_changes_nothing(tmp_path, monkeypatch):
    make_run(tmp_path / "one").train()
    clock = iter([5e8 * (-1) ** number for number in range(10_000)])
    for name in ("time", "monotonic", "perf_counter"):
        monkeypatch.setattr(time, name, lambda: next(clock))
    make_run(tmp_path / "other").train()
    assert_same_states(tmp_path / "one", tmp_path / "other")


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_damaged_state_is_told(tmp_path, share):
    run = make_run(tmp_path)
    run.save_state()
    path = tmp_path / STATE_NAME
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(UserError, match="training_state.bin: damaged .*without that file the run starts again"):
        make_run(tmp_path).train()
    path.unlink()
    make_run(tmp_path).train()


@pytest.mark.parametrize("change", [{"step": None}, {"model": {}}, {"optimizer": {}}, None])
def test_a_state_of_something_else_is_told(tmp_path, change):
    make_run(tmp_path).save_state()
    state = torch.load(tmp_path / STATE_NAME, weights_only=True)
    if change and None in change.values():
        del state["step"]
    torch.save(
        [1, 2] if change is None else {**state, **change} if change != {"step": None} else state, tmp_path / STATE_NAME
    )
    with pytest.raises(UserError, match="training_state.bin: damaged"):
        make_run(tmp_path).train()


@pytest.fixture(scope="module")
def saved_state(tmp_path_factory):
    """The state at the end of a run, which has moments."""
    run = make_run(tmp_path_factory.mktemp("run"))
    run.train()
    return torch.load(run.folder / STATE_NAME, weights_only=True)


def spoil(state, change):
    """The state with one thing wrong."""
    moments, name = state["optimizer"]["state"], next(iter(state["model"]))
    if change == "a moment of another shape":
        moments[0]["next_m"] = torch.ones(2)
    elif change == "one moment":
        del moments[0]["next_v"]
    elif change == "moments of nothing":
        moments[999] = moments[0]
    elif change == "sparse weights":
        state["model"][name] = state["model"][name].to_sparse()
    elif change == "weights that are NaN":
        state["model"][name] = state["model"][name] * torch.nan
    elif change == "sums that are vectors":
        state["sums"] = {"loss": torch.ones(3)}
    else:
        state[change[0]] = change[1]
    return state


@pytest.mark.parametrize(
    "change",
    [
        *[("step", value) for value in (None, "3", -1, True, 2.0, 10**6)],
        *[("best_score", "0.5"), ("results", {"acc": "x"}), ("results", 5), ("scaler", {"scale": "x"})],
        *[("sums", {"loss": "x"}), ("summed", -1), ("model", 5), ("optimizer", {"state": {0: 3}})],
        *["a moment of another shape", "one moment", "moments of nothing", "sparse weights"],
        *["weights that are NaN", "sums that are vectors"],
    ],
    ids=str,
)
def test_a_state_with_one_thing_wrong_is_told_as_damaged(tmp_path, saved_state, change):
    torch.save(spoil(copy.deepcopy(saved_state), change), tmp_path / STATE_NAME)
    with pytest.raises(UserError, match="training_state.bin: damaged .*; without that file the run starts again$"):
        make_run(tmp_path).train()


def test_lines_of_a_history_that_are_none_are_passed_over(tmp_path):
    run = make_run(tmp_path)
    run.train()
    path = tmp_path / "train_log.jsonl"
    whole = path.read_text()
    path.write_text('{"step": 1, "lo\n[]\n{"a": 1}\n\n' + whole + '{"step": 4')
    run.history.start(99)
    assert path.read_text() == whole


def test_a_matplotlib_that_does_not_work_costs_a_picture_and_no_more(tmp_path, monkeypatch, caplog):
    run = make_run(tmp_path)
    run.train()
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("transformer.drawing._draw", lambda *_: 1 / 0)
    run.finish()
    assert not (tmp_path / STATE_NAME).exists() and "no curves.png: division by zero" in caplog.text


def test_a_file_of_the_user_s_that_looks_like_a_step_file_stays(tmp_path):
    (tmp_path / f"step_best_{WEIGHTS_NAME}").write_bytes(b"mine")
    make_run(tmp_path, eval_step=2, keep_step_files=1).train()
    assert {path.name for path in tmp_path.glob("step_*")} == {f"step_{name}_{WEIGHTS_NAME}" for name in ("best", "9")}


# --- arithmetic


def test_mixed_precision_trains_on_the_cpu_and_keeps_float32_weights(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        make_run(tmp_path / "fp32").train()
        exact = caplog.text
        caplog.clear()
        run = make_run(tmp_path / "bf16", here=Processes(CPU, dtype=torch.bfloat16))
        run.train()
    assert {parameter.dtype for parameter in run.learner.student.parameters()} == {torch.float32}
    assert {value.dtype for value in weights_of(tmp_path / "bf16").values()} == {torch.float32}
    losses = [re.search(r"att_loss ([\d.]+) rep_loss ([\d.]+)", text).groups() for text in (exact, caplog.text)]
    exact, rounded = (list(map(float, values)) for values in losses)
    assert rounded == pytest.approx(exact, rel=0.05) and rounded != exact


def test_float16_gradients_are_scaled_for_the_backward_pass_only(tmp_path):
    run = make_run(tmp_path, here=Processes(CPU, dtype=torch.float16))
    run.forward_backward(run.learner, make_sequences(), np.arange(13))
    exact, _ = gradients_and_losses(tmp_path)
    gradient = run.learner.student.fit_dense.weight.grad
    torch.testing.assert_close(gradient, exact["fit_dense.weight"], rtol=0.05, atol=0.01)
    assert not torch.equal(gradient, exact["fit_dense.weight"])


def test_the_loss_scale_of_float16_survives_a_stop(tmp_path):
    here = Processes(CPU, dtype=torch.float16)
    learner = Interrupting(make_learner(), 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    run = make_run(tmp_path, learner, here=here)
    run.scaler = torch.amp.GradScaler("cpu", init_scale=128.0, growth_interval=3)
    with pytest.raises(SystemExit):
        run.train()
    again = make_run(tmp_path, here=here)
    assert again.load_state() and again.scaler.get_scale() == 256.0 and again.step == 4


def test_the_forward_pass_runs_in_the_chosen_precision(tmp_path):
    for dtype in (torch.float32, torch.bfloat16):
        run = make_run(tmp_path, here=Processes(CPU, dtype=dtype))
        seen = []
        query = run.learner.student.bert.encoder.layer[0].attention.self.query
        query.register_forward_hook(lambda module, args, output, seen=seen: seen.append(output.dtype))
        run.forward_backward(run.learner, make_sequences(), np.arange(5))
        assert seen == [dtype]


def test_precision_is_float32_on_a_cpu_unless_asked_for():
    assert choose_precision("auto", CPU) == torch.float32
    assert choose_precision("bf16", CPU) == torch.bfloat16
    assert choose_precision("fp16", CPU) == torch.float16


def test_a_launch_without_torchrun_is_one_seeded_process_on_the_cpu(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    draws = []
    for _ in range(2):
        here = processes.start(5, "auto", no_cuda=True)
        draws.append((torch.rand(3).tolist(), np.random.random()))
    assert (here.device, here.rank, here.world_size, here.dtype) == (CPU, 0, 1, torch.float32)
    assert here.first and str(here) == "cpu (float32)" and draws[0] == draws[1]
    assert str(Processes(CPU, 1, 2, torch.bfloat16)) == "cpu (bfloat16, 2 processes)"
    assert not Processes(CPU, 1, 2, torch.bfloat16).first


def test_every_step_of_every_process_has_its_own_seed():
    seeds = {step_seed(seed, step, rank) for seed in range(3) for step in range(50) for rank in range(4)}
    assert len(seeds) == 3 * 50 * 4
    assert step_seed(42, 7, 1) == step_seed(42, 7, 1)
    assert all(0 <= seed < 1 << 63 for seed in seeds)
    torch.manual_seed(max(seeds))


# --- measuring


@pytest.mark.parametrize("batch_size", [1, 4, 29, 64])
@pytest.mark.parametrize("pad_to", [None, 17])
def test_losses_over_a_data_set_are_means_over_its_examples(batch_size, pad_to):
    learner, sequences = make_learner().eval(), make_sequences()
    losses = Evaluator(batch_size, Processes(CPU)).losses(learner, replace(sequences, pad_to=pad_to))
    with torch.no_grad():
        alone = [learner(sequences.batch(np.array([row]))) for row in range(29)]
    expected = sum_by_kind({name: sum(losses[name].item() for losses in alone) / 29 for name in alone[0]})
    assert losses == pytest.approx(expected, rel=1e-5)


def history_of(folder):
    return list(map(json.loads, (folder / "train_log.jsonl").read_text(encoding="utf-8").splitlines()))


def test_the_history_has_every_layer_s_losses_and_every_evaluation(tmp_path):
    scores = iter([0.5, 0.75, 0.625])
    make_run(tmp_path, evaluate=lambda: (None, {"acc": next(scores)})).train()
    first, *entries = history_of(tmp_path)
    assert first["step"] == 1 and first["rows"] and first["command"].startswith("python ")
    assert [entry["step"] for entry in entries] == [4, 4, 8, 8, 9, 9]
    assert [entry["evaluation"] for entry in entries[1::2]] == [{"acc": 0.5}, {"acc": 0.75}, {"acc": 0.625}]
    assert set(entries[0]["losses"]) == {"att_loss/1", "att_loss/2", "rep_loss/0", "rep_loss/1", "rep_loss/2"}
    assert all(entry["learning_rate"] >= 0 and entry["examples_per_second"] > 0 for entry in entries[::2])


def test_a_run_that_goes_on_takes_its_history_from_its_last_saved_step(tmp_path):
    make_run(tmp_path / "straight").train()

    class Killed(Exception):
        pass

    def die():
        raise Killed

    with pytest.raises(Killed):
        make_run(tmp_path / "killed", Interrupting(make_learner(), 6, die)).train()
    with open(tmp_path / "killed" / "train_log.jsonl", "a") as file:
        file.write('{"step": 5, "losses": {}}\n{"step": 6, "lo')  # noted after the last saved state, and torn
    make_run(tmp_path / "killed").train()
    expected, found = (
        [(entry["step"], entry.get("losses")) for entry in history_of(tmp_path / name)]
        for name in ("straight", "killed")
    )
    assert found == expected


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_latest_step_files_stay(tmp_path, count):
    run = make_run(tmp_path, keep_step_files=count)
    run.train()
    steps = sorted(int(path.name.split("_")[1]) for path in tmp_path.glob("step_*"))
    assert steps == [4, 8, 9][-count:]


def test_curves_are_drawn_where_matplotlib_is_installed(tmp_path):
    pytest.importorskip("matplotlib")
    run = make_run(tmp_path, evaluate=lambda: (None, {"acc": 0.5}))
    run.train()
    run.finish()
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_log_line_tells_the_mean_loss_since_the_last_one(tmp_path, caplog):
    history = History(tmp_path, 40, Processes(CPU))
    history.start(10)
    with caplog.at_level(logging.INFO):
        for value in (1.0, 2.0, 4.5):
            history.add_step({"att_loss": torch.tensor(value)}, 13, 100)
        history.log(13, 1.5e-3)
        history.add_step({"att_loss": torch.tensor(8.0)}, 13, 100)
        history.log(14, 1e-3)
    first, second = caplog.messages
    assert first.startswith("step 13/40 | att_loss 2.5000 | lr 1.50e-03 |") and "examples/s" in first
    assert second.startswith("step 14/40 | att_loss 8.0000 | lr 1.00e-03 |")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_the_run_with_a_saved_state_and_names_the_rows(tmp_path, value):
    learner = make_learner()
    plan, lossy = make_plan(), Interrupting(learner, 6, lambda: learner_spoiled.append(True))
    learner_spoiled, whole = [], TransformerLearner.forward

    def forward(self, batch):
        losses = whole(self, batch)
        return losses if not learner_spoiled else {**losses, "rep_loss/0": losses["rep_loss/0"] * value}

    indices = [indices for _, indices in plan.steps()][5]
    with mock.patch.object(TransformerLearner, "forward", forward), pytest.raises(UserError) as told:
        make_run(tmp_path, lossy, plan, eval_step=100).train()
    assert str(told.value).startswith(f"step 6: the loss is {value}") and "--learning_rate" in str(told.value)
    assert f" {', '.join(map(str, indices))};" in str(told.value)
    state = torch.load(tmp_path / STATE_NAME, weights_only=True)
    assert state["step"] == 5 and all(weight.isfinite().all() for weight in state["model"].values())


@pytest.mark.parametrize("bad_step", [3, 4, 8, 9])
def test_an_update_that_makes_no_numbers_leaves_the_last_good_weights_and_state(tmp_path, bad_step):
    run = make_run(tmp_path, eval_step=4)
    update, count = run.optimizer.step, 0

    def spoil(*args):
        nonlocal count
        update(*args)
        count += 1
        if count == bad_step:
            with torch.no_grad():
                run.learner.student.fit_dense.bias[0] = math.inf

    run.optimizer.step = spoil
    with pytest.raises(UserError, match=f"step {bad_step}: its update left fit_dense.bias|step 4: the loss is"):
        run.train()
    saved = 0 if bad_step < 5 else 4 if bad_step == 8 else 8
    assert torch.load(tmp_path / STATE_NAME, weights_only=True)["step"] == saved
    make_run(tmp_path / "whole", eval_step=4).train()
    make_run(tmp_path, eval_step=4).train()
    assert_same_states(tmp_path / "whole", tmp_path)


def test_a_stop_does_not_save_what_nobody_has_looked_at(tmp_path, monkeypatch):
    def spoil():
        with torch.no_grad():
            learner.student.fit_dense.bias[0] = math.nan
        os.kill(os.getpid(), signal.SIGTERM)

    learner = Interrupting(make_learner(), 6, spoil)
    run = make_run(tmp_path, learner)
    monkeypatch.setattr(Guard, "check", lambda guard: None)  # as between two looks on a GPU
    with pytest.raises(UserError, match="step 6: its update left"):
        run.train()
    assert torch.load(tmp_path / STATE_NAME, weights_only=True)["step"] == 4


def test_a_score_that_is_no_number_does_not_count_as_the_best(tmp_path):
    scores = iter([math.nan, 0.5, 0.9])
    run = make_run(tmp_path, eval_step=4, evaluate=lambda: ((score := next(scores)), {"acc": score}))
    assert run.train()["acc"] == 0.9


def test_the_schedule_goes_on_over_steps_that_float16_skips(tmp_path):
    run = make_run(tmp_path, here=Processes(CPU, dtype=torch.float16))
    run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    run.train()
    assert all(group["step"] == 9 for group in run.optimizer.param_groups) and run.optimizer.get_lr()[0] == 0


def test_the_speed_is_that_of_the_steps_without_evaluations(tmp_path):
    run = make_run(tmp_path, eval_step=4, evaluate=lambda: (time.sleep(0.5), (None, {}))[1])
    run.train()
    _, *entries = [json.loads(line) for line in (tmp_path / "train_log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [4, 8, 9]
    assert all(entry["examples_per_second"] > 13 * 4 / 0.5 or entry["step"] == 9 for entry in entries)
    assert entries[-1]["examples_per_second"] > 3 / 0.5


def test_weights_that_are_no_numbers_are_not_saved(tmp_path):
    def spoil():
        with torch.no_grad():
            learner.student.fit_dense.bias[0] = math.nan

    learner = Interrupting(make_learner(), 4, spoil)
    with pytest.raises(UserError, match="step 4: "):
        make_run(tmp_path, learner, eval_step=2).train()
    state = torch.load(tmp_path / STATE_NAME, weights_only=True)
    assert state["step"] == 2
    assert all(value.isfinite().all() for value in state["model"].values())
    assert all(value.isfinite().all() for value in weights_of(tmp_path).values())
