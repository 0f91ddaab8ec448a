"""Stage 4: task distillation. A teacher fine-tuned on a task teaches the general student that task, in two steps.

    no flag          intermediate step: attention scores and hidden states, as in stage 3, on the task's text
    --pred_distill   prediction step: the student's logits learn from the teacher's, both softened (equation 10)
    --do_finetune    fine-tune a teacher on the task; happens automatically where the teacher has no classifier for it
    --do_eval        report on a student beside its teacher;  --do_predict  write predictions for the test set
    --predict_file   answer the texts of any file, or with - those of standard input
    --teacher_states with the intermediate step, on a CPU: the teacher runs once and its layers' outputs stay on disk
    --student_vocab  with the intermediate step: the student keeps only the word pieces that its task uses
    --do_export      write a finished student in int8, for onnx or as safetensors, into a folder of each form
    --baseline       with --pred_distill or --do_eval: also train the same student without distillation, to compare

Reads:   --data_dir (train.tsv, with --aug_train train_aug.tsv of stage 1; dev.tsv), --teacher_model, --student_model,
         --unlabelled (texts without labels, which join the training rows of the two steps)
Writes:  <output_dir>/pytorch_model.bin (intermediate step: the last; prediction step: the best on dev), config.json,
         vocab.txt, tokenizer_config.json, eval_results.txt, log.txt, train_log.jsonl, curves.png (with matplotlib);
         prediction step and --do_eval: report.md, report.json, report.png (with matplotlib), with --baseline the
         model folders baseline/ and baseline_general/; a fine-tuned teacher goes to <teacher>/<task>/. The default
         folders of tasks other than SST-2 are 4_task_distill_mid/<task>/ and 5_task_distill_out/<task>/

    python task_distill.py --data_dir SST-2 --teacher_model teacher_model --student_model 3_general_distill \\
        --task_name SST-2 --output_dir 4_task_distill_mid --aug_train --do_lower_case
    python task_distill.py --data_dir SST-2 --teacher_model teacher_model --student_model 4_task_distill_mid \\
        --task_name SST-2 --output_dir 5_task_distill_out --aug_train --do_lower_case --pred_distill
    python task_distill.py --sample

第四步：任务蒸馏。先做中间层蒸馏，再用 --pred_distill 做预测层蒸馏；教师没有分类头时先自动微调。
"""

import functools
import logging
import re
import sys
from dataclasses import replace
from pathlib import Path

from transformer import console, distillation, outputs, processes, report, vocabulary
from transformer.checkpoint import describe, label_names
from transformer.downloads import model_folder, upload
from transformer.evaluation import Candidate, results_of
from transformer.export import export
from transformer.finetuning import (
    finetune,
    longer_tuning,
    ready_teacher,
    recorded_tuning,
    teacher_to_compare,
    train_baseline,
)
from transformer.flags import BASELINE, EVALUATION, FINETUNE, INTERMEDIATE, OUTPUTS, PREDICTION, at_root
from transformer.modeling import BertConfig
from transformer.own_tasks import as_trained, find_task, stored_task
from transformer.predict import check_source, predict
from transformer.quantization import set_precision
from transformer.settings import Matching, read_command_line, settings_for, task_step
from transformer.task_run import TaskRun, check_order
from transformer.tasks.task import STANDARD_INPUT, Task, label_order

# For debugging, uncomment lines here. A flag on the command line wins over a line here.
HEADER = {
    # "sample": True,  # the bundled small models and data
    # "limit": 100,  # rows of each file
    # "max_steps": 20,  # optimizer steps
    # "pred_distill": True,  # the prediction step
    # "do_eval": True,  # only evaluate the student
    # "task_name": "SST-2",
    # "data_dir": "SST-2",
    # "teacher_model": "teacher_model",
    # "student_model": "3_general_distill",
    # "output_dir": "4_task_distill_mid",
    # "aug_train": True,  # train_aug.tsv of stage 1
    # "unlabelled": ["texts.txt"],  # more texts for the two steps
    # "train_batch_size": 32,
    # "learning_rate": 5e-5,
    # "num_train_epochs": 3.0,
    # "eval_step": 50,
    # "overwrite_output": True,  # replace existing output
    # "debug": True,  # tracebacks
}


