"""The places where this suite deliberately differs from the reference implementation, by README's numbers."""

import functools
import json
import math
import os
import random
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import (
    BAD,
    GOOD,
    ROOT,
    SPECIAL,
    VOCABULARY,
    call_script,
    make_corpus,
    make_glove,
    make_sst2,
    make_teacher,
    make_tokenizer,
    scripts,
    tree,
)
from torch import nn

import data_augmentation
import general_distill
import pregenerate_training_data
import task_distill
from data_augmentation import augment_rows
from transformer import finetuning
from transformer.checkpoint import load_state_dict
from transformer.data import Sequences, epoch_batches
from transformer.distillation import PredictionLearner, TransformerLearner
from transformer.downloads import upload
from transformer.epochs import Epochs
from transformer.evaluation import Evaluator
from transformer.files import UserError, make_folder
from transformer.flags import FINETUNE, flags_of, model, path
from transformer.glue import TASKS, TaskFile, label_order
from transformer.instances import InstanceMaker, InstanceSettings
from transformer.modeling import (
    BertConfig,
    BertForMaskedLM,
    Dropout,
    TinyBertForPreTraining,
    TinyBertForSequenceClassification,
    label_names,
)
from transformer.own_tasks import find_task
from transformer.processes import Processes, choose_precision
from transformer.proposals import CandidateProposer, replaceable, states_at
from transformer.settings import Batching, Lengths, Schedule
from transformer.task_run import TaskRun
from transformer.tasks.regression import REGRESSION
from transformer.tokenization import BertTokenizer
from transformer.training import Plan, TrainingRun
from transformer.vectors import WordVectors

CPU = Processes(torch.device("cpu"))
EVALUATOR = Evaluator(5, CPU)
TOKENIZER = make_tokenizer()
DROPOUT = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}
SMALL = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 20,
    "max_position_embeddings": 37,
}


def random_sequences(count=29, labels=None):
    rng = np.random.default_rng(3)
    lengths = rng.integers(4, 13, count)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Sequences(rng.integers(5, len(VOCABULARY), offsets[-1]), offsets, lengths, labels)


class Words:
    """Stands in for the models that propose substitutes: any word may become "new" or "other"."""

    def candidates(self, texts):
        return {text: (text.split(), {index: ["new", "other"] for index in range(len(text.split()))}) for text in texts}

    def words(self, text):
        return text.split()


def test_01_the_teacher_is_frozen_and_in_eval_mode():
    student = TinyBertForPreTraining(BertConfig(**SMALL, fit_size=12))
    teacher = TinyBertForPreTraining(BertConfig(**SMALL, **DROPOUT)).train()
    learner = TransformerLearner(student, teacher)
    learner.train()
    assert student.training and not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not set(map(id, teacher.parameters())) & set(map(id, learner.parameters()))
    student.eval()  # the student's dropout aside, two passes are equal only if the teacher has none
    batch = random_sequences().batch(np.arange(5))
    first, second = ({name: loss.item() for name, loss in learner(batch).items()} for _ in range(2))
    assert first == second
    seen = []
    teacher.bert.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    sum(learner(batch).values()).backward()
    assert seen == [False] and all(parameter.grad is None for parameter in teacher.parameters())


def test_01_the_teacher_s_logits_of_the_prediction_step_have_no_dropout():
    teacher = TinyBertForSequenceClassification(BertConfig(**SMALL, **DROPOUT)).train()
    first, second = (EVALUATOR.outputs(teacher, random_sequences()) for _ in range(2))
    assert torch.equal(first, second) and not first.requires_grad


