"""What a GPU computes is what the CPU computes in float32, but for rounding. Called by gpu.py."""

import json
import os
import signal
import tempfile
from pathlib import Path

import numpy as np
import torch

from transformer import training
from transformer.data import SequencesBuilder
from transformer.distillation import GoldLearner, PredictionLearner, TransformerLearner, relation_loss
from transformer.evaluation import Evaluator
from transformer.initialization import initialize_from_teacher
from transformer.modeling import BertConfig, BertForMaskedLM, TinyBertForSequenceClassification
from transformer.proposals import CandidateProposer
from transformer.settings import Batching, Matching, Schedule
from transformer.training import Plan, TrainingRun

VOCABULARY, ROWS, BATCH = 997, 203, 16
TEACHER = {"num_hidden_layers": 4, "hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 12}
STUDENT = {"num_hidden_layers": 2, "hidden_size": 96, "intermediate_size": 384, "num_attention_heads": 12}
# Largest differences of a loss, as parts of it, in float32, with TF32, and in the lower precisions.
ALLOWED = {"fp32": 1e-4, "tf32": 5e-3, "fp16": 5e-3, "bf16": 5e-2}


def make_models(dropout):
    """(teacher, student) on the CPU, the same in every call. Devices draw different dropout."""
    torch.manual_seed(5)
    kept = {"vocab_size": VOCABULARY, "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return [
        TinyBertForSequenceClassification(BertConfig(**sizes, **kept, initializer_range=0.05, fit_size=fit))
        for sizes, fit in ((TEACHER, None), (STUDENT, TEACHER["hidden_size"]))
    ]


def make_data():
    rng, builder = np.random.default_rng(6), SequencesBuilder(VOCABULARY)
    for _ in range(ROWS):
        length = int(rng.integers(3, 48))
        builder.add(rng.integers(5, VOCABULARY, length).tolist(), int(rng.integers(1, length)), rng.integers(2))
    return builder.build()


def make_learner(work, here, data, dropout):
    teacher, student = (model.to(here.device) for model in make_models(dropout))
    if work == "prediction":
        outputs = torch.from_numpy(np.random.default_rng(7).normal(size=(len(data), 2)).astype(np.float32))
        return PredictionLearner(student, outputs.to(here.device))
    if work == "fine-tuning":
        return GoldLearner(teacher, torch.nn.functional.cross_entropy)
    teacher = here.narrow(teacher)
    if work == "relations":
        return TransformerLearner(student, teacher, relation_loss, matching=Matching(attention_loss="relations"))
    return TransformerLearner(student, teacher)


def train(folder, work, here, compiled=False, steps=30, dropout=0.0, stop=None):
    """The losses of every step {step: loss}, and the student. `stop`: SIGTERM comes in this step."""
    data = make_data()
    learner, training.LOG_STEPS = make_learner(work, here, data, dropout), 1
    schedule = Schedule(num_train_epochs=99, max_steps=steps, eval_step=10**9, learning_rate=2e-4, seed=8)
    plan = Plan(lambda epoch: data, [len(data)], schedule, Batching(train_batch_size=BATCH, compile=compiled))
    run = TrainingRun(folder, learner, plan, here, "warmup_linear")
    if stop:
        add = run.history.add_step

        def add_and_stop(*given):
            add(*given)
            if run.step + 1 == stop:
                os.kill(os.getpid(), signal.SIGTERM)

        run.history.add_step = add_and_stop
    try:
        run.train()
        assert not stop, "the signal did not stop the run"
    except SystemExit:
        assert stop and run.step == stop, f"stopped at step {run.step}, not at {stop}"
    entries = map(json.loads, (Path(folder) / training.HISTORY_NAME).read_text().splitlines())
    return {each["step"]: sum(each["losses"].values()) for each in entries if "losses" in each}, learner.student


def difference(found, expected):
    """The largest relative difference of two runs' losses."""
    assert found.keys() == expected.keys(), f"steps {sorted(found)}, expected {sorted(expected)}"
    return max(abs(found[step] / expected[step] - 1) for step in expected)


def losses_follow(start, work, precision, compiled, on_cpu={}):  # noqa: B006  (kept: the CPU's losses are the same)
    if work not in on_cpu:
        with tempfile.TemporaryDirectory() as folder:
            on_cpu[work], _ = train(folder, work, start("fp32", no_cuda=True))
    with tempfile.TemporaryDirectory() as folder:
        here = start("fp32" if precision == "tf32" else precision)
        torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
        found, _ = train(folder, work, here, compiled)
    return difference(found, on_cpu[work]), ALLOWED[precision]


def resumes(start, work, precision):
    """A run that was stopped and goes on ends with the weights of one that was not, to the last bit."""
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        expected, whole = train(first, work, start(precision), steps=12, dropout=0.1)
        train(second, work, start(precision), steps=12, dropout=0.1, stop=5)
        found, resumed = train(second, work, start(precision), steps=12, dropout=0.1)
    pairs = zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    return max(difference(found, expected), *((a - b).abs().max().item() for a, b in pairs)), 0.0


def answers_follow(start, precision):
    """The largest difference of an output, in standard deviations of the outputs."""
    data, outputs = make_data(), []
    for here in (start("fp32", no_cuda=True), start("fp32" if precision == "tf32" else precision)):
        torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
        outputs.append(Evaluator(BATCH, here).outputs(make_models(0.0)[0].to(here.device), data))
    return ((outputs[0] - outputs[1]).abs().max() / outputs[0].std()).item(), ALLOWED[precision]


def candidates_agree(start, make_texts, no_vectors):
    """The share of words whose candidates differ from the CPU's; float32 promises the same."""
    tokenizer, texts = make_texts
    found = []
    for here in (start("fp32", no_cuda=True), start("fp32")):
        torch.set_float32_matmul_precision("highest")
        torch.manual_seed(9)
        model = BertForMaskedLM(BertConfig(**TEACHER, vocab_size=len(tokenizer))).eval().to(here.device)
        found.append(CandidateProposer(model, tokenizer, no_vectors, 15, here).candidates(texts))
    words = [(text, word) for text, (_, candidates) in found[0].items() for word in candidates]
    return sum(found[1][text][1].get(word) != found[0][text][1][word] for text, word in words) / len(words), 0.0


def start_agrees(start):
    """The relative difference of the first losses of a student that starts from its teacher."""
    losses = []
    for here in (start("fp32", no_cuda=True), start("fp32")):
        data = make_data()
        learner = make_learner("general", here, data, 0.0)
        batches = (here.to_device(data.batch(np.arange(first, first + 20))) for first in range(0, 200, 20))
        initialize_from_teacher(learner.student, learner.teacher, learner.mapping, batches)
        losses.append(sum(Evaluator(BATCH, here).losses(learner, data).values()))
    return abs(losses[1] / losses[0] - 1), ALLOWED["tf32"]


def checks(start, quick, texts, no_vectors):
    """(name, function that returns (what was found, what is allowed at most)) of every check."""
    if quick:
        TEACHER.update(hidden_size=24, intermediate_size=40)
        STUDENT.update(hidden_size=12, intermediate_size=20)
    for work in ("general", "relations", "prediction", "fine-tuning"):
        for precision in ALLOWED:
            yield f"losses, {work}, {precision}", lambda w=work, p=precision: losses_follow(start, w, p, False)
    for work in ("general", "prediction"):
        for precision in ("fp32", "bf16", "fp16"):
            yield f"resuming, {work}, {precision}", lambda w=work, p=precision: resumes(start, w, p)
    for precision in ALLOWED:
        yield f"answers, {precision}", lambda p=precision: answers_follow(start, p)
    yield "candidates, fp32", lambda: candidates_agree(start, texts(), no_vectors)
    yield "start from the teacher, tf32", lambda: start_agrees(start)
    for work, precision in () if quick else (("general", "tf32"), ("general", "bf16"), ("prediction", "bf16")):
        yield f"losses, {work}, {precision}, compiled", lambda w=work, p=precision: losses_follow(start, w, p, True)
