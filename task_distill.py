"""Stage 4: task distillation. A teacher fine-tuned on a task teaches the general student that task, in two steps.

    no flag          intermediate step: attention scores and hidden states, as in stage 3, on the task's text
    --pred_distill   prediction step: the student's logits follow the teacher's softened ones (equation 10)
    --do_finetune    fine-tune a teacher on the task; done by itself where the teacher has no classifier for it
    --do_eval        report on a student beside its teacher;  --do_predict  write the test set's predictions
    --baseline       with --pred_distill or --do_eval: train the same student without distillation, to compare with

Reads:   --data_dir (train.tsv, with --aug_train train_aug.tsv of stage 1; dev.tsv), --teacher_model, --student_model
Writes:  <output_dir>/pytorch_model.bin (intermediate step: the last; prediction step: the best on dev), config.json,
         vocab.txt, tokenizer_config.json, eval_results.txt, log.txt, train_log.jsonl, curves.png (with matplotlib); a
         fine-tuned teacher goes to <teacher>/<task>/; prediction step and --do_eval: report.md, report.png (with
         matplotlib), with --baseline the model folder baseline/

    python task_distill.py --data_dir SST-2 --teacher_model teacher_model --student_model 3_general_distill \\
        --task_name SST-2 --output_dir 4_task_distill_mid --aug_train --do_lower_case
    python task_distill.py --data_dir SST-2 --teacher_model teacher_model --student_model 4_task_distill_mid \\
        --task_name SST-2 --output_dir 5_task_distill_out --aug_train --do_lower_case --pred_distill
    python task_distill.py --sample

第四步：任务蒸馏。先做中间层蒸馏，再用 --pred_distill 做预测层蒸馏；教师没有分类头时先自动微调。
"""

import argparse
import logging
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from transformer import report, stages
from transformer.data import Sequences, encode_task_file
from transformer.distillation import PredictionLearner, check_pair, check_same_vocabulary
from transformer.downloads import model_folder, upload
from transformer.evaluation import answer, results_of, run_model, score
from transformer.files import UserError, atomic_write, make_folder, read_json
from transformer.glue import TASKS, TaskFile, label_order, names_other_task
from transformer.modeling import (
    WEIGHTS_NAME,
    BertConfig,
    TinyBertForSequenceClassification,
    check_vocabulary,
    describe,
    label_names,
    stored_labels,
    weights_file,
)
from transformer.optimization import BertAdam, decay_groups
from transformer.own_tasks import DESCRIPTION, find_task
from transformer.stages import flag
from transformer.tokenization import BertTokenizer
from transformer.training import (
    Plan,
    TrainingRun,
    add_training_flags,
    begin,
    claim,
    format_results,
    from_first,
    launch,
    mean_losses,
    set_seed,
    sum_over_processes,
    transformer_learner,
    wait_for_all,
)

# For debugging in an editor: a flag's value put here replaces its default, e.g. {"sample": True, "max_steps": 20}.
HEADER = {}


