"""Writes LESSON.md: one sentence on its way through the four stages, with what each stage of the sample made of it.

由样例的输出写成 LESSON.md：一个句子走过四步的全过程。

Reads:  lesson_template.md, the page without its facts, and what the sample's commands made: train_aug.tsv and
        teacher/SST-2/ here, 2_pregenerate_data/, 3_general_distill/, 4_task_distill_mid/, 5_task_distill_out/
Writes: LESSON.md; with --check nothing: it prints the first line of LESSON.md that differs, and exits with status 1

    python 1_pre_data/sample/lesson.py
"""

import argparse
import itertools
import json
import re
import sys
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

import data_augmentation  # noqa: E402  (the path above comes first)
import general_distill  # noqa: E402
import pregenerate_training_data  # noqa: E402
import task_distill  # noqa: E402
from transformer import checkpoint, console, data, modeling, processes, proposals, task_run, vectors  # noqa: E402
from transformer.distillation import TransformerLearner, attention_loss  # noqa: E402
from transformer.epochs import Epochs, pregenerated_epochs  # noqa: E402
from transformer.files import UserError, atomic_write  # noqa: E402
from transformer.settings import Matching  # noqa: E402
from transformer.tasks.task import TaskFile  # noqa: E402
from transformer.tokenization import BertTokenizer  # noqa: E402

SENTENCE = "the comedy is gentle and wise ."  # a row of the sample's train.tsv
LAYER, HEAD = 1, 0  # the student's layer (from 1) and the head (from 0) whose attention is shown
TEMPLATE, LESSON = HERE / "lesson_template.md", HERE / "LESSON.md"
# Numbers with two to four decimals come from trained weights, and training amplifies the rounding that differs between
# machines: with one thread in place of two, the student's logits moved by 13%, losses and probabilities by up to 0.016.
NUMBER, TOLERANCE = re.compile(r"-?\d+\.\d{2,4}(?!\d)"), {"rtol": 0.25, "atol": 0.15}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare LESSON.md with the outputs, write nothing")
    check = parser.parse_args().check
    text = TEMPLATE.read_text(encoding="utf-8").format(**facts())
    if not check:
        with atomic_write(LESSON) as file:
            file.write(text)
    elif found := difference(LESSON.read_text(encoding="utf-8"), text):
        print("{}, line {}:\n  there: {}\n  now:   {}".format(LESSON, *found))
        sys.exit(1)
    print(f"{LESSON}: {'as the outputs say' if check else 'written'}")


def difference(old, new):
    """(line, old text, new text) where two texts first differ, in a NUMBER by more than TOLERANCE, else None."""
    for number, lines in enumerate(itertools.zip_longest(old.split("\n"), new.split("\n"), fillvalue=""), 1):
        numbers = [[float(each) for each in NUMBER.findall(line)] for line in lines]
        if len({NUMBER.sub("#", line) for line in lines}) > 1 or not np.allclose(*numbers, **TOLERANCE):
            return number, *lines
    return None


def facts():
    """{name in the template: text} for all stages."""
    here = processes.start(seed=0, no_cuda=True)
    settings, task = data_augmentation.read_settings(["--sample"])
    folder = Path(settings.glue_dir) / task.name
    row, following = find_sentence(TaskFile(folder / task.train_file, task))
    # The variants stand between the sentence and the next original row.
    rows = itertools.dropwhile(lambda each: each.texts != row.texts, TaskFile(folder / task.augmented_file, task))
    variants = list(itertools.takewhile(lambda each: each.texts != following.texts, rows))[1:]
    return {
        **augmentation_facts(settings, row, variants, here),
        **pregeneration_facts(pregenerate_training_data.read_settings(["--sample"])),
        **general_facts(general_distill.read_settings(["--sample"]), here),
        **task_facts([row, *variants], here),
    }


def find_sentence(train_file):
    """The Row of SENTENCE and the one after it. Raises UserError if the file does not have them."""
    for row, following in itertools.pairwise(train_file):
        if row.texts == (SENTENCE,):
            return row, following
    raise UserError(f"{train_file.path}: no row {SENTENCE!r} before the last; change SENTENCE in {__file__}")