@pytest.mark.parametrize("task", [task for task in TASKS.values() if not task.trained_as], ids=lambda task: task.name)
def test_02_each_task_s_epochs_and_length_are_applied(task, tmp_path):
    published = {
        "CoLA": (50, 64),
        "SST-2": (10, 64),
        "MRPC": (20, 128),
        "STS-B": (20, 128),
        "QQP": (5, 128),
        "MNLI": (5, 128),
        "QNLI": (10, 128),
        "RTE": (20, 128),
        "WNLI": (20, 128),
    }
    read = functools.partial(settings_of, "--task_name", task.name)
    settings = settings_of("--task_name", task.name.upper())
    assert (settings.num_train_epochs, settings.max_seq_length) == published[task.name]
    assert read("--pred_distill").max_seq_length == settings.max_seq_length
    explicit = read("--num_train_epochs", "2", "--max_seq_length", "31")
    assert (explicit.num_train_epochs, explicit.max_seq_length) == (2, 31)


def settings_of(*flags):
    """The settings of task_distill.py with these flags."""
    settings, _ = task_distill.read_settings(list(map(str, flags)))
    return settings


def test_02_the_run_itself_takes_the_task_s_epochs_and_length(tmp_path):
    for name in ("train", "dev"):
        rows = [f"{'film ' * 90}\t1", *["a film\t0"] * 40]
        (tmp_path / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    settings = settings_of("--task_name", "sst-2", "--data_dir", tmp_path)
    data = TaskRun(find_task("SST-2"), *settings.parts, CPU).read_data(TOKENIZER, ("0", "1"))
    assert data.plan.total_steps == 10 * math.ceil(41 / 32)
    assert data.train.lengths.max() == 64


def test_03_the_other_sentence_of_a_pair_stays_the_original_one(tmp_path):
    (tmp_path / "train.tsv").write_text("index\tsentence1\tsentence2\tlabel\n0\ta b c\td e f\t1\n")
    task_file = TaskFile(tmp_path / "train.tsv", find_task("WNLI"))
    lines = augment_rows(task_file, Words(), 20, 0.6, 1, list(task_file), 0)
    pairs = [tuple(line.split("\t")[1:3]) for line in lines]
    assert pairs[0] == ("a b c", "d e f")
    assert all((first == "a b c") != (second == "d e f") for first, second in pairs[1:])
    assert {first == "a b c" for first, _ in pairs[1:]} == {True, False}  # each of the two is varied


def test_04_a_masking_probability_of_0_masks_nothing():
    settings = InstanceSettings(
        one_seq=False,
        max_seq_len=17,
        short_seq_prob=0.1,
        masked_lm_prob=0.0,
        max_predictions_per_seq=20,
        do_whole_word_mask=True,
        seed=1,
        packed=False,
    )
    maker = InstanceMaker([], TOKENIZER, settings)
    ids = list(range(5, 19))
    for seed in range(20):
        copied = list(ids)
        assert maker.mask(copied, random.Random(seed)) == ([], []) and copied == ids
    # Any other probability masks at least one token.
    maker = InstanceMaker([], TOKENIZER, replace(settings, masked_lm_prob=0.001))
    assert len(maker.mask(list(ids), random.Random(1))[0]) == 1


def test_05_mnli_reports_both_dev_sets_and_selects_on_the_matched_one():
    task = find_task("MNLI")
    torch.manual_seed(1)
    model = TinyBertForSequenceClassification(BertConfig(**SMALL, num_labels=3, initializer_range=1.0)).eval()
    predicted = EVALUATOR.outputs(model, random_sequences()).argmax(dim=1).numpy()
    labels = np.where(np.arange(29) < 7, (predicted + 1) % 3, predicted)
    sets = [("matched", random_sequences(labels=labels)), ("mismatched", random_sequences(labels=predicted))]
    selecting, results = EVALUATOR.score(task, model, sets)
    assert results == {"acc": pytest.approx(22 / 29), "mm_acc": 1.0, "eval_loss": results["eval_loss"]}
    assert selecting == pytest.approx(22 / 29)


def test_06_regression_distils_from_the_teacher_s_score_not_the_gold_one():
    student = TinyBertForSequenceClassification(BertConfig(**SMALL, num_labels=1)).eval()
    sequences = random_sequences(labels=np.linspace(0, 5, 29).astype(np.float32))
    scores, loss_on = (
        EVALUATOR.outputs(student, sequences),
        functools.partial(REGRESSION.prediction_loss, temperature=1),
    )
    batch = sequences.batch(np.arange(7, 20))
    assert PredictionLearner(student, scores, loss_on)(batch)["cls_loss"].item() == pytest.approx(0, abs=1e-9)
    loss = PredictionLearner(student, scores + 2, loss_on)(batch)["cls_loss"].item()
    assert loss == pytest.approx(4, rel=1e-4)  # whatever the labels say


class Line(nn.Module):
    """A learner with one weight; notes the rows that it was trained on."""

    def __init__(self):
        super().__init__()
        self.student, self.rows = nn.Linear(1, 1), []

    def forward(self, batch):
        self.rows += batch["outputs"].tolist()
        return {"loss": self.student(torch.ones(len(batch["outputs"]), 1)).mean()}


def train_line(folder, epochs=1.0, eval_step=3, accumulation=1):
    """29 examples in batches of 13; returns the learner and the steps at which it was evaluated."""
    learner, steps = Line(), []
    schedule = Schedule(num_train_epochs=epochs, learning_rate=0.1, weight_decay=0.0, eval_step=eval_step, seed=1)
    batching = Batching(train_batch_size=13, gradient_accumulation_steps=accumulation)
    plan = Plan(lambda epoch: random_sequences(), [29], schedule, batching)
    run = TrainingRun(
        folder,
        learner,
        plan,
        CPU,
        "none",
        evaluate=lambda: steps.append(run.step) or (None, {}),
    )
    run.train()
    return learner, steps


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_07_evaluation_comes_once_every_eval_step_and_at_the_end(tmp_path, accumulation):
    learner, steps = train_line(tmp_path, epochs=2 + 2 / 3, accumulation=accumulation)
    assert steps == [3, 6, 8]
    saved = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    assert torch.equal(saved["weight"], learner.student.weight)  # the last step's


def test_07_a_run_shorter_than_eval_step_is_saved_too(tmp_path):
    learner, steps = train_line(tmp_path, eval_step=1000)
    assert steps == [3]
    assert torch.equal(torch.load(tmp_path / "pytorch_model.bin", weights_only=True)["bias"], learner.student.bias)


def test_08_the_last_short_batch_is_trained_on(tmp_path):
    learner, _ = train_line(tmp_path)
    assert sorted(learner.rows) == list(range(29))


def test_09_text_with_quotes_comes_back_as_it_went_out(tmp_path):
    teacher, glue = make_teacher(tmp_path / "teacher"), make_sst2(tmp_path / "SST-2")
    texts = ['"', '" the film', 'a "good" film', 'say ""good"" now', "it 's 'fine", 'ends with "']
    lines = ["sentence\tlabel", *(f"{text}\t1" for text in texts)]
    (glue / "train.tsv").write_text("\n".join(lines) + "\n")
    process = call_script(
        "data_augmentation.py",
        "--pretrained_bert_model",
        teacher,
        "--glove_embs",
        make_glove(tmp_path / "glove.txt"),
        "--glue_dir",
        tmp_path,
        "--N",
        3,
    )
    assert process.returncode == 0, process.stderr
    task = find_task("SST-2")
    rows = [row.texts[0] for row in TaskFile(glue / "train_aug.tsv", task)]
    assert [text for text in rows if text in texts] == texts
    assert [row.texts[0] for row in TaskFile(glue / "train.tsv", task)] == texts
    assert set(lines) <= set((glue / "train_aug.tsv").read_text().splitlines())


def model_that_likes(tokens):
    """A masked LM that proposes these tokens everywhere, the first the most likely."""
    model = BertForMaskedLM(BertConfig(**SMALL)).eval()
    with torch.no_grad():
        model.cls.predictions.transform.dense.weight.zero_()  # scores are the bias
        model.cls.predictions.bias[[VOCABULARY.index(token) for token in tokens]] = torch.arange(len(tokens), 0.0, -1.0)
    return model


def test_10_special_tokens_and_the_word_itself_are_never_candidates(tmp_path):
    liked = ["[UNK]", "[PAD]", "[MASK]", "[CLS]", "[SEP]", "good", "##s", "great"]

    vectors = WordVectors(make_glove(tmp_path / "glove.txt"))
    proposer = CandidateProposer(model_that_likes(liked), TOKENIZER, vectors, len(liked), CPU)
    found = proposer.candidates({"a good film", "fine films"})
    assert found["a good film"][1] == {1: ["great"], 2: ["good", "great"]}
    assert "films" not in found["fine films"][1][1]  # nor among the neighbours of a word of several pieces


def seeded_run(folder, output, hash_seed):
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    command = [
        ROOT / "pregenerate_training_data.py",
        "--train_corpus",
        folder / "corpus.txt",
        "--bert_model",
        folder,
        "--output_dir",
        output,
        "--short_seq_prob",
        0.5,
        "--epochs_to_generate",
        1,
    ]
    subprocess.run([sys.executable, *map(str, command)], env=environment, check=True, capture_output=True)
    return tree(output)


def test_11_the_data_scripts_depend_on_their_seed_alone(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    make_corpus(tmp_path / "corpus.txt")
    assert seeded_run(tmp_path, tmp_path / "first", 1) == seeded_run(tmp_path, tmp_path / "second", 2)


@pytest.mark.parametrize("module, name", [(data_augmentation, "augment"), (pregenerate_training_data, "pregenerate")])
def test_11_neither_reads_nor_moves_the_global_generators(tmp_path, monkeypatch, module, name):
    make_teacher(tmp_path / "teacher")
    make_sst2(tmp_path / "glue" / "SST-2")
    make_corpus(tmp_path / "corpus.txt")
    make_glove(tmp_path / "glove.txt")
    script, flags = scripts(tmp_path)[name]
    monkeypatch.setattr("transformer.processes.set_seed", lambda seed: None)
    outputs = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        before = random.getstate(), np.random.get_state()[1].tolist()
        assert call_script(script, *flags, "--overwrite_output").returncode == 0
        assert before == (random.getstate(), np.random.get_state()[1].tolist())
        outputs.append(tree(tmp_path))
    assert outputs[0] == outputs[1]


def test_11_training_with_the_same_seed_gives_the_same_weights(tmp_path):
    results = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        torch.manual_seed(7)
        results.append(train_line(tmp_path / name)[0])
        torch.rand(5)
    assert results[0].rows == results[1].rows
    assert torch.equal(results[0].student.weight, results[1].student.weight)


def test_12_a_teacher_without_a_classifier_is_fine_tuned_first(tmp_path, monkeypatch):
    base = make_teacher(tmp_path / "teacher")
    tuned = []
    monkeypatch.setattr(finetuning, "finetune", lambda *given: tuned.append(given) or given[1])
    settings = settings_of("--teacher_model", base, "--learning_rate", "0.1", "--seed", "5")
    task, tuning = find_task("SST-2"), settings.for_step(FINETUNE)

    def ready(task, folder):
        return finetuning.ready_teacher(
            folder, TaskRun(task, *settings.parts, CPU), TaskRun(task, *tuning.parts, CPU), allowed=True
        )

    assert ready(task, base) == base / "SST-2"
    [(folder, output, run)] = tuned
    assert folder == base and output == base / "SST-2"
    assert (run.provenance.settings["step"], run.schedule.learning_rate, run.schedule.seed) == ("finetune", 3e-5, 5)

    tuned.clear()  # a classifier for the task, in the folder itself or under the task's name, is taken as it is
    fine_tuned = make_teacher(base / "SST-2")
    assert ready(task, base) == fine_tuned
    classifier = make_teacher(tmp_path / "classifier")
    TinyBertForSequenceClassification(BertConfig(**SMALL, num_labels=2)).save_pretrained(classifier)
    assert ready(task, classifier) == classifier
    assert not tuned
    ready(find_task("MNLI"), classifier)  # two classes are not three
    assert len(tuned) == 1


def test_13_the_labels_follow_the_order_of_the_teacher_s_names(tmp_path):
    task = find_task("MNLI")
    columns = [*"abcdefgh", "sentence1", "sentence2", "label1", "gold_label"]
    rows = ["\t".join([*["x"] * 8, "a film", "a song", label, label]) for label in task.labels]
    (tmp_path / "train.tsv").write_text("\n".join(["\t".join(columns), *rows]) + "\n")
    names = {"0": "ENTAILMENT", "1": "NEUTRAL", "2": "CONTRADICTION"}
    order = label_order(task, label_names(BertConfig(**SMALL, id2label=names)))
    sequences = task.kind.encode(TaskFile(tmp_path / "train.tsv", task), TOKENIZER, Lengths(31), order)
    assert sequences.labels.tolist() == [2, 0, 1]  # contradiction, entailment, neutral
    assert task.kind.id2label(task, order) == {0: "entailment", 1: "neutral", 2: "contradiction"}


def test_14_a_long_sentence_is_windowed_around_the_masked_word(tmp_path, monkeypatch):
    seen = []

    def watched(bert, positions, input_ids, *rest):
        seen.extend(zip(input_ids.tolist(), positions.tolist(), strict=True))
        return states_at(bert, positions, input_ids, *rest)

    model = model_that_likes(["great"])
    monkeypatch.setattr("transformer.proposals.states_at", watched)
    proposer = CandidateProposer(model, TOKENIZER, WordVectors(make_glove(tmp_path / "glove.txt")), 1, CPU)
    words = [random.Random(1).choice([*GOOD[2:], *BAD]) for _ in range(90)]
    found = proposer.candidates({" ".join(words)})[" ".join(words)][1]
    assert found == {index: ["great"] for index in range(90)}  # the last words as well as the first
    assert len(seen) == 90 and max(len(ids) for ids, _ in seen) <= 37
    assert all(ids[position] == TOKENIZER.mask_token_id for ids, position in seen)


def test_15_an_example_counts_the_same_in_any_batch():
    student = TinyBertForPreTraining(BertConfig(**SMALL, fit_size=12)).eval()
    learner = TransformerLearner(student, TinyBertForPreTraining(BertConfig(**SMALL)))
    learner.eval()
    sequences = random_sequences()

    def loss(rows):
        return sum(learner(sequences.batch(np.array(rows))).values()).item()

    shortest, longest = int(sequences.lengths.argmin()), int(sequences.lengths.argmax())
    assert loss([shortest, longest]) == pytest.approx((loss([shortest]) + loss([longest])) / 2, rel=1e-5)


def test_16_there_is_no_relu_before_the_classifier_but_dropout():
    model = TinyBertForSequenceClassification(BertConfig(**SMALL, initializer_range=0.5)).eval()
    batch = random_sequences().batch(np.arange(5))
    del batch["outputs"]
    logits, output = model(**batch)
    assert torch.equal(logits, model.classifier(output.pooled)) and (output.pooled < 0).any()
    model.config.pooled_relu = True
    assert torch.equal(model(**batch)[0], model.classifier(output.pooled.relu()))
    model.dropout = nn.Dropout(1.0).train()
    assert torch.equal(model(**batch)[0], model.classifier.bias.expand(5, -1))


def test_17_a_general_student_starts_from_its_teacher():
    assert general_distill.read_settings([]).init_student == "teacher"
    torch.manual_seed(4)
    teacher = TinyBertForPreTraining(BertConfig(**{**SMALL, "hidden_size": 24}, initializer_range=0.3))
    learner = TransformerLearner(TinyBertForPreTraining(BertConfig(**SMALL, fit_size=24)).eval(), teacher)
    learner.eval()
    batch = random_sequences().batch(np.arange(29))
    drawn = sum(learner(batch).values()).item()
    general_distill.start_from_teacher(learner, random_sequences(), CPU)
    assert sum(learner(batch).values()).item() < 0.7 * drawn


def test_18_batches_hold_sequences_of_similar_length():
    lengths = np.random.default_rng(1).integers(3, 60, 500)

    def padded(bucketed):
        found = epoch_batches(lengths, 13, 1, 0, bucketed)
        assert sorted(np.concatenate(found).tolist()) == list(range(500))
        return sum(lengths[batch].max() * len(batch) for batch in found) - lengths.sum()

    assert padded(True) < padded(False) / 10
    assert random_sequences().batch(np.array([0, 1]))["input_ids"].shape[1] == random_sequences().lengths[:2].max()


def test_19_the_weight_decay_that_is_given_is_the_one_that_is_used(tmp_path):
    assert {scripts_settings("--wd", "0.3").weight_decay, scripts_settings().weight_decay} == {0.3, 0.01}
    student = TinyBertForPreTraining(BertConfig(**SMALL, fit_size=12))
    learner = TransformerLearner(student, TinyBertForPreTraining(BertConfig(**SMALL)))
    plan = Plan(lambda epoch: random_sequences(), [29], Schedule(weight_decay=0.3), Batching(train_batch_size=13))
    run = TrainingRun(tmp_path, learner, plan, CPU, "none")
    assert [group["weight_decay"] for group in run.optimizer.param_groups] == [0.3, 0.0]


def scripts_settings(*flags):
    return task_distill.read_settings(list(flags))[0]


def test_20_a_flag_wins_over_the_task(tmp_path):
    tries = {"CoLA": 30, "MNLI": 10, "MRPC": 30, "SST-2": 20, "STS-B": 30, "QQP": 10, "QNLI": 20, "RTE": 30}
    for task, count in tries.items():
        assert count == data_augmentation.read_settings(["--task_name", task])[0].N
        assert data_augmentation.read_settings(["--task_name", task, "--N", "7"])[0].N == 7
    assert data_augmentation.read_settings(["--task_name", "WNLI"])[0].N == 30
    settings = scripts_settings("--task_name", "cola", "--num_train_epochs", "2", "--max_seq_length", "31")
    assert (settings.num_train_epochs, settings.max_seq_length) == (2, 31)


def test_21_the_casing_follows_the_model(tmp_path):
    for name, words in (("uncased", ["film"]), ("cased", ["film", "Film"])):
        BertTokenizer({token: index for index, token in enumerate([*SPECIAL, *words])}).save_pretrained(tmp_path / name)
        (tmp_path / name / "tokenizer_config.json").unlink()
        tokenizer = BertTokenizer.from_pretrained(tmp_path / name)
        assert tokenizer.tokenize("Film") == [words[-1]]
    assert BertTokenizer.from_pretrained(tmp_path / "cased", do_lower_case=True).tokenize("Film") == ["film"]


def test_22_a_sequence_over_the_maximum_is_refused(tmp_path):
    line = {"tokens": ["[CLS]", "good", "film", "[SEP]"], "segment_ids": [0, 0, 0, 0]}
    (tmp_path / "epoch_0.json").write_text(json.dumps(line) + "\n")
    (tmp_path / "epoch_0_metrics.json").write_text('{"num_training_examples": 1, "max_seq_len": 4}')
    assert Epochs(tmp_path, TOKENIZER, 4).read(0).lengths.tolist() == [4]
    with pytest.raises(UserError, match="4"):
        Epochs(tmp_path, TOKENIZER, 3).read(0)


def test_23_words_with_capital_letters_are_replaced_too():
    assert replaceable("Film") and replaceable("USA") and not replaceable("The") and not replaceable("4x4")


def test_24_chinese_text_is_augmented_by_words(tmp_path):
    assert replaceable("电影") and not replaceable("的") and not replaceable("。")
    (tmp_path / "vectors.txt").write_text("电影 1 0\n影片 1 0.1\n", encoding="utf-8")
    tokenizer = BertTokenizer({token: index for index, token in enumerate([*SPECIAL, *"好电影片的"])})
    model = BertForMaskedLM(BertConfig(**{**SMALL, "vocab_size": len(tokenizer)})).eval()
    proposer = CandidateProposer(model, tokenizer, WordVectors(tmp_path / "vectors.txt"), 9, CPU)
    words, candidates = proposer.candidates({"好的电影"})["好的电影"]
    assert words == ["好", "的", "电影"] and set(candidates) == {0, 2} and candidates[2] == ["影片"]


def test_25_masking_never_puts_a_special_token_in_place_of_a_word():
    maker = InstanceMaker(None, TOKENIZER, masking(1.0))
    rng, put = random.Random(2), set()
    for _ in range(300):
        ids = [TOKENIZER.cls_token_id, *range(5, 15), TOKENIZER.sep_token_id]
        maker.mask(ids, rng)
        put |= set(ids[1:-1])
    assert TOKENIZER.mask_token_id in put and put & set(range(15, len(VOCABULARY)))
    assert not put & {TOKENIZER.convert_tokens_to_ids([token])[0] for token in SPECIAL if token != "[MASK]"}


def masking(probability):
    return InstanceSettings(32, 0.1, False, probability, 20, False, 1, False)


def test_28_stage_3_keeps_two_checkpoints_and_the_latest_under_its_usual_name(tmp_path):
    assert general_distill.read_settings([]).keep_checkpoints == 2
    plan = Plan(lambda epoch: random_sequences(), [29], Schedule(eval_step=1), Batching(train_batch_size=13))
    run = TrainingRun(tmp_path, Line(), plan, CPU, "none", keep_step_files=2)
    run.train()
    found = sorted(path.name for path in tmp_path.glob("*pytorch_model.bin"))
    assert found == ["pytorch_model.bin", *(f"step_{step}_pytorch_model.bin" for step in (run.step - 1, run.step))]
    assert (tmp_path / found[0]).read_bytes() == (tmp_path / found[-1]).read_bytes()


@pytest.mark.parametrize("supported", [True, False])
def test_29_a_gpu_with_bf16_uses_it_by_itself(monkeypatch, supported):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    gpu = torch.device("cuda", 0)
    assert choose_precision("auto", gpu) == (torch.bfloat16 if supported else torch.float32)
    assert choose_precision("auto", torch.device("cpu")) == choose_precision("fp32", gpu) == torch.float32


def test_30_each_process_takes_its_share_of_every_batch(tmp_path):
    shares = []
    for rank in range(3):
        learner = Line()
        plan = Plan(lambda epoch: random_sequences(), [29], Schedule(), Batching(train_batch_size=13))
        run = TrainingRun(tmp_path, learner, plan, Processes(torch.device("cpu"), rank, 3), "none")
        run.forward_backward(learner, random_sequences(), np.arange(13))
        shares.append(learner.rows)
    assert sorted(sum(shares, [])) == list(range(13)) and {*map(len, shares)} == {4, 5}


def test_31_a_finished_output_is_left_and_another_one_s_is_refused(tmp_path):
    TOKENIZER.save_pretrained(tmp_path / "bert")
    command = ["--train_corpus", make_corpus(tmp_path / "corpus.txt"), "--bert_model", tmp_path / "bert"]
    command = ["pregenerate_training_data.py", *command, "--output_dir", tmp_path / "out"]
    assert call_script(*command, "--data_url", tmp_path / "copy").returncode == 0
    before = tree(tmp_path / "out")
    assert tree(tmp_path / "copy" / "out") == before  # a folder; see 36
    assert "finished before" in call_script(*command).stdout
    refused = call_script(*command, "--seed", 7)
    assert refused.returncode == 2 and "seed was 42, is now 7" in refused.stderr and tree(tmp_path / "out") == before


@pytest.mark.parametrize("script", [data_augmentation, pregenerate_training_data, general_distill, task_distill])
def test_32_every_path_has_a_default(script):
    settings = script.read_settings([])
    settings = settings[0] if isinstance(settings, tuple) else settings
    rows = flags_of(settings.step)
    paths = {name for name, flag in rows.items() if flag.type in (path, model, list) and not flag.choices}
    paths -= {"cache_dir", "predict_file", "unlabelled"}
    paths -= {"unlabelled"}  # which adds to what is there
    assert paths and all(settings[name] for name in paths)


def test_26_the_student_takes_the_size_of_its_teacher_s_vocabulary(tmp_path):
    BertConfig(**{**SMALL, "vocab_size": 99}).save_pretrained(tmp_path, "BertForPreTraining")
    student = general_distill.new_student(tmp_path, TinyBertForPreTraining(BertConfig(**SMALL)), TOKENIZER)
    assert student.config.vocab_size == len(VOCABULARY)


def test_27_columns_are_found_by_name(tmp_path):
    (tmp_path / "train.tsv").write_text("label\tother\tsentence\n1\tx\ta good film\n")
    [row] = TaskFile(tmp_path / "train.tsv", find_task("SST-2"))
    assert (row.texts, row.label) == (("a good film",), "1")
    (tmp_path / "train.tsv").write_text("sentence\tlabel\na good film\n")
    with pytest.raises(UserError, match="train.tsv line 2: 1 columns, expected 2"):
        list(TaskFile(tmp_path / "train.tsv", find_task("SST-2")))


def test_33_parts_of_a_batch_weigh_as_their_examples(tmp_path):
    class Rows(Line):
        def forward(self, batch):
            return {"loss": (self.student.weight * batch["outputs"].float()[:, None]).mean()}

    gradients = []
    for parts in (1, 3):
        learner, batching = Rows(), Batching(train_batch_size=13, gradient_accumulation_steps=parts)
        run = TrainingRun(
            tmp_path, learner, Plan(lambda _: random_sequences(), [29], Schedule(), batching), CPU, "none"
        )
        run.forward_backward(learner, random_sequences(), np.arange(13))
        gradients.append(learner.student.weight.grad.item())
    assert gradients[0] == pytest.approx(6) == gradients[1]


class Code:
    def __reduce__(self):
        return os.mkdir, ("should not be",)


def test_34_a_checkpoint_never_runs_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"bert.pooler.dense.bias": Code()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="holds more than tensors"):
        load_state_dict(tmp_path)
    assert not (tmp_path / "should not be").exists()


def test_35_general_distillation_s_do_eval_measures_and_does_not_train(tmp_path):
    make_teacher(tmp_path / "teacher")
    line = {"tokens": ["[CLS]", "good", "[SEP]"], "segment_ids": [0, 0, 0]}
    (tmp_path / "epoch_0.json").write_text(json.dumps(line) + "\n")
    (tmp_path / "epoch_0_metrics.json").write_text('{"num_training_examples": 1, "max_seq_len": 4}')
    student = TinyBertForPreTraining(BertConfig(**SMALL, fit_size=24))
    student.save_pretrained(make_folder(tmp_path / "3"))
    before = tree(tmp_path)
    folders = ["--teacher_model", tmp_path / "teacher", "--pregenerated_data", tmp_path, "--output_dir", tmp_path / "3"]
    assert call_script("general_distill.py", "--do_eval", *folders, "--max_seq_length", 4).returncode == 0
    after = tree(tmp_path)
    assert "rep_loss = " in after.pop("3/eval_results.txt").decode() and after == before


def test_36_an_upload_goes_to_a_folder_or_to_s3_and_nowhere_else(tmp_path):
    (tmp_path / "file").write_text("made")
    upload(tmp_path / "file", tmp_path / "copies")
    assert (tmp_path / "copies" / "file").read_text() == "made"
    with pytest.raises(UserError, match="expected a folder or s3"):
        upload(tmp_path / "file", "obs://bucket/folder")


def test_37_on_a_cpu_dropout_s_probability_is_rounded():
    values = torch.ones(1 << 20)
    assert (Dropout(0.4 / (1 << 16))(values) != 0).all()
    assert (Dropout(1 / (1 << 16))(values) == 0).sum().item() == pytest.approx(16, abs=15)
    assert (Dropout(0.1)(values) == 0).float().mean().item() == pytest.approx(0.1, abs=0.002)