def parse_args(argv=None):
    parser = stages.make_parser(__doc__)
    group = parser.add_argument_group("step")
    flag(group, "--pred_distill", action="store_true", help="prediction step; without it the intermediate step")
    flag(group, "--do_finetune", action="store_true", help="fine-tune the teacher on the task and stop")
    flag(
        group,
        "--do_eval",
        action="store_true",
        help="only evaluate --student_model, beside the teacher where there is one",
    )
    flag(group, "--do_predict", action="store_true", help="only write predictions for the test set, as GLUE takes them")
    flag(
        group,
        "--no_finetune",
        action="store_true",
        help="never fine-tune a teacher without classifier: an error instead",
    )
    flag(
        group,
        "--baseline",
        action="store_true",
        help="train the same student on gold labels, without distillation, for comparison, into <output_dir>/baseline",
    )
    group = parser.add_argument_group("input and output")
    flag(group, "--data_dir", help="folder of train.tsv and dev.tsv (the task's name)")
    flag(group, "--task_name", help="a GLUE task, in any case of letters, or a folder of your own data (SST-2)")
    flag(group, "--teacher_model", help="folder or name of the teacher (teacher_model)")
    flag(
        group,
        "--student_model",
        help="folder of the student (3_general_distill; with --pred_distill 4_task_distill_mid)",
    )
    flag(
        group, "--output_dir", help="folder of the result (4_task_distill_mid; with --pred_distill 5_task_distill_out)"
    )
    flag(group, "--cache_dir", help="where downloaded models are kept")
    flag(group, "--aug_train", action="store_true", help="train on train_aug.tsv, stage 1's output")
    flag(group, "--max_seq_length", type=int, help="tokens of a sequence, longer ones are cut (64 or 128, by task)")
    flag(group, "--do_lower_case", action="store_true", help="force lower case; without it the model decides")
    flag(group, "--temperature", type=float, help="softens both sides' logits in the prediction step (1)")
    add_training_flags(parser)
    stages.add_common_flags(parser, "max_steps")
    flag(
        group,
        "--seeds",
        help="1,2,3: the step once for each seed, in <output_dir>/seed_N, and the scores' mean and deviation (off)",
    )
    args = parser.parse_args(argv)
    fill_in(args, current_step(args))
    return args


def current_step(args):
    """Which of the four things to do; the header may say so too."""
    for name, step in (
        ("do_finetune", "finetune"),
        ("do_eval", "evaluation"),
        ("do_predict", "evaluation"),
        ("pred_distill", "prediction"),
    ):
        if getattr(args, name) or HEADER.get(name):
            return step
    return "intermediate"


def fill_in(args, step, header=None):
    """Settle every flag that was not given, for one of the four steps; args.origins tells where values came from."""
    header = HEADER if header is None else header
    name = args.task_name or header.get("task_name") or stages.TASK["task_name"]
    sample = stages.sample_values(stages.SAMPLE_TASK_STEPS[step], name) if args.sample or header.get("sample") else {}
    folder = args.data_dir or header.get("data_dir") or sample.get("data_dir") or Path(stages.GLUE) / name
    task = find_task(name, folder)
    # The reference keeps such a table too, but assigns it to names that nothing reads.
    by_task = {"max_seq_length": task.max_seq_length, "data_dir": str(Path(stages.GLUE) / task.name)}
    if step == "intermediate" and task.epochs:
        by_task["num_train_epochs"] = float(task.epochs)  # the prediction step takes 3 for every task
    args.origins = stages.settle(
        args, ("script header", header), ("sample", sample), (task.name, by_task), ("default", stages.TASK_STEPS[step])
    )
    args.task_name, args.step = task.name, step
    stages.check_training(args)
    stages.check_positive(args, "temperature")
    if args.baseline and not (args.do_eval or step == "prediction"):
        raise UserError("--baseline: goes with --pred_distill or --do_eval, whose student it is compared with")
    if args.seeds:
        parts = args.seeds.split(",")
        if not all(part.isdecimal() for part in parts) or len({*map(int, parts)}) < len(parts):
            raise UserError(f"--seeds {args.seeds}: expected different whole numbers with commas between: 1,2,3")
        if args.do_predict or step == "finetune":
            raise UserError("--seeds: for the two steps of distillation and for --do_eval only")


def main():
    args = parse_args()
    stages.set_up_logging()
    place = launch(args)
    if not place.first:
        stages.set_up_logging(quiet=True)
    task = find_task(args.task_name, args.data_dir)
    logging.info("task distillation, %s step, %s on %s", args.step, task.name, place)
    stages.print_settings(args)
    if args.seeds:
        sweep(task, args, place)
    else:
        run_step(task, args, place)


def run_step(task, args, place):
    """The one thing that this run is for."""
    if args.do_predict and place.first:
        predict(task, args, place)
    if args.do_eval:
        evaluate(task, args, place)
    if args.step == "evaluation":
        return wait_for_all(place)
    teacher_folder = model_folder(args.teacher_model, args.cache_dir)
    if args.do_finetune:
        finetune_teacher(task, teacher_folder, args, place)
        defaults = {**stages.GENERAL_DISTILLATION, **(stages.SAMPLE_GENERAL_DISTILLATION if args.sample else {})}
        stages.hint_next("general_distill.py", args, {"teacher_model": args.teacher_model}, defaults)
    else:
        distill(task, teacher_folder, args, place)