def augmentation_facts(settings, row, variants, here):
    """Of section 1. `row`: SENTENCE's Row in train.tsv; variants: its Rows in train_aug.tsv."""
    model, tokenizer = data_augmentation.load_masked_lm(settings.pretrained_bert_model, here.device)
    glove = vectors.WordVectors(settings.glove_embs)
    proposer = proposals.CandidateProposer(model, tokenizer, glove, settings.M, here)
    words, candidates = proposer.candidates([SENTENCE])[SENTENCE]
    first = min(candidates)
    listed = [(word, ", ".join(candidates.get(index, ["(not replaced)"]))) for index, word in enumerate(words)]
    return {
        **{"sentence": SENTENCE, "line": row.line, "label": row.label, "word": words[first]},
        "masked": " ".join([*words[:first], "[MASK]", *words[first + 1 :]]),
        "candidates": table(("word", "candidates, the most likely first"), *listed),
        "neighbours": ", ".join(glove.neighbours([words[first]], settings.M)[words[first]]),
        "variants": table(("sentence", "label"), *((*each.texts, each.label) for each in variants)),
        **{name: settings[name] for name in ("M", "N", "p")},
    }


def pregeneration_facts(settings):
    """Of section 2."""
    tokenizer = BertTokenizer.from_pretrained(settings.bert_model)
    lines = pregenerated_epochs(settings.output_dir)[0][0].read_text(encoding="utf-8").splitlines()
    shortest = min(lines, key=lambda line: ('"##' not in line, line.count(", ")))
    tokens, segments = (json.loads(shortest)[name] for name in ("tokens", "segment_ids"))
    ids = tokenizer.convert_tokens_to_ids(tokens)
    cells = {segment: [] for segment in segments}
    for segment, token, token_id in zip(segments, tokens, ids, strict=True):
        cells[segment].append(f"{token} {token_id}")
    batch = make_batch(tokenizer, (ids, segments), tokenizer.encode_pair(tokenizer.ids(SENTENCE)))
    names = tokenizer.convert_ids_to_tokens(batch["input_ids"][1].tolist())
    shown = slice(names.index("[PAD]") + 1)  # one [PAD] stands for all of them
    header = ["token", *names[shown][:-1], f"[PAD] × {names.count('[PAD]')}"]
    rows = {"id": "input_ids", "segment id": "token_type_ids", "attention mask": "attention_mask"}
    return {
        "json": shortest,
        "masked_lm_prob": f"{settings.masked_lm_prob:g}",
        "ids": table(("segment id", "tokens, each with its id"), *((n, " · ".join(cells[n])) for n in cells)),
        "batch": table(header, *((title, *batch[name][1][shown].tolist()) for title, name in rows.items())),
    }


def make_batch(tokenizer, *encoded):
    """The batch of some sequences, (ids, segment ids) each."""
    builder = data.SequencesBuilder(len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    for ids, segments in encoded:
        builder.add(ids, len(ids) - sum(segments))
    return builder.build().batch(np.arange(len(encoded)))


def encode(tokenizer, text=SENTENCE):
    """The batch of a single text."""
    return make_batch(tokenizer, tokenizer.encode_pair(tokenizer.ids(text)))


def general_facts(settings, here):
    """Of section 3."""
    matching, length = settings.part(Matching), settings.max_seq_length
    tokenizer = BertTokenizer.from_pretrained(settings.teacher_model)
    teacher = modeling.TinyBertForPreTraining.from_pretrained(settings.teacher_model, fit_size=None)
    batch = encode(tokenizer)
    torch.manual_seed(settings.seed)
    fresh = general_distill.new_student(settings.student_model, teacher, tokenizer)
    learner = general_distill.make_learner(fresh, teacher, matching, length)
    stages = {"random": losses_of(learner, batch)}
    general_distill.start_from_teacher(learner, Epochs(settings.pregenerated_data, tokenizer, length).read(0), here)
    stages["before"] = losses_of(learner, batch)
    student = general_distill.load_student(settings.output_dir, teacher, tokenizer, fresh_projection=False)
    stages["after"] = losses_of(general_distill.make_learner(student, teacher, matching, length), batch)

    names, g = tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist()), learner.mapping[LAYER]
    target = scores_of(teacher, g, batch)
    shown = {"before": scores_of(fresh, LAYER, batch), "after": scores_of(student, LAYER, batch)}

    def matrix(scores):
        return table(("", *names), *((name, *rounded(row, 2)) for name, row in zip(names, scores, strict=True)))

    return {
        **{"student_config": student.config, "teacher_config": teacher.config, "m": LAYER, "g": g, "head": HEAD + 1},
        "mapping": ", ".join("g({}) = {}".format(*pair) for pair in learner.mapping.items()),
        **{name: matrix(scores) for name, scores in (("teacher", target), *shown.items())},
        **{f"error_{name}": f"{attention_loss(scores, target):.3f}" for name, scores in shown.items()},
        "general_losses": loss_table(learner.mapping, stages),
    }


