"""One run on a task: its files as sequences, its models, its output, its training. Shapes: N rows, C head outputs."""

import copy
import io
import logging
import math
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from transformer import checkpoint
from transformer.console import format_results
from transformer.data import Sequences, joined
from transformer.evaluation import Candidate, Evaluator
from transformer.files import UserError, atomic_write
from transformer.flags import AUGMENTATION, INTERMEDIATE, PREDICTION
from transformer.json_file import read_json
from transformer.outputs import RECORD_NAME, REPORT_NAME, RESULTS_NAME, Output, fingerprint, read_record, write_results
from transformer.own_tasks import DESCRIPTION
from transformer.quantization import set_precision
from transformer.tasks.task import TaskFile, label_order, unlabelled_rows
from transformer.teacher_states import DEV_STATES_NAME, STATES_NAME, TeacherStates
from transformer.tensor_file import read_array
from transformer.tokenization import BertTokenizer
from transformer.training import Plan, TrainingRun

OUTPUTS_NAME = "teacher_logits.npy"  # the teacher's outputs, for resuming the prediction step


class Data(NamedTuple):
    """A run's training and dev data."""

    train: Sequences
    dev: list  # [(file name, Sequences)]
    plan: Plan
    taught: Sequences  # train as the teacher reads it, whose pieces may be others