def sweep(task, args, place):
    """--seeds: the step once for each seed, in a folder each; the mean and the deviation of what they score."""
    output, found = make_folder(args.output_dir), {}
    for seed in map(int, args.seeds.split(",")):
        logging.info("seed %d", seed)
        student = Path(args.student_model) / f"seed_{seed}"  # of a sweep over the step before
        student = student if student.is_dir() else args.student_model
        own = {"seed": seed, "seeds": None, "student_model": str(student), "output_dir": str(output / f"seed_{seed}")}
        run_step(task, argparse.Namespace(**{**vars(args), **own}), place)
        wait_for_all(place)
        found[seed] = stages.read_results(output / f"seed_{seed}" / "eval_results.txt")
    names = [name for name in next(iter(found.values())) if name != "global_step"]
    columns = {name: np.array([results[name] for results in found.values()]) for name in names}
    means = {name: values.mean().item() for name, values in columns.items()}
    # Over seeds that stand for all others: the sample's deviation.
    deviations = {name: values.std(ddof=min(len(values) - 1, 1)).item() for name, values in columns.items()}
    for title, results in [
        *((f"seed {seed}", found[seed]) for seed in found),
        ("mean", means),
        ("deviation", deviations),
    ]:
        logging.info("%-12s %s", title, format_results({name: results[name] for name in names}))
    if place.first:
        stages.write_results(
            output / "eval_results.txt",
            {**means, "seeds": args.seeds, **{f"{name}_deviation": value for name, value in deviations.items()}},
        )


def read_sets(task, names, folder, tokenizer, labels, args, labelled=True):
    """Token ids of a task's files: a list of (file name, Sequences)."""
    sets = []
    for name in names:
        task_file = TaskFile(Path(folder) / name, task, labelled)
        sets.append((name, encode_task_file(task_file, tokenizer, args.max_seq_length, labels, args.limit)))
        skipped = f", {task_file.skipped} rows left out" if task_file.skipped else ""
        logging.info("%s: %d rows, %d tokens%s", task_file.path, len(sets[-1][1]), len(sets[-1][1].ids), skipped)
    return sets


class Data(NamedTuple):
    """What a run trains and evaluates on."""

    train: Sequences
    dev: list  # of (file name, Sequences)
    plan: Plan


def read_data(task, train_name, tokenizer, labels, args):
    [(_, train)] = read_sets(task, [train_name], args.data_dir, tokenizer, labels, args)
    dev = read_sets(task, task.dev_files, args.data_dir, tokenizer, labels, args)
    plan = Plan(
        lambda epoch: train,
        [len(train)],
        args.train_batch_size,
        args.num_train_epochs,
        args.seed,
        args.max_steps,
        bucketed=not args.pad_to_max_length,
    )
    return Data(train, dev, plan)


def train_file_name(task, args):
    """train.tsv, or the augmented file. Raises UserError when that is not there yet."""
    if task.trained_as:
        raise UserError(f"--task_name {task.name}: nothing to train on; {task.trained_as}'s models do this task")
    if args.aug_train and not (Path(args.data_dir) / task.augmented_file).is_file():
        raise UserError(
            f"{args.data_dir}/{task.augmented_file}: no such file; "
            f"data_augmentation.py --task_name {args.task_name} makes it"
        )
    return task.augmented_file if args.aug_train else task.train_file


def load_classifier(folder, place, args, fresh=(), tokenizer=None, **overrides):
    """A classification model and its tokenizer (the folder's, where none is given)."""
    torch.manual_seed(args.seed)  # what is drawn anew depends on the seed alone, not on what ran before
    model = TinyBertForSequenceClassification.from_pretrained(folder, fresh, **overrides)
    tokenizer = tokenizer or BertTokenizer.from_pretrained(folder, args.do_lower_case)
    check_vocabulary(model.config, tokenizer, folder)
    if args.max_seq_length > model.config.max_position_embeddings:
        raise UserError(
            f"--max_seq_length {args.max_seq_length}: {folder} has {model.config.max_position_embeddings} positions"
        )
    return model.to(place.device), tokenizer