@torch.no_grad()
def losses_of(learner, batch):
    """{name: value} of a `TransformerLearner`'s losses, without dropout."""
    return {name: value.item() for name, value in learner.eval()(batch).items()}


@torch.no_grad()
def scores_of(model, layer, batch):
    """The attention scores (L, L) of head HEAD in a layer (from 1), for a batch of one sequence."""
    return model.eval().bert(batch["input_ids"]).attention_scores[layer - 1][0, HEAD]


def task_facts(rows, here):
    """Of section 4. `rows`: SENTENCE's Row and those of its variants."""
    middle, task = task_distill.read_settings(["--sample"])
    last, _ = task_distill.read_settings(["--sample", "--pred_distill"])
    run = task_run.TaskRun(task, *middle.parts, here)
    teacher, tokenizer = run.load_finished(Path(middle.teacher_model) / task.name, fit_size=None)
    names, width = checkpoint.label_names(teacher.config), teacher.config.hidden_size
    folders = (middle.student_model, middle.output_dir, last.output_dir)
    general, matched, finished = (run.load(folder, tokenizer=tokenizer, fit_size=width)[0] for folder in folders)
    learners = [TransformerLearner(each, teacher, matching=middle.part(Matching)) for each in (general, matched)]
    before, after = (losses_of(learner, encode(tokenizer)) for learner in learners)

    @torch.no_grad()
    def ask(model, text=SENTENCE):  # -> logits (C,), probabilities (C,)
        logits = model.eval()(encode(tokenizer, text)["input_ids"])[0][0]
        return logits, (logits / last.temperature).softmax(0)

    logits, p = ask(teacher)

    def sum_up(student):
        found, q = ask(student)
        loss = task.kind.prediction_loss(found[None], logits[None], last.temperature)
        terms = " + ".join("{} × ln {}".format(*pair) for pair in zip(rounded(p, 4), rounded(q, 4), strict=True))
        told = f"z = ({', '.join(rounded(found, 2))}), q = ({', '.join(rounded(q, 4))})"
        return f"{told}, loss = -({terms}) / {len(p)} = **{loss:.3f}**"

    answers = [(*row.texts, row.label, *rounded(ask(teacher, *row.texts)[1], 3)) for row in rows]
    return {
        "classes": " and ".join(names),
        **{"teacher_logits": ", ".join(rounded(logits, 2)), "teacher_probabilities": ", ".join(rounded(p, 4))},
        "answers": table(("sentence", "label in the file", *names), *answers),
        "intermediate_losses": loss_table(learners[0].mapping, {"before": before, "after": after}),
        "temperature": f"{last.temperature:g}",
        **{"prediction_before": sum_up(matched), "prediction_after": sum_up(finished)},
        "lowest": f"{-(p * p.log()).mean():.3f}",
        **{"answer": names[ask(finished)[0].argmax()], "gold": task.titles[task.labels.index(rows[0].label)]},
    }


def loss_table(mapping, stages):
    """A row for each mapped layer. `stages`: {title: from `losses_of`}."""
    columns, rows = [(kind, title) for kind in ("att_loss", "rep_loss") for title in stages], []
    for m, g in mapping.items():
        values = [stages[title].get(f"{kind}/{m}") for kind, title in columns]
        rows.append([f"{m} ← {g}", *("" if value is None else f"{value:.3f}" for value in values)])
    return table(("layers", *map(" ".join, columns)), *rows)


def table(header, *rows):
    """A Markdown table."""
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (header, ["---"] * len(header), *rows))


def rounded(values, decimals):
    """The texts of a tensor's numbers."""
    return [f"{value:.{decimals}f}" for value in values.tolist()]


if __name__ == "__main__":
    console.run(main)