class TaskRun:
    """The context of a training or an evaluation. Args: as in `settings.Settings.parts`; here: `Processes`."""

    def __init__(self, task, reading, schedule, batching, provenance, here):
        self.task, self.reading, self.schedule, self.batching = task, reading, schedule, batching
        self.provenance, self.here = provenance, here
        self.folder = Path(reading.data_dir)
        self.train_file = task.augmented_file if reading.aug_train else task.train_file
        self.evaluator = Evaluator(batching.eval_batch_size, here)

    def check_files(self):
        """Raise UserError if the task has no training or dev data, or an augmented file of another training file."""
        task, file = self.task, self.folder / self.train_file
        task.check_training()
        for name in (*task.dev_files, *([] if self.reading.aug_train else [task.train_file])):
            task.check_file(self.folder / name)
        for path in self.reading.unlabelled or ():
            next(unlabelled_rows(path, task))
        if not self.reading.aug_train:
            return
        if not file.is_file():
            raise UserError(f"{file}: no such file; made by: {self.provenance.command_of(AUGMENTATION)}")
        source, record = self.folder / task.train_file, file.with_name(f"{file.stem}.{RECORD_NAME}")
        settings = read_record(record).get("settings", {}).items()
        kept = {name: value for name, value in settings if name in ("N", "M", "p", "seed", "glove_words", "limit")}
        again = self.provenance.command_of(AUGMENTATION, overwrite_output=True, **kept)
        # Variants of a row look different from it, so only the record can tell whether they are of dev rows.
        if task.dev_fraction and recorded(record, "dev_fraction") != task.dev_fraction:
            raise UserError(f"{file}: may hold dev rows; made again without them by: {again}")
        # glue_dir is what stage 1's records call the training file.
        made_from = read_record(record).get("inputs", {}).get("glue_dir")
        if made_from and source.is_file() and fingerprint(source) != made_from:
            raise UserError(f"{file}: {task.train_file} has changed since it was made; made again by: {again}")

    def read(self, names, tokenizer, labels, labelled=True, task=None, folder=None):
        """Encode a task's files: [(file name, Sequences)]. Task and folder default to the run's own."""
        task, folder, sets = task or self.task, folder or self.folder, []
        for file in (TaskFile(folder / name, task, labelled) for name in names):
            sequences = self.encode(file, task, tokenizer, labels)
            sets.append((file.name, sequences))
            skipped = f", {file.skipped} rows left out" if file.skipped else ""
            logging.info("%s: %d rows, %d tokens%s", file.title, sequences.num_rows, len(sequences.ids), skipped)
        return sets

    def encode(self, rows, task, tokenizer, labels):
        """The `Sequences` of a task's rows, each file of which --limit cuts."""
        reading = self.reading
        return task.kind.encode(rows, tokenizer, reading.lengths, labels, reading.limit, reading.pad_to_max_length)

    def read_data(self, tokenizer, labels):
        """Encode the training and dev files: the run's `Data`. With --unlabelled its training rows have no labels."""
        [(_, train)] = self.read([self.train_file], tokenizer, labels)
        dev, labelled = self.read(self.task.dev_files, tokenizer, labels), train.num_rows
        if paths := self.reading.unlabelled:
            places, more = [self.folder / name for name in self.task.dev_files], []
            held_out = {row.texts for place in places for row in TaskFile(place, self.task)}
            for path in paths:
                more.append(self.encode(unlabelled_rows(path, self.task, held_out), self.task, tokenizer, labels))
                logging.info("%s: %d rows without labels, %d tokens", path, more[-1].num_rows, len(more[-1].ids))
            train = joined([train, *more])
        rows = train.num_rows
        plan = Plan(lambda epoch: train, [len(train)], self.schedule, self.batching, rows - labelled, rows)
        return Data(train, dev, plan, train)

    def load(self, folder, fresh=(), tokenizer=None, trains=True, **overrides):
        """(model with the task's kind of head, tokenizer). `tokenizer`: used instead of the folder's own; trains:
        whether the model is to be trained."""
        torch.manual_seed(self.schedule.seed)  # random weights must not depend on what ran before
        model = self.task.kind.model.from_pretrained(folder, fresh, **overrides)
        if trains:
            checkpoint.check_float(model.config, folder)
        tokenizer = tokenizer or BertTokenizer.from_pretrained(folder, self.reading.do_lower_case)
        checkpoint.check_vocabulary(model.config, tokenizer, folder)
        checkpoint.check_positions(model.config, self.reading.max_seq_length, folder)
        return model.to(self.here.device), tokenizer

    def load_finished(self, folder, **overrides):
        """(model trained on the task, tokenizer). Raises UserError where its head does not fit the task."""
        task = self.task
        outputs = checkpoint.stored_outputs(folder, task.kind.head)
        if outputs != task.num_labels:
            if not outputs:
                raise UserError(f"{folder}: has no {task.kind.head}; give a model that was trained on the task")
            told = f"has a {task.kind.head} of {outputs} classes, {task.name} needs {task.num_labels}"
            again = "train it again with --overwrite_output, or give a model made for the task"
            raise UserError(f"{folder}: {told}; {again}")
        differs = recorded(folder, "dev_fraction") != task.dev_fraction
        if task.dev_fraction and differs and recorded(folder, "task_name") == task.name:
            told = f"{folder}: was not trained with --dev_fraction {task.dev_fraction:g} and may know the dev rows"
            raise UserError(f"{told}; train it again with --overwrite_output")
        return self.load(folder, trains=False, **overrides)

    def warn_of_answers(self, student):
        """Warn where a student's last step trained no classifier, or where it lacks what its kind of task wants, before
        its answers are shown."""
        config = Path(student) / checkpoint.CONFIG_NAME
        if self.here.first and self.task.kind.untold and "task" not in read_json(config):
            logging.warning("warning: %s: %s", config, self.task.kind.untold)
        if self.here.first and recorded(student, "step") == INTERMEDIATE:
            logging.warning(
                "warning: the last step of %s was the intermediate one, which does not train the %s: its answers are "
                "luck until --pred_distill. / 该学生的最后一步是中间层蒸馏，它不训练输出层，以下结果只是碰运气；"
                "请运行 --pred_distill。",
                student,
                self.task.kind.head,
            )

    def warn_of_constant(self, teacher, answers, remedy):
        """Warn where a teacher answers every row of a dev set alike. `answers`: [`evaluation.Answers`]; remedy: the end
        of the message."""
        for file, predictions, labels, *_ in answers if self.here.first else ():
            if self.task.kind.different(predictions) == 1 < self.task.kind.different(labels):
                told = "%s gives all %d rows of %s the same answer, so there is nothing to learn from it"
                logging.warning(f"warning: {told}; %s", teacher, len(labels), file, remedy)

    def candidate(self, folder):
        """Load a model trained on the task and answer the dev sets: a `Candidate` for the report."""
        model, tokenizer = self.load_finished(folder)
        dev = self.read(self.task.dev_files, tokenizer, label_order(self.task, checkpoint.label_names(model.config)))
        return Candidate(Path(folder), model, tokenizer, dev, self.evaluator.answers(self.task, model, dev))

    def output(self, folder, inputs, next_command=None):
        """The `Output` for a model folder. `inputs`: {name: path} of inputs other than the task's files."""
        self.check_files()
        files = {name: self.folder / name for name in (self.train_file, *self.task.dev_files, DESCRIPTION)}
        if not files[DESCRIPTION].is_file():
            del files[DESCRIPTION]
        if self.reading.unlabelled:
            files["unlabelled"] = list(map(Path, self.reading.unlabelled))
        return Output(Path(folder) / checkpoint.WEIGHTS_NAME, self.provenance, inputs | files, self.here, next_command)

    def begin(self, output, data, tokenizer):
        """Begin an output of training. A new log begins with the first row on its way from text to numbers."""
        output.begin()
        if output.replaced is not None:
            row = next(iter(TaskFile(self.folder / self.train_file, self.task)))
            label = ", ".join(self.task.kind.parts(self.task, row.label))
            targets = data.train.head(1).labels
            label += "" if targets is None else f" (trained as {', '.join(map(str, targets))})"
            data.train.log_example(tokenizer, text=" | ".join(row.texts), label=label)

    def train(self, learner, data, tokenizer, rates, evaluate, output):
        """Train learner.student, write its model folder and finish `output`. rates, evaluate: see `TrainingRun`."""
        config, task = learner.student.config, self.task
        # With the weights, because an evaluation may change it, see `Kind.tune`.
        keep = partial(config.save_pretrained, output.folder, learner.student.architecture)
        run = TrainingRun(output.folder, learner, data.plan, self.here, rates, evaluate, keep=keep)
        config.task, config.problem_type = task.card(self.reading.lengths), task.kind.problem_type
        if self.here.first:
            tokenizer.save_pretrained(output.folder, config.max_position_embeddings)
            (output.folder / REPORT_NAME).unlink(missing_ok=True)  # it describes weights that are about to change
        rows, unlabelled = data.plan.counts["rows"], data.plan.counts["unlabelled"]
        logging.info("%d rows, %d steps", rows, data.plan.total_steps)
        results = run.train()
        if self.here.first:
            write_results(output.folder / RESULTS_NAME, results)
        run.finish()
        for name in (OUTPUTS_NAME, STATES_NAME, DEV_STATES_NAME) if self.here.first else ():
            (output.folder / name).unlink(missing_ok=True)
        logging.info("result: %s", format_results(results))
        steps = f"{data.plan.total_steps} steps of {self.batching.train_batch_size}"
        without = f" ({unlabelled} of them without labels)" if unlabelled else ""
        output.finish(f"{rows} rows in{without}, {steps}")

    def with_states(self, learner, data, folder, gigabytes):
        """--teacher_states: the data, whose batches then bring along what the teacher's layers say, from files in
        `folder`; unchanged where that is no use or takes more than so many gigabytes."""
        (name, dev), *others = data.dev
        # Of a size that the record has, as the states depend on it in their last bits.
        size = math.ceil(self.batching.train_batch_size / self.batching.gradient_accumulation_steps)
        states = TeacherStates(folder / STATES_NAME, learner, data.train, size)
        of_dev = TeacherStates(folder / DEV_STATES_NAME, learner, dev, size)
        total = (states.size + of_dev.size) / 1e9
        reasons = [
            (self.here.world_size > 1 or self.here.device.type != "cpu", "that is for one process on a CPU"),
            (data.plan.total_steps <= data.plan.pass_steps[0], "no row comes twice"),
            (total > gigabytes, f"they would take {total:.2f} GB"),
        ]
        if reason := next((told for holds, told in reasons if holds), None):
            logging.info("teacher's states are computed in each step, not kept: %s (--teacher_states)", reason)
            return data
        kept = sum(each.path.stat().st_size for each in (states, of_dev) if each.path.is_file()) / 1e9
        if total - kept > (free := shutil.disk_usage(folder).free / 1e9):
            told = f"{total - kept:.2f} GB of states are to be written, {free:.2f} GB are free"
            raise UserError(f"{folder}: {told}; make room, or leave --teacher_states out, with --overwrite_output")
        for each in (states, of_dev):
            each.make(self.here)
        train = replace(data.train, states=states)
        data.plan.load_epoch = lambda epoch: train
        return data._replace(train=train, dev=[(name, replace(dev, states=of_dev)), *others])

    def teacher_outputs(self, teacher, data, folder):
        """The teacher's outputs (P, C) for each row that the plan trains on, kept in `folder` for a resumed run."""
        path, here, shape = folder / OUTPUTS_NAME, self.here, (data.train.num_outputs, teacher.config.num_labels)
        kept = here.from_first(lambda: read_outputs(path, shape))
        if kept is not None:
            return kept.to(here.device)
        rows = np.unique(np.concatenate(data.plan.batches(0)[1][: data.plan.total_steps]))
        logging.info("teacher's logits of %d rows", data.train.count_rows(rows))
        if here.teacher_precision:  # of a copy, because the report compares the teacher as it is
            teacher = set_precision(copy.deepcopy(teacher), here)
        mine, outputs = rows[here.rank :: here.world_size], torch.zeros(shape)
        _, places = data.taught.outputs_of(mine)
        outputs[places] = self.evaluator.outputs(teacher, data.taught, mine, progress=here.first, by_tokens=True)
        outputs = here.sum(outputs.to(here.device))
        if here.first:
            np.save(data := io.BytesIO(), outputs.cpu().numpy())  # to a file it can fail without an error
            with atomic_write(path, "wb") as file:
                file.write(data.getbuffer())
        return outputs