def load_finished(folder, task, place, args, **overrides):
    """A model that knows the task, and its tokenizer. Raises UserError where its classifier is not the task's."""
    classes = stored_labels(folder)
    if classes != task.num_labels:
        found = f"a classifier of {classes} classes" if classes else "no classifier"
        raise UserError(f"{folder}: has {found}, {task.name} needs {task.num_labels}; give a model made for the task")
    return load_classifier(folder, place, args, **overrides)


def class_names(task, labels):
    """id2label for config.json: readable names where the task has them, in the order of `labels`."""
    if task.regression:
        return {0: "score"}
    names = dict(zip(task.labels, task.label_names or task.labels, strict=True))
    return {index: names[label] for index, label in enumerate(labels)}


def find_fine_tuned(folder, task):
    """Where the teacher with a classifier for the task is: <folder>/<task>, `folder` itself, or None."""
    fine_tuned = Path(folder) / (task.trained_as or task.name)
    record = fine_tuned / "run.json"
    # A run record that is not finished belongs to an interrupted fine-tuning.
    if weights_file(fine_tuned) and (not record.is_file() or read_json(record).get("finished")):
        return fine_tuned
    if not weights_file(folder) or stored_labels(folder) != task.num_labels:
        return None
    return None if names_other_task(task, label_names(BertConfig.from_pretrained(folder))) else Path(folder)


def ready_teacher(task, folder, args, place):
    """The folder of a teacher that knows the task; fine-tunes one first where there is none.

    The reference distilled from a classifier drawn at random where nobody had fine-tuned the teacher, and ended at
    chance.
    """
    found = find_fine_tuned(folder, task)
    if found is not None and (found == Path(folder) or not made_for_debugging(found, args)):
        return found
    if args.no_finetune:
        raise UserError(
            f"{folder}: no classifier for {task.name}; --do_finetune makes one (or leave --no_finetune away)"
        )
    if found is None:
        logging.info("the teacher has no classifier for %s: fine-tuning it first", task.name)
    else:
        logging.info("%s comes from a short run (--max_steps or --limit): fine-tuning the teacher again", found)
    # What concerns this teacher and this data carries over; rates and epochs are those of fine-tuning.
    kept = (
        "teacher_model",
        "data_dir",
        "task_name",
        "sample",
        "seed",
        "precision",
        "limit",
        "max_steps",
        "no_cuda",
        "do_lower_case",
        "max_seq_length",
        "cache_dir",
        "data_url",
        "local_rank",
        "debug",
        "pad_to_max_length",
        "gradient_accumulation_steps",
        "eval_batch_size",
        "compile",
    )
    values = {name: value if name in kept else None for name, value in vars(args).items()}
    del values["step"], values["origins"]
    replace = found is not None or args.overwrite_output
    values.update(overwrite_output=replace, output_dir=str(Path(folder) / task.name))
    tuning = argparse.Namespace(**values)
    fill_in(tuning, "finetune", header={})
    given = {name: args.origins[name] for name in kept if name in args.origins}
    tuning.origins = given | {name: origin for name, origin in tuning.origins.items() if origin != "command line"}
    stages.print_settings(tuning)
    return finetune_teacher(task, folder, tuning, place)


def made_for_debugging(folder, args):
    """Whether a fine-tuned teacher comes from a short run (--max_steps, --limit) and this run is none."""
    record = Path(folder) / "run.json"
    settings = read_json(record).get("settings", {}) if record.is_file() else {}
    return any(name in settings and getattr(args, name) is None for name in ("max_steps", "limit"))


class FinetuneLearner(nn.Module):
    """Cross-entropy with the gold labels, or for regression the squared error."""

    def __init__(self, model):
        super().__init__()
        self.student = model

    def forward(self, batch):
        logits, _ = self.student(batch["input_ids"], batch["token_type_ids"], batch["attention_mask"])
        if logits.shape[1] == 1:
            return {"loss": F.mse_loss(logits[:, 0].float(), batch["labels"])}
        return {"loss": F.cross_entropy(logits.float(), batch["labels"])}


