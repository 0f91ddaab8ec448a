"""The report on a task's student: a comparison with teacher and baseline, its answers, and its training."""

import logging
import math
import platform
import re
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from transformer import comparison, drawing, outputs
from transformer.checkpoint import describe
from transformer.comparison import EXPORTED, interval, markdown
from transformer.console import format_results, format_seconds
from transformer.evaluation import measure_speed, resampled_results, results_of
from transformer.export import EXPORT, exported
from transformer.files import atomic_write, write_json
from transformer.flags import BASELINE, FINETUNE, INTERMEDIATE, PREDICTION, at_root
from transformer.history import HISTORY_NAME, read_curves, read_effort
from transformer.outputs import PICTURE_NAME, REPORT_NAME, TABLE_NAME, fingerprint, read_record
from transformer.tasks.task import TaskFile
from transformer.tfidf import TITLE, first_try

KINDS = {"att_loss": "attention", "rep_loss": "hidden states"}  # the losses that each layer has
STEPS = {
    "general_distill": "general distillation",
    INTERMEDIATE: "intermediate step",
    PREDICTION: "prediction step",
    FINETUNE: "fine-tuning",
    BASELINE: "training on gold labels",
}
BASELINES = {  # a column's name: where its weights come from
    "baseline": "random weights",
    "general baseline": "the general student's weights",
}
ERRORS, TEXT_LENGTH = 10, 300  # the rows of the table of errors, and the characters of a text in it


class Step(NamedTuple):
    """A training that led to the student, with its curves, [(step, value)]."""

    title: str
    folder: Path
    settings: dict
    layered: dict  # {kind of loss: {layer: curve}}
    losses: dict  # the others, {name: curve}
    scores: dict  # {metric: curve}
    effort: dict  # see `history.read_effort`


def write_report(run, candidates, output, baseline):
    """Measure the candidates, {name: Candidate} in column order, and the student's exports; print the table, and write
    report.md, report.json and (with matplotlib) report.png to the folder `output`. `baseline`: compare with what a user
    would try first, too. Returns the files' paths."""
    task, length, evaluator, student = run.task, run.reading.max_seq_length, run.evaluator, candidates["student"]
    tried = first_try(task, run.folder, run.reading.limit, student) if baseline else {}
    candidates = candidates | tried | exported(run, student)
    answers = {name: each.answers for name, each in candidates.items()}
    results = {name: results_of(task, each) for name, each in answers.items()}
    samples = {name: resampled_results(task, each) for name, each in answers.items()}
    seconds = (measure_speed(candidates, each, evaluator) for each in (length, None))
    measured = comparison.Measured(results, samples, *seconds)
    rows = comparison.rows_of(task, candidates, measured)
    table = comparison.table_of(rows, list(candidates))
    said = comparison.summary(task, rows)
    conditions = f"{length} tokens, {conditions_of(evaluator.processes)}"
    luck = "".join(f" {chance}" for each in student.answers if (chance := task.kind.chance(task, each)))
    notes = f"latency and throughput: {conditions}\n{said}{luck}"
    print(f"\n{comparison.format_table(table, len(candidates))}\n{notes}\n", flush=True)
    steps, picture = training_steps(student.folder), output / PICTURE_NAME
    drawn = drawing.save_panels(
        picture, [*make_panels(task, candidates, measured, steps), *comparison.panels(task, rows)]
    )
    models = [[name, f"`{each.folder}`", describe(each.model)] for name, each in candidates.items() if not each.texts]
    heading, tables = task.kind.answer_tables(task, answers, results)
    others = {name: each for name, each in candidates.items() if name not in ("student", TITLE, *EXPORTED)}
    others = [(name, *training_steps(each.folder)[-1:]) for name, each in others.items()]
    parts = [
        f"# {task.name}: {', '.join(candidates)}",
        said,
        markdown(table),
        explanation(task, candidates, measured, conditions, luck),
        *([f"![scores, answers and losses]({picture.name})"] if drawn else []),
        "## Models",
        markdown([["", "folder", "architecture"], *models], numbers=False),
        f"## {heading}",
        *map(markdown, tables),
        "## The student's worst errors",
        *error_sections(task, run.folder, answers),
        *(step_section(task, step) for step in steps),
        *(step_section(task, step, f"{name}: ") for name, *found in others for step in found),
    ]
    numbers = [{"title": row.title, **row.values} for row in rows]
    write_json(output / TABLE_NAME, {"task": task.name, "summary": said, "conditions": conditions, "table": numbers})
    with atomic_write(output / REPORT_NAME) as file:  # last: where it is, nothing is made again
        file.write("\n\n".join(parts) + "\n")
    return [output / REPORT_NAME, output / TABLE_NAME, *([picture] if drawn else [])]