def read_settings(argv=None):
    """(settings, task) of the requested step, from the command line, HEADER and the flag table."""
    given = read_command_line(__doc__, INTERMEDIATE, argv)
    step = task_step(given, HEADER)
    # Twice: the first pass finds the task, whose row then supplies defaults to the second.
    asked = settings_for(step, given, HEADER)
    if asked.predict_file:  # the model knows its task, so no files of the task are needed
        check_source(asked.predict_file)
        student = settings_for(step, given, HEADER, Task(asked.task_name, ()).settings).student_model
        task = stored_task(model_folder(student, asked.cache_dir))
        # Found by the task's name: then that name it is, even where the model was made under another.
        task = task if asked.asked_for("student_model") else replace(task, name=asked.task_name)
    else:
        task = find_task(asked.task_name, asked.data_dir or at_root(asked.task_name), asked.dev_fraction)
        if step == EVALUATION:
            first = next(settings_for(step, given, HEADER, task.settings).each_seed())
            task = as_trained(task, first.student_model)
    return settings_for(step, given, HEADER, task.settings), task


def main():
    settings, task = read_settings()
    here = processes.start(*settings.processes)
    console.set_up_logging(not here.first, sys.stderr if settings.predict_file == STANDARD_INPUT else sys.stdout)
    task.announce(f"task distillation, {settings.step} step", here)
    settings.log()
    for own in settings.each_seed():
        run = TaskRun(task, *own.parts, here)
        # --do_finetune: the teacher learns the task.
        if own.step == FINETUNE:
            teacher = model_folder(own.teacher_model, own.cache_dir)
            finetune(teacher, own.output_dir or teacher / task.name, run, own.next_command())
            continue
        student, baseline = model_folder(own.student_model, own.cache_dir), None
        output_dir = own.place_beside(student)
        if own.baseline:
            # A fair baseline trains as its student did. With --do_eval the student's record has those settings.
            compared, recorded = (student, prediction_of(student, task)) if own.do_eval else (output_dir, {})
            folders = {"student_model": str(compared), "output_dir": str(output_dir / outputs.BASELINE_FOLDER)}
            training = own.for_step(BASELINE, recorded, data_url=None, **folders)
            if own.do_eval:
                training.log()
            baseline = TaskRun(task, *training.parts, here)

        # --do_export, --do_eval, --do_predict: a finished student is written in other forms, and measured.
        if own.step == EVALUATION:
            with outputs.holding(None if own.predict_file == STANDARD_INPUT else output_dir, student, here):
                if own.do_export and here.first:
                    export(run, student, output_dir, own.do_export)
                if (own.do_predict or own.predict_file) and here.first:
                    predict(run, student, output_dir, own.predict_file)
                if own.do_eval:
                    teacher = optional_teacher(own.teacher_model, "teacher_model" in own.origins, own.cache_dir)
                    evaluate(run, teacher, student, output_dir, baseline)
            continue
        # Distillation. Cheap checks come first: fine-tuning the teacher can take hours.
        run.output(output_dir, {"teacher_model": None, "student_model": student}).check()
        check_order(run, own.step, student, settings.command_of)
        teacher = model_folder(own.teacher_model, own.cache_dir)
        tuning = own.for_step(FINETUNE, recorded_tuning(teacher, task), overwrite_output=own.overwrite_output)
        teacher = ready_teacher(teacher, run, TaskRun(task, *tuning.parts, here), not own.no_finetune, tuning.log)
        learn = functools.partial(learn_answers, own.temperature)
        if own.step == INTERMEDIATE:
            learn = functools.partial(learn_layers, own.part(Matching), own.teacher_states)
            distillation.check_pair(*map(BertConfig.from_pretrained, (student, teacher)), own.part(Matching))
        then = None if settings.seeds else own.next_command()
        distill(run, teacher, student, output_dir, own.student_vocab, learn, then, own.step == PREDICTION, baseline)
    if settings.seeds and here.first:
        report.sum_up_seeds(Path(settings.output_dir), settings.seeds, settings.next_command(seeds=settings.seeds))
    here.leave()