def finetune_teacher(task, folder, args, place):
    """Fine-tune `folder`'s BERT on the task into args.output_dir or <folder>/<task>; returns that folder."""
    started = time.monotonic()
    output = make_folder(args.output_dir or Path(folder) / task.name)
    train_name = train_file_name(task, args)
    status, record = claim_output("finetune", output, {"teacher_model": folder}, [train_name], task, args, place)
    if status == "finished":
        stages.sum_up(status, output, started, "")
        if place.first:
            upload([output], args.data_url)
        return output
    labels = label_order(task, None)
    fresh = () if find_fine_tuned(folder, task) == Path(folder) else ("classifier",)
    id2label = class_names(task, labels)
    model, tokenizer = load_classifier(folder, place, args, fresh, id2label=id2label, fit_size=None)
    logging.info("teacher %s", describe(model))
    train_on_labels(task, model, tokenizer, labels, train_name, record, args, place)
    publish(output, args, place)
    return output


def train_on_labels(task, model, tokenizer, labels, train_name, record, args, place):
    """Train a model on the gold labels and leave its folder where its record is."""
    started = time.monotonic()
    data, output = read_data(task, train_name, tokenizer, labels, args), record.path.parent
    start_output(record, place)
    evaluate_model = dev_score(task, model, data, tokenizer, args, place)
    learner = FinetuneLearner(model)
    results = run_training(learner, data, tokenizer, output, "warmup_linear", evaluate_model, args, place)
    complete(output, record, results, data, started, args, place)


# What the baseline has nothing to do with: its settings are the prediction step's other ones.
OF_DISTILLATION = (
    "teacher_model",
    "no_finetune",
    "pred_distill",
    "do_eval",
    "do_predict",
    "baseline",
    "temperature",
    "layer_map",
    "attention_loss",
    "attention_weight",
    "hidden_weight",
)


def train_baseline(task, student, output, args, place):
    """The student's architecture, drawn at random and trained on gold labels as long as the prediction step trained;
    into <output>/baseline. Args: student: folder of the finished student. Returns the baseline's folder.
    """
    output = make_folder(Path(output) / stages.BASELINE)
    args = baseline_settings(student, output, args)
    train_name = train_file_name(task, args)
    inputs = {"student_model": [student / name for name in ("config.json", "vocab.txt", "tokenizer_config.json")]}
    status, record = claim_output("baseline", output, inputs, [train_name], task, args, place)
    if status == "finished":
        logging.info("finished before: %s", output)
        return output
    config, tokenizer = BertConfig.from_pretrained(student), BertTokenizer.from_pretrained(student, args.do_lower_case)
    set_seed(args.seed)  # what is drawn depends on the seed alone
    model = TinyBertForSequenceClassification(config).to(place.device)
    logging.info("baseline, trained on gold labels alone: %s", describe(model))
    stages.print_settings(args)
    labels = label_order(task, label_names(config))
    train_on_labels(task, model, tokenizer, labels, train_name, record, args, place)
    stages.log_to(None)
    return output


def baseline_settings(student, output, args):
    """The flags of the prediction step that made the student, as far as they concern a baseline.

    --do_eval takes them from the student's record; flags that are given win, the step's defaults fill the rest.
    """
    values, origins = settled(args), {}
    if args.step == "evaluation":
        given = {name for name, origin in args.origins.items() if origin in ("command line", "script header")}
        recorded = stages.read_record(student).get("settings", {})
        if (recorded.get("step"), recorded.get("task_name")) != ("prediction", args.task_name):
            recorded = {}
        values = {name: value if name in given else recorded.get(name) for name, value in values.items()}
        values.update(task_name=args.task_name, data_dir=args.data_dir, pred_distill=True, do_eval=None)
        origins = {name: "the student's run" for name in set(recorded) - given if name in values}
        filled = argparse.Namespace(**values)
        fill_in(filled, "prediction", header={})
        values = settled(filled)
    values.update(dict.fromkeys(OF_DISTILLATION), student_model=str(student), output_dir=str(output), step="baseline")
    origins = {name: origin for name, origin in origins.items() if values.get(name) is not None}
    return argparse.Namespace(**values, origins=origins)