def reported(folder):
    """The names of the models in a folder's report; [] without a report."""
    path = Path(folder) / REPORT_NAME
    found = re.search(r"^\| \|(.*)\|$", path.read_text(encoding="utf-8"), re.M) if path.is_file() else None
    return [name.strip() for name in found[1].split("|")] if found else []


def conditions_of(processes):
    """What latency depends on, in one phrase: device, threads, precision, torch version."""
    threads, precision = torch.get_num_threads(), str(processes.dtype).removeprefix("torch.")
    threads = f"{threads} thread{'s' if threads > 1 else ''}"
    return f"{device_name(processes.device)}, {threads}, {precision}, torch {torch.__version__}"


def device_name(device):
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.is_file() else ""
    found = re.search(r"^model name\s*: *(.+)$", text, re.M)
    return found[1].strip() if found else platform.processor() or platform.machine() or device.type


def explanation(task, candidates, measured, conditions, luck):
    """What the numbers mean and how they were measured. `luck`: see `Kind.chance`."""
    counts = sorted({len(times) for timed in measured.seconds.values() for times in timed.values()})
    batches = f"{counts[0]} to {counts[-1]} batches" if len(counts) > 1 else f"{counts[0]} batches"
    draws = len(measured.samples["student"][task.metrics[0]])
    dev = candidates["student"].answers
    files = ", ".join(f"`{answers.file}` ({len(answers.labels):,} rows)" for answers in dev)
    text = (
        f"Scores: {files}.{luck} 95% intervals: between the 2.5th and the 97.5th percentile of the scores of "
        f"{draws:,} bootstrap samples of these rows; they tell how far the choice of dev rows matters, not that of "
        f"the seed. Parameters: without the projection onto the teacher's width, which serves training only. "
        f"Latency: median and 95th percentile of {batches}, from token ids to logits, with the models taking turns; "
        f"{conditions}, without padding. Own lengths: dev rows in the order of their file, padded to the longest of a "
        f"batch."
    )
    text += " A row is read in one window or several; speed is that of windows." * candidates["student"].in_windows
    more = read_effort(candidates["student"].folder / HISTORY_NAME)["unlabelled"]
    extent = "epochs, on the rows with labels," if more else "steps on the same rows"
    for name in [name for name in BASELINES if name in candidates]:
        metric, settings = task.metrics[0], read_record(candidates[name].folder).get("settings", {})
        difference = measured.results["student"][metric] - measured.results[name][metric]
        low, high = interval(measured.samples["student"][metric] - measured.samples[name][metric])
        text += (
            f"\n\n{name.capitalize()}: the student's architecture, starting with {BASELINES[name]}, trained on the "
            f"gold labels alone, without distillation, for as many {extent} as the prediction step "
            f"(batches of {settings.get('train_batch_size')}, learning rate {settings.get('learning_rate')}). "
            f"The student's {metric} differs from the {name}'s by {difference:+.4f} "
            f"(95% interval {low:+.3f} to {high:+.3f})."
        )
    return text


def error_sections(task, folder, answers):
    """For each dev file a sentence and the table of the rows that the student gets most wrong, with their texts.
    `folder`: the task's files; answers: {model: [`Answers` for each file]}."""
    sections = []
    for number, own in enumerate(answers["student"]):
        wrong = ~task.kind.same(own.predictions, own.labels)
        order = [row for row in np.argsort(-own.row_losses, kind="stable").tolist() if wrong[row]][:ERRORS]
        if not order:
            sections.append(f"None of the {len(wrong):,} rows of `{own.file}`.")
            continue
        texts = {}
        for row, found in enumerate(file := TaskFile(Path(folder) / task.dev_files[number], task)):
            if row in order:
                texts[row] = [str(found.line), shorten(" | ".join(found.texts))]
            if row == max(order):
                break
        table = [[file.table.unit, "text", "gold", *answers, "student's loss"]]
        for row in order:
            values = own.labels[row], *(files[number].predictions[row] for files in answers.values())
            table.append([*texts[row], *(task.kind.answer_text(task, each) for each in values)])
            table[-1].append(f"{own.row_losses[row]:.3f}")
        sections += [f"The rows of `{own.file}` that are not answered as their label says, the largest losses first:"]
        sections.append(markdown(table, numbers=False))
    return sections