def distill(run, teacher_folder, student_folder, output_dir, student_vocab, learn, following, with_report, baseline):
    """Run one step of task distillation. `learn`: `learn_layers` or `learn_answers`; baseline: a `TaskRun` or None."""
    task, known = run.task, {}
    inputs = {"teacher_model": teacher_folder, "student_model": student_folder}
    with run.output(output_dir, inputs, following) as output:
        if not output.finished:
            teacher, tokenizer = run.load_finished(teacher_folder, fit_size=None)
            # The student takes over the teacher's class order, so that logit i means the same in both.
            labels = label_order(task, label_names(teacher.config))
            own_tokenizer = vocabulary.student_tokenizer(student_folder, tokenizer)
            id2label = task.kind.id2label(task, labels)
            # The prediction step compares no hidden states, so the finished student has no projection.
            fit_size = None if with_report else teacher.config.hidden_size
            student, _ = run.load(student_folder, tokenizer=own_tokenizer, id2label=id2label, fit_size=fit_size)
            logging.info("teacher %s", describe(teacher))
            data = taught = run.read_data(tokenizer, labels)
            if student_vocab:
                own_tokenizer = vocabulary.reduce(student, own_tokenizer, tokenizer, data.train.ids, student_vocab)
            logging.info("student %s", describe(student))
            # Layers are compared token by token, and the answers of some kinds too: the teacher must then read the
            # student's pieces.
            compared = not with_report or task.kind.per_token
            if own_tokenizer is not tokenizer:
                data = run.read_data(own_tokenizer, labels)
                data = data if compared else data._replace(taught=taught.train)
            run.begin(output, data, own_tokenizer)
            # Logged before training: a teacher near chance teaches nothing, and no later number would show that.
            answers = run.evaluator.answers(task, teacher, taught.dev)
            logging.info("teacher on dev: %s", console.format_results(results_of(task, answers)))
            run.warn_of_constant(teacher_folder, answers, longer_tuning(teacher_folder, run))
            if compared:
                vocabulary.keep_pieces(teacher, tokenizer, own_tokenizer)
            learn(run, student, teacher, data, own_tokenizer, output)
            if own_tokenizer is tokenizer or not compared:  # kept so that the report need not run the teacher again
                known["teacher"] = Candidate(teacher_folder, teacher, tokenizer, taught.dev, answers)
        if with_report:
            report_student(run, teacher_folder, student_folder, output.folder, known, baseline)
    if not with_report and OUTPUTS[PREDICTION] in output.folder.resolve().parts:
        logging.info("%s: there is no score after the intermediate step; --pred_distill gives one", output_dir)


def learn_layers(matching, gigabytes, run, student, teacher, data, tokenizer, output):
    """The intermediate step: general distillation's losses on the task's text. `gigabytes`: --teacher_states."""
    relations = matching.attention_loss == "relations"
    attention = distillation.relation_loss if relations else distillation.attention_loss  # equation 7
    hidden = distillation.hidden_loss  # equation 8, and at the embeddings equation 9
    learner = distillation.TransformerLearner(student, set_precision(teacher, run.here), attention, hidden, matching)
    if gigabytes:
        data = run.with_states(learner, data, output.folder, gigabytes)
    # There is no prediction layer to score yet, so the last weights are kept, and the rate stays constant.
    _, dev = data.dev[0]

    def evaluate_losses():
        return None, {f"dev_{name}": value for name, value in run.evaluator.losses(learner, dev).items()}

    run.train(learner, data, tokenizer, "none", evaluate_losses, output)