def settled(args):
    """{flag: value}."""
    return {name: value for name, value in vars(args).items() if name not in ("step", "origins")}


def distill(task, base_teacher, args, place):
    """One step of task distillation, from --student_model to --output_dir."""
    started = time.monotonic()
    output = make_folder(args.output_dir)
    student_folder = model_folder(args.student_model, args.cache_dir)
    train_name = train_file_name(task, args)
    teacher_folder = ready_teacher(task, base_teacher, args, place)
    inputs = {"teacher_model": teacher_folder, "student_model": student_folder}
    status, record = claim_output("task_distill", output, inputs, [train_name], task, args, place)
    known = {}  # the teacher as the report wants it, where it was asked already
    if status == "finished":
        stages.sum_up(status, output, started, "")
    else:
        teacher, tokenizer = load_finished(teacher_folder, task, place, args, fit_size=None)
        labels = label_order(task, label_names(teacher.config))
        check_same_vocabulary(tokenizer, student_folder)
        if args.step == "intermediate":
            student_config = BertConfig.from_pretrained(student_folder)
            check_pair(student_config, teacher.config, args.layer_map, args.attention_loss)
        id2label = class_names(task, labels)
        fit_size = teacher.config.hidden_size
        student, _ = load_classifier(
            student_folder, place, args, tokenizer=tokenizer, id2label=id2label, fit_size=fit_size
        )
        logging.info("teacher %s", describe(teacher))
        logging.info("student %s", describe(student))
        data = read_data(task, train_name, tokenizer, labels, args)
        start_output(record, place)
        # Printed first of all: a teacher near chance teaches nothing, and nothing later would say so.
        answers = answer(task, teacher, data.dev, tokenizer, args, place)
        logging.info("teacher on dev: %s", format_results(results_of(task, answers)))
        results = distill_step(task, student, teacher, tokenizer, data, output, args, place)
        complete(output, record, results, data, started, args, place)
        known["teacher"] = report.Candidate(teacher_folder, teacher, tokenizer, data.dev, answers)
    if args.step == "prediction":
        report_student(task, teacher_folder, output, known, args, place)
    publish(output, args, place)
    hint_next_step(task, args)


def hint_next_step(task, args):
    """Tell the command of the prediction step, or of the evaluation."""
    following = {"intermediate": ("prediction", "--pred_distill"), "prediction": ("evaluation", "--do_eval")}
    step, more = following[args.step]
    defaults = {
        **stages.TASK_STEPS[step],
        "data_dir": str(Path(stages.GLUE) / task.name),
        "max_seq_length": task.max_seq_length,
        **(stages.sample_values(stages.SAMPLE_TASK_STEPS[step], task.name) if args.sample else {}),
    }
    kept = ("teacher_model", "task_name", "data_dir", "max_seq_length", "do_lower_case", "cache_dir", "no_cuda")
    flags = {**{name: getattr(args, name) for name in kept}, "student_model": args.output_dir}
    if step == "prediction":
        flags["aug_train"] = args.aug_train and not defaults.get("aug_train")
    else:
        flags["output_dir"] = args.output_dir
    stages.hint_next("task_distill.py", args, flags, defaults, more)


def distill_step(task, student, teacher, tokenizer, data, output, args, place):
    """Train the student by the step's losses; returns the results."""
    if args.step == "intermediate":
        learner = transformer_learner(student, teacher, args)

        def evaluate_student():  # no score: the last weights are kept
            pad_to = args.max_seq_length if args.pad_to_max_length else None
            _, dev = data.dev[0]
            return None, mean_losses(learner, dev, args.eval_batch_size, place, tokenizer.pad_token_id, pad_to)

        return run_training(learner, data, tokenizer, output, "none", evaluate_student, args, place)
    logits = teacher_logits_of(data, teacher, tokenizer, output / "teacher_logits.npy", args, place)
    learner = PredictionLearner(student, logits, args.temperature)
    evaluate_student = dev_score(task, student, data, tokenizer, args, place)
    return run_training(learner, data, tokenizer, output, "warmup_linear", evaluate_student, args, place)