def shorten(text):
    """A user's text for a cell of a Markdown table: on one line, not too long, as it reads."""
    text = " ".join(text.split())
    text = text if len(text) <= TEXT_LENGTH else f"{text[: TEXT_LENGTH - 1]}…"
    return re.sub(r"([\\`*_\[\]<>~$#&])", r"\\\1", text)


def step_section(task, step, name=""):
    """The report's section on one training: its size, settings and command, first and last losses (by layer where it
    has them), scores. `name`: how the title begins."""
    told = {"train_batch_size": "batch size", "learning_rate": "learning rate", "seed": "seed"}
    told |= {"layer_map": "layers", "attention_loss": "attention"} if step.layered else {}
    told |= {"temperature": "temperature"} if step.title == STEPS[PREDICTION] else {}
    settings = [f"{words} {step.settings[name]}" for name, words in told.items() if name in step.settings]
    parts = [f"## {name.capitalize()}{step.title if name else step.title.capitalize()}"]
    parts.append(", ".join([f"`{step.folder}`", *effort_words(step), *settings]))
    if step.effort["command"]:
        parts.append(f"```bash\n{step.effort['command']}\n```")
    if step.layered:
        lines = [["layer", *(f"{KINDS[kind]}, {when}" for kind in step.layered for when in ("first", "last"))]]
        for layer in sorted(set().union(*step.layered.values())):
            lines.append([layer_title(layer)])
            for curves in step.layered.values():
                points = curves.get(layer)  # the embeddings have no attention
                lines[-1] += [f"{points[0][1]:.4f}", f"{points[-1][1]:.4f}"] if points else ["", ""]
        parts.append(markdown(lines))
    for name, points in step.losses.items():
        parts.append(f"{name}: {points[0][1]:.4f} at step {points[0][0]}, {points[-1][1]:.4f} at step {points[-1][0]}")
    if points := step.scores.get(task.metrics[0]):
        number, score = max(points, key=lambda point: point[1])
        parts.append(f"dev {task.metrics[0]}: best {score:.4f} at step {number}, at the end {points[-1][1]:.4f}")
    return "\n\n".join(parts)


def effort_words(step):
    """The rows of a training, its steps and the epochs that they were, and its time, as far as its log tells."""
    steps, seconds, rows, size = *list(step.effort.values())[:3], step.settings.get("train_batch_size")
    examples = step.effort.get("examples") or rows
    epochs = f" ({steps / math.ceil(examples / size):.3g} epochs)" if examples and size and steps else ""
    unlabelled = step.effort["unlabelled"]
    words = [f"{rows:,} rows" + (f" ({unlabelled:,} of them without labels)" if unlabelled else "")] if rows else []
    words += [f"{steps:,} steps{epochs}"] if steps else []
    if seconds is not None:
        words.append(f"{seconds:.1f} seconds of training" if seconds < 60 else f"{format_seconds(seconds)} of training")
    return words


def layer_title(layer):
    return f"layer {layer}" if layer else "embeddings"


def training_steps(folder):
    """The trainings that led to a model folder, oldest first, as far as their folders can be found: [Step]."""
    steps = []
    for each in reversed(origins(folder)):
        record, curves = read_record(each), read_curves(each / HISTORY_NAME)
        if not record or record["script"] == EXPORT:
            continue
        settings = record["settings"]
        title = STEPS.get(settings.get("step") or record.get("script"), "training")
        layered, losses = {}, {}
        for name, curve in curves["losses"].items():
            kind, _, layer = name.partition("/")
            if layer.isdecimal() and kind in KINDS:
                layered.setdefault(kind, {})[int(layer)] = curve
            elif not layer:
                losses[name] = curve
        effort = read_effort(each / HISTORY_NAME)
        steps.append(Step(title, each, settings, layered, losses, curves["evaluation"], effort))
    return steps


