"""Training on gold labels: fine-tuning of the teacher, and the baseline, which has no teacher."""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path

from transformer.checkpoint import describe, label_names, stored_outputs, weights_file
from transformer.distillation import GoldLearner
from transformer.files import UserError
from transformer.flags import FINETUNE
from transformer.glue import names_other_task
from transformer.modeling import BertConfig
from transformer.outputs import fingerprint, read_record
from transformer.own_tasks import DESCRIPTION
from transformer.processes import set_seed
from transformer.tasks.task import label_order
from transformer.tokenization import BertTokenizer

# The flags with which a teacher that is made again by itself is trained as it was.
RECIPE = ("num_train_epochs", "learning_rate", "train_batch_size", "weight_decay", "warmup_proportion", "eval_step")


def find_fine_tuned(folder, task):
    """The folder of a teacher with a head for the task: <folder>/<task>, `folder` itself, or None."""
    fine_tuned = Path(folder) / (task.trained_as or task.name)
    # An unfinished record belongs to an interrupted fine-tuning.
    if weights_file(fine_tuned) and read_record(fine_tuned).get("finished", True):
        return fine_tuned
    if not weights_file(folder) or stored_outputs(folder, task.kind.head) != task.num_labels:
        return None
    return None if names_other_task(task, label_names(BertConfig.from_pretrained(folder))) else Path(folder)


def ready_teacher(folder, run, tuning, allowed=True, announce=lambda: None):
    """The folder of a teacher that is trained on the task; fine-tunes one first where there is none.

    Args: folder: the pre-trained teacher; run, tuning: `TaskRun`s of the step and of fine-tuning; allowed: else raises
    UserError; announce(): called before fine-tuning. The reference does not check: it distills from a random head.
    """
    task, folder = run.task, Path(folder)
    found, doubt = run.here.from_first(lambda: find_with_doubt(folder, run))
    if found and (not doubt or found == folder):
        return found
    if not allowed:
        told = f"{found}: {doubt}" if found else f"{folder}: no {task.kind.head} for {task.name}"
        made = run.provenance.command_of(FINETUNE, overwrite_output=bool(found))
        raise UserError(f"{told}; leave out --no_finetune, or make it by: {made}")
    # A short run for debugging must not replace a teacher that took hours, nor any run one without a record.
    trained = found and read_record(found).get("settings")
    short = run.schedule.max_steps or run.reading.limit
    if found and (not trained or (short and not {"max_steps", "limit"} & trained.keys())):
        raise UserError(f"{found}: {doubt}; {way_out(found, folder, run)}")
    if found is None:
        logging.info("the teacher has no %s for %s: fine-tuning it first", task.kind.head, task.name)
    else:
        logging.info("%s: %s; fine-tuning the teacher again", found, doubt)
    tuning.provenance = replace(tuning.provenance, overwrite=bool(doubt) or tuning.provenance.overwrite)
    announce()
    return finetune(folder, folder / task.name, tuning)


def find_with_doubt(folder, run):
    """(a teacher's folder with a head for the task, or None; why it or an unfinished one is to be made again, or None).
    Only warns of a doubt where `folder` itself is that teacher: it may have been trained elsewhere on purpose."""
    found = find_fine_tuned(folder, run.task)
    place = found or Path(folder) / run.task.name
    doubt = doubt_of(place, run)
    if found == Path(folder):
        if doubt:
            logging.warning("%s: %s; %s", found, doubt, way_out(found, folder, run))
    elif not doubt and is_shorter(place, run):
        doubt = "comes from a short run (--max_steps or --limit)"
    return found, doubt


def teacher_to_compare(folder, run):
    """The folder of the teacher for a report, None without one that knows the task. Warns where it does not fit."""
    found = find_fine_tuned(folder, run.task)
    if found and run.here.first and (doubt := doubt_of(found, run)):
        logging.warning("%s: %s; %s", found, doubt, way_out(found, folder, run))
    return found