def teacher_logits_of(data, teacher, tokenizer, path, args, place):
    """The teacher's logits (N, C), computed once for each row that the plan trains on: the teacher never changes.

    They are kept in `path` until the run is finished, for a stopped run to go on with.
    """
    shape = len(data.train), teacher.config.num_labels
    logits = from_first(read_logits(path, shape) if place.first else None, place)
    if logits is not None:
        return logits.to(place.device)
    rows = np.unique(np.concatenate(data.plan.batches(0)[1][: data.plan.total_steps]))
    logging.info("teacher's logits of %d rows", len(rows))
    logits = torch.zeros(shape)
    mine = rows[place.rank :: place.world_size]
    logits[mine] = run_model(teacher, data.train, mine, tokenizer, args, place, progress=place.first)
    logits = sum_over_processes(logits.to(place.device), place)
    if place.first:
        with atomic_write(path, "wb") as file:
            np.save(file, logits.cpu().numpy())
    return logits


def read_logits(path, shape):
    """The logits that a stopped run left, or None: nothing there, torn, or of other rows."""
    try:
        logits = np.load(path)
    except (OSError, ValueError, EOFError):
        return None
    return torch.from_numpy(logits) if logits.shape == shape and logits.dtype == np.float32 else None


def run_training(learner, data, tokenizer, output, schedule, evaluate_student, args, place):
    """Train learner.student and leave its model folder in `output`; returns the results of the weights kept."""
    student = learner.student
    optimizer = BertAdam(
        decay_groups(student, args.weight_decay),
        args.learning_rate,
        args.warmup_proportion,
        data.plan.total_steps,
        schedule,
    )
    run = TrainingRun(
        output,
        learner,
        optimizer,
        data.plan,
        place,
        eval_step=args.eval_step,
        accumulation=args.gradient_accumulation_steps,
        evaluate=evaluate_student,
        pad_token_id=tokenizer.pad_token_id,
        pad_to=args.max_seq_length if args.pad_to_max_length else None,
        compiled=args.compile,
    )
    if place.first:
        student.config.save_pretrained(output, student.architecture)
        tokenizer.save_pretrained(output)
    logging.info("%d rows, %d steps", len(data.train), data.plan.total_steps)
    results = run.train()
    if place.first:
        stages.write_results(output / "eval_results.txt", results)
        (output / "teacher_logits.npy").unlink(missing_ok=True)
    run.finish()
    return results


def dev_score(task, model, data, tokenizer, args, place):
    """The evaluation that selects the best weights by the task's first metric."""

    def evaluate_model():
        results = score(task, model, data.dev, tokenizer, args, place)
        return results[task.metrics[0]], results

    return evaluate_model


def claim_output(script, output, inputs, data_files, task, args, place):
    """Ask the output's record what to do (`stages.OutputRecord`)."""
    inputs = {**inputs, **{name: Path(args.data_dir) / name for name in (*data_files, *task.dev_files)}}
    if (Path(args.data_dir) / DESCRIPTION).is_file():
        inputs[DESCRIPTION] = Path(args.data_dir) / DESCRIPTION
    record = stages.OutputRecord(output / "run.json", output / WEIGHTS_NAME, script, args, inputs)
    return claim(record, stages.model_outputs(output), args.overwrite_output, place), record


def start_output(record, place):
    """Everything that is read was good: from here on the output changes, and the log goes to log.txt as well."""
    begin(record, place)
    if place.first:
        record.path.with_name(stages.REPORT_NAME).unlink(missing_ok=True)  # of weights that are about to change
        stages.log_to(record.path.with_name("log.txt"))