def origins(folder):
    """The folders of a model, of the model that its training began with, and so on, as far as they can be found."""
    found, folder = [], Path(folder)
    while folder:
        found.append(folder)
        # The record identifies the run's initial student by content, not by path.
        wanted, seen = read_record(folder).get("inputs", {}).get("student_model"), {each.resolve() for each in found}
        places = sorted(path.parent for path in folder.parent.glob(f"*/{HISTORY_NAME}")) if wanted else []
        places.append(folder.parent)  # of an export
        # 4_task_distill_mid/reviews for 5_task_distill_out/reviews
        places += sorted(path.parent for path in folder.parent.parent.glob(f"*/{folder.name}/{HISTORY_NAME}"))
        above = f"*/{folder.parent.name}/{folder.name}/{HISTORY_NAME}"  # the same with a seed's folder below
        places += sorted(path.parent for path in folder.parent.parent.parent.glob(above))
        places += [Path(at_root("4_task_distill_mid")), Path(at_root("3_general_distill"))]
        folder = next((each for each in places if each.resolve() not in seen and fingerprint(each) == wanted), None)
    return found


def general_student(folder):
    """The folder of the model that a student was before task distillation, or None where it cannot be found."""
    steps = {each: read_record(each).get("settings", {}).get("step") for each in origins(folder)}
    return next((each for each, step in steps.items() if step not in (INTERMEDIATE, PREDICTION)), None)


def make_panels(task, candidates, measured, steps):
    """The picture's panels: scores, answers, dev score by step, and the losses of each step, latest step first."""
    results, samples = measured.results, measured.samples
    names = [name for name in candidates if name not in EXPORTED]  # which have pictures of their own
    scores = {metric: {name: results[name][metric] for name in names} for metric in results["student"]}
    ends = {metric: {name: interval(samples[name][metric]) for name in names} for metric in scores}
    panels = [partial(drawing.bars, title="dev scores, 95% intervals", groups=scores, intervals=ends)]
    shown = {name: candidates[name].answers[0] for name in ("student", "teacher") if name in candidates}
    panels += task.kind.panels(task, {f"{name}'s answers to {each.file}": each for name, each in shown.items()})
    single, layered, metric = [], [], task.metrics[0]
    logs = {name: read_curves(each.folder / HISTORY_NAME) for name, each in candidates.items() if name != "teacher"}
    if curves := {name: log["evaluation"][metric] for name, log in logs.items() if metric in log["evaluation"]}:
        levels = {"teacher": results["teacher"][metric]} if "teacher" in results else {}
        single.append(partial(drawing.lines, title=f"dev {metric} by step", curves=curves, levels=levels))
    for step in reversed(steps):
        for kind, curves in step.layered.items():
            curves = {layer_title(layer): curve for layer, curve in sorted(curves.items())}
            title = f"loss of {KINDS[kind]}, {step.title}"
            layered.append(partial(drawing.lines, title=title, curves=curves, log=True, ordered=True))
        if step.losses:
            single.append(partial(drawing.lines, title=f"loss, {step.title}", curves=step.losses, log=True))
    while single or layered:  # with three columns, a step's two layered losses are side by side
        panels += [*single[:1], *layered[:2]]
        single, layered = single[1:], layered[2:]
    return panels


def sum_up_seeds(output_dir, seeds, following=None):
    """--seeds: write mean and deviation of the scores in seed_N to eval_results.txt. `following`: the next command."""
    folders = {f"seed {seed}": output_dir / f"seed_{seed}" for seed in map(int, seeds.split(","))}
    runs = {title: outputs.read_results(folder / outputs.RESULTS_NAME) for title, folder in folders.items()}
    names = [name for name in next(iter(runs.values())) if name != "global_step"]
    columns = {name: np.array([results[name] for results in runs.values()]) for name in names}
    means = {name: values.mean().item() for name, values in columns.items()}
    # The seeds are a sample of all seeds, hence n - 1 in the denominator.
    deviations = {name: values.std(ddof=min(len(values) - 1, 1)).item() for name, values in columns.items()}
    for title, results in {**runs, "mean": means, "deviation": deviations}.items():
        logging.info("%-12s %s", title, format_results({name: results[name] for name in names}))
    deviations = {f"{name}_deviation": value for name, value in deviations.items()}
    outputs.write_results(output_dir / outputs.RESULTS_NAME, {**means, "seeds": seeds, **deviations})
    if following:
        logging.info("next: %s", following)