def doubt_of(folder, run):
    """Why a model trained on the task does not fit the task's files of today, None where it does or nobody knows."""
    task, record = run.task, read_record(folder)
    inputs = record.get("inputs", {})
    same_task = record and record["settings"].get("task_name") in (task.name, task.trained_as)
    if same_task and (run.folder / task.train_file).is_file():
        for name in (task.augmented_file if task.augmented_file in inputs else task.train_file, DESCRIPTION):
            now = fingerprint(run.folder / name)
            if inputs.get(name, "none") != now:
                return f"{name} has changed since it was trained"
        if task.dev_fraction and record["settings"].get("dev_fraction") != task.dev_fraction:
            return f"was not trained with --dev_fraction {task.dev_fraction:g} and may know the dev rows"
    outputs = stored_outputs(folder, task.kind.head) if weights_file(folder) else 0
    if outputs not in (0, task.num_labels):
        return f"has a {task.kind.head} of {outputs} classes, {task.name} needs {task.num_labels}"
    return None


def way_out(found, folder, run, told="made again by", **changes):
    """The end of a message about a fine-tuned teacher that does not fit: the command that makes it again. `changes`:
    {flag: value} of that command."""
    base = changes
    if found == Path(folder):  # fine-tuning needs the teacher of before, which usually is the folder above
        if found.name != run.task.name or not weights_file(found.parent):
            return "fine-tune it again, from the model that it was made of"
        base = {"teacher_model": str(found.parent), **changes}
    return f"{told}: {run.provenance.command_of(FINETUNE, overwrite_output=True, **base)}"


def longer_tuning(folder, run):
    """The end of a message about a teacher that has learned nothing: the command that trains it three times as long."""
    epochs = read_record(folder).get("settings", {}).get("num_train_epochs", run.schedule.num_train_epochs)
    return way_out(folder, folder, run, "train it for longer", num_train_epochs=3 * epochs)


def recorded_tuning(folder, task):
    """{flag: value}: how the task's teacher beside a pre-trained one was fine-tuned, {} without one. What is made again
    by itself is made as it was, not by the defaults."""
    settings = read_record(Path(folder) / task.name).get("settings", {})
    return {name: settings[name] for name in RECIPE if name in settings}


def is_shorter(folder, run):
    """Whether a model comes from a run with --max_steps or --limit, and this run does not have that flag."""
    recorded = read_record(folder).get("settings", {})
    limits = {"max_steps": run.schedule.max_steps, "limit": run.reading.limit}
    return any(name in recorded and value is None for name, value in limits.items())


def finetune(folder, output_dir, run, next_command=None):
    """Fine-tune the BERT in `folder` on the run's task. Returns the folder of the result."""
    task = run.task
    with run.output(output_dir, {"teacher_model": Path(folder)}, next_command) as output:
        if not output.finished:
            fresh = () if find_fine_tuned(folder, task) == Path(folder) else (task.kind.head,)
            id2label = task.kind.id2label(task, task.labels)
            model, tokenizer = run.load(folder, fresh, id2label=id2label, fit_size=None)
            logging.info("teacher %s", describe(model))
            train_on_labels(model, tokenizer, task.labels, run, output)
    return output.folder


def train_baseline(student, output_dir, run, start=None):
    """Train a model of the student's size on gold labels, from random weights. Returns the folder of the result.
    `student`: the student's folder; run: a `TaskRun` with the settings of its prediction step; start: the folder of the
    model to begin with instead."""
    files = [Path(student) / name for name in ("config.json", "vocab.txt", "tokenizer_config.json")]
    with run.output(output_dir, {"student_model": start or files}) as output:
        if not output.finished:
            task, config = run.task, BertConfig.from_pretrained(student, fit_size=None, quantized=None)
            labels = label_order(task, label_names(config))
            if start:  # with its own word pieces, which may be more than the student's
                id2label = task.kind.id2label(task, labels)
                model, tokenizer = run.load(start, (task.kind.head,), id2label=id2label, fit_size=None)
            else:
                tokenizer = BertTokenizer.from_pretrained(student, run.reading.do_lower_case)
                set_seed(run.schedule.seed)  # random weights must not depend on what ran before
                model = task.kind.model(config).to(run.here.device)
            begun = start or "random weights"
            logging.info("baseline, trained on gold labels alone, from %s: %s", begun, describe(model))
            train_on_labels(model, tokenizer, labels, run, output)
    return output.folder


def train_on_labels(model, tokenizer, labels, run, output):
    """Train a model on gold labels and write its folder as `output`."""
    data = run.read_data(tokenizer, labels)
    run.begin(output, data, tokenizer)
    evaluate = partial(run.evaluator.score, run.task, model, data.dev)
    run.train(GoldLearner(model, run.task.kind.gold_loss), data, tokenizer, "warmup_linear", evaluate, output)