def check_order(run, step, student, command_of):
    """Warn where the two steps come in another order than the paper's. `command_of(step)`: this run's for a step."""
    if not run.here.first:
        return
    record = read_record(student)
    last = record["settings"].get("step", record["script"]) if record else None
    untouched = last == "general_distill" or not (last or checkpoint.stored_outputs(student, run.task.kind.head))
    if step == PREDICTION and untouched:
        english = "this is the prediction step, but %s has had no intermediate step"
        chinese = "这是预测层蒸馏，而该学生还没有做过中间层蒸馏"
    elif step == INTERMEDIATE and last == PREDICTION:
        english = "this is the intermediate step, but %s has had its prediction step"
        chinese = "这是中间层蒸馏，而该学生已经做过预测层蒸馏"
    else:
        return
    meant = command_of(INTERMEDIATE if step == PREDICTION else PREDICTION)
    told = f"{english}; the paper's order is the other. {chinese}；论文的顺序是先中间层，后预测层。"
    logging.warning(f"{told} Probably meant / 可能想运行: %s", student, meant)


def recorded(place, name):
    """The value of a flag, or the step, in the record of an output; None without one."""
    return read_record(place).get("settings", {}).get(name)


def read_outputs(path, shape):
    """The outputs that a stopped run saved, or None if they are missing, incomplete or of another shape."""
    try:
        outputs = np.array(read_array(path, [np.float32], 2))
    except (OSError, ValueError):
        return None
    return torch.from_numpy(outputs) if outputs.shape == shape and np.isfinite(outputs).all() else None