def learn_answers(temperature, run, student, teacher, data, tokenizer, output):
    """The prediction step: the student's logits learn from the teacher's. The weights with the best dev score stay."""
    teacher_outputs = run.teacher_outputs(teacher, data, output.folder)
    # Equation 10, soft cross-entropy, for classification; every other kind of task has its own loss.
    loss = functools.partial(run.task.kind.prediction_loss, temperature=temperature)
    learner = distillation.PredictionLearner(student, teacher_outputs, loss)
    evaluate_student = functools.partial(run.evaluator.score, run.task, student, data.dev)
    run.train(learner, data, tokenizer, "warmup_linear", evaluate_student, output)


def report_student(run, teacher, begun, student, known, baseline):
    """Write the prediction step's report, unless it exists. `teacher`, `student`: folders; begun: that of the student
    before the step; known: {name: Candidate}."""
    folders = {"teacher": teacher, "student": student}
    if baseline:
        folders |= train_baselines(student, begun, student, baseline)
    # Also for a run that had finished before: it may have been killed before its report, or now have a baseline.
    if run.here.first and not set(folders) <= set(report.reported(student)):
        candidates = {name: known.get(name) or run.candidate(folder) for name, folder in folders.items()}
        report.write_report(run, candidates, student, bool(baseline))
    run.here.barrier()


def optional_teacher(name, needed, cache_dir):
    """A teacher's folder. Where the default one (not `needed`) is missing None: a student is evaluated without it."""
    return model_folder(name, cache_dir, need_weights=False) if needed or Path(name).is_dir() else None


def evaluate(run, teacher, student, output_dir, baseline):
    """--do_eval: write the student's eval_results.txt and the report, with the teacher where one knows the task."""
    if output_dir.resolve() != student.resolve():
        outputs.check_apart(output_dir, [("data_dir", run.folder)])
    run.warn_of_answers(student)
    teacher = teacher and teacher_to_compare(teacher, run)
    candidates = {"teacher": run.candidate(teacher)} if teacher else {}
    candidates["student"] = run.candidate(student)
    if baseline:
        trained = train_baselines(student, student, output_dir, baseline)
        candidates |= {name: run.candidate(folder) for name, folder in trained.items()}
    if run.here.first:
        answers, path = candidates["student"].answers, student / outputs.RESULTS_NAME
        # The losses and the step of these weights, from their training.
        trained = outputs.read_results(path) if path.is_file() else {}
        trained = {name: value for name, value in trained.items() if re.search("^global_step$|loss$", name)}
        results = results_of(run.task, answers) | {"eval_loss": answers[0].loss}
        outputs.write_results(output_dir / outputs.RESULTS_NAME, {**results, **trained, **results})
        written = report.write_report(run, candidates, output_dir, bool(baseline))
        upload([output_dir / outputs.RESULTS_NAME, *written], run.provenance.data_url)
    run.here.barrier()


def train_baselines(student, begun, output_dir, run):
    """Train the student's two baselines, without distillation: from random weights and, where it is found, from the
    general student, looked for from the folder `begun` on. Returns {column of the report: folder}."""
    found = {"baseline": train_baseline(student, output_dir / outputs.BASELINE_FOLDER, run)}
    # A finished student without a record of its steps cannot tell which general student it began as.
    find = functools.partial(report.general_student, begun)
    known = begun != student or prediction_of(student, run.task)
    if known and (general := run.here.from_first(find)):
        folder = train_baseline(student, output_dir / outputs.GENERAL_BASELINE_FOLDER, run, general)
        found["general baseline"] = folder
    else:
        logging.info("%s: its general student is not found, so there is no baseline from it", begun)
    return found


def prediction_of(student, task):
    """The recorded settings of the prediction step that made the student; {} for other students."""
    settings = outputs.read_record(student).get("settings", {})
    return settings if (settings.get("step"), settings.get("task_name")) == (PREDICTION, task.name) else {}


if __name__ == "__main__":
    console.run(main, HEADER.get("debug"))