def complete(output, record, results, data, started, args, place):
    """The last things a run does: the output is whole from here on."""
    if place.first:
        record.finish()
    wait_for_all(place)  # what is written here may be read next, by every process
    logging.info("result: %s", format_results(results))
    done = f"{len(data.train)} rows in, {data.plan.total_steps} steps of {args.train_batch_size}"
    stages.sum_up("", output / WEIGHTS_NAME, started, done)


def publish(output, args, place):
    """Copy the finished output to --data_url."""
    if place.first:
        upload([output], args.data_url)


def candidate(task, folder, args, place):
    """A model that knows the task, as the report wants it."""
    model, tokenizer = load_finished(folder, task, place, args)
    labels = label_order(task, label_names(model.config))
    dev = read_sets(task, task.dev_files, args.data_dir, tokenizer, labels, args)
    return report.Candidate(folder, model, tokenizer, dev, answer(task, model, dev, tokenizer, args, place))


def report_student(task, teacher_folder, output, known, args, place):
    """The prediction step's report, unless it is there: written after the student is finished, it is no part of what a
    stopped run goes on with."""
    folders = {"teacher": teacher_folder, "student": output}
    if args.baseline:
        folders["baseline"] = train_baseline(task, output, output, args, place)
    if place.first and not set(folders) <= set(report.reported(output)):
        candidates = {name: known.get(name) or candidate(task, folder, args, place) for name, folder in folders.items()}
        report.write_report(task, candidates, output, args, place)
    wait_for_all(place)


def evaluate(task, args, place):
    """--do_eval: write the student's eval_results.txt, and the report: beside the teacher where there is one."""
    student = model_folder(args.student_model, args.cache_dir)
    candidates, teacher = {}, None
    if "teacher_model" in args.origins or Path(args.teacher_model).is_dir():
        teacher = find_fine_tuned(model_folder(args.teacher_model, args.cache_dir, need_weights=False), task)
    if teacher is not None:
        candidates["teacher"] = candidate(task, teacher, args, place)
    candidates["student"] = candidate(task, student, args, place)
    output = make_folder(args.output_dir)
    if args.baseline:
        candidates["baseline"] = candidate(task, train_baseline(task, student, output, args, place), args, place)
    if place.first:
        stages.write_results(output / "eval_results.txt", results_of(task, candidates["student"].answers))
        written = report.write_report(task, candidates, output, args, place)
        upload([output / "eval_results.txt", *written], args.data_url)
    wait_for_all(place)


def predict(task, args, place):
    """--do_predict: write the test sets' predictions in the layout that the GLUE site takes."""
    model, tokenizer = load_finished(model_folder(args.student_model, args.cache_dir), task, place, args)
    labels = label_order(task, label_names(model.config))
    output = make_folder(args.output_dir)
    names = list(task.submissions)
    sets = read_sets(task, task.test_files, args.data_dir, tokenizer, labels, args, labelled=False)
    for other in (other for other in TASKS.values() if other.trained_as == task.name):
        folder = next(
            (
                path
                for path in (Path(args.data_dir), Path(args.data_dir).parent / other.name)
                if (path / other.test_files[0]).is_file()
            ),
            None,
        )
        if folder:  # MNLI's model answers the diagnostic set too
            names += other.submissions
            sets += read_sets(other, other.test_files, folder, tokenizer, labels, args, labelled=False)
    for name, (_, sequences) in zip(names, sets, strict=True):
        logits = run_model(model, sequences, np.arange(len(sequences)), tokenizer, args, place)
        if task.regression:
            # The site takes STS-B's scores from 0 to 5 only.
            scores = logits[:, 0].clamp(0, 5) if task.name == "STS-B" else logits[:, 0]
            predictions = [f"{value:.3f}" for value in scores.tolist()]
        else:
            predictions = [labels[index] for index in logits.argmax(dim=1).tolist()]
        with atomic_write(output / name) as file:
            file.write("index\tprediction\n")
            file.writelines(f"{index}\t{prediction}\n" for index, prediction in enumerate(predictions))
        logging.info("%d predictions: %s", len(predictions), output / name)
    upload([output / name for name in names], args.data_url)


if __name__ == "__main__":
    stages.run(main)
