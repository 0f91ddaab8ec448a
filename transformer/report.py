"""The report on a task's student: a comparison with teacher and baseline, its answers, and its training."""

import platform
import re
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from transformer import drawing
from transformer.checkpoint import describe, weights_files
from transformer.evaluation import measure_speed, results_of
from transformer.files import atomic_write
from transformer.flags import at_root
from transformer.history import HISTORY_NAME, read_curves
from transformer.outputs import PICTURE_NAME, REPORT_NAME, fingerprint, read_record

KINDS = {"att_loss": "attention", "rep_loss": "hidden states"}  # the losses that each layer has
STEPS = {
    "general_distill": "general distillation",
    "intermediate": "intermediate step",
    "prediction": "prediction step",
    "finetune": "fine-tuning",
}
RATIOS = {  # the student in relation to the teacher, for each kind of row
    "size": lambda teacher, student: f"{teacher / student:.1f}x smaller",
    "score": lambda teacher, student: f"{100 * student / teacher:.1f}% of the teacher's" if teacher > 0 else "",
    "time": lambda teacher, student: f"{teacher / student:.1f}x faster",
    "rate": lambda teacher, student: f"{student / teacher:.1f}x faster",
}


class Step(NamedTuple):
    """A training that led to the student, with its curves, [(step, value)]."""

    title: str
    folder: Path
    settings: dict
    layered: dict  # {kind of loss: {layer: curve}}
    losses: dict  # the others, {name: curve}
    scores: dict  # {metric: curve}


def write_report(task, candidates, output, length, evaluator):
    """Measure the candidates, {name: Candidate} in column order, print the table, and write report.md and (with
    matplotlib) report.png to the folder `output`. `length`: tokens of the timed sequences. Returns the files' paths."""
    results = {name: results_of(task, each.answers) for name, each in candidates.items()}
    seconds = measure_speed(candidates, length, evaluator)
    table, conditions = table_of(candidates, results, seconds), f"{length} tokens, {conditions_of(evaluator.processes)}"
    print(f"\n{format_table(table, len(candidates))}\nlatency and throughput: {conditions}\n", flush=True)
    steps, picture = training_steps(candidates["student"].folder), output / PICTURE_NAME
    drawn = drawing.save_panels(picture, make_panels(task, candidates, results, steps))
    models = [[name, f"`{each.folder}`", describe(each.model)] for name, each in candidates.items()]
    heading, answers = task.kind.answer_tables(task, {name: each.answers for name, each in candidates.items()}, results)
    parts = [
        f"# {task.name}: {', '.join(candidates)}",
        markdown(table),
        explanation(task, candidates, results, seconds, conditions),
        *([f"![scores, answers and losses]({picture.name})"] if drawn else []),
        "## Models",
        markdown([["", "folder", "architecture"], *models], numbers=False),
        f"## {heading}",
        *map(markdown, answers),
        *(step_section(task, step) for step in steps),
    ]
    with atomic_write(output / REPORT_NAME) as file:
        file.write("\n\n".join(parts) + "\n")
    return [output / REPORT_NAME, *([picture] if drawn else [])]


def reported(folder):
    """The names of the models in a folder's report; [] without a report."""
    path = Path(folder) / REPORT_NAME
    found = re.search(r"^\| \|(.*)\|$", path.read_text(encoding="utf-8"), re.M) if path.is_file() else None
    return [name.strip() for name in found[1].split("|")] if found else []


def table_of(candidates, results, seconds):
    """The table as rows of text, header first: title, a value per model and, with a teacher, the student's ratio to it.
    `results`: {name: {metric: value}}; seconds: see `measure_speed`."""
    parameters = {name: each.model.num_parameters() for name, each in candidates.items()}
    files = {name: weights_files(each.folder) for name, each in candidates.items()}
    megabytes = {name: sum(file.stat().st_size for file in files[name]) / 1e6 for name in candidates}
    rows = [("parameters", "{:,}", "size", parameters), ("size on disk, MB", "{:.1f}", "size", megabytes)]
    for metric in results["student"]:
        rows.append((f"dev {metric}", "{:.4f}", "score", {name: results[name][metric] for name in candidates}))
    for size, timed in seconds.items():
        for percent in (50, 95):
            latencies = {name: np.percentile(times, percent) * 1000 for name, times in timed.items()}
            rows.append((f"latency p{percent}, batch of {size}, ms", "{:.2f}", "time", latencies))
        rates = {name: size / np.mean(times) for name, times in timed.items()}
        rows.append((f"sentences per second, batch of {size}", "{:,.0f}", "rate", rates))
    ratio = ["student's ratio" if len(candidates) > 2 else "ratio"] if "teacher" in candidates else []
    lines = [["", *candidates, *ratio]]
    for title, layout, kind, values in rows:
        ratio = [RATIOS[kind](values["teacher"], values["student"])] if "teacher" in candidates else []
        lines.append([title, *map(layout.format, values.values()), *ratio])
    return lines


def format_table(lines, models):
    """Format the table for the terminal: titles left-aligned, the `models` columns of values right-aligned."""
    title_width = max(len(line[0]) for line in lines)
    width = max(14, *(len(cell) + 2 for line in lines for cell in line[1 : 1 + models]))
    texts = []
    for title, *cells in lines:
        values = "".join(f"{cell:>{width}}" for cell in cells[:models])
        texts.append("   ".join([f"{title:{title_width}}{values}", *cells[models:]]).rstrip())
    return "\n".join(texts)


def markdown(lines, numbers=True):
    """A Markdown table from rows of text, header first. `numbers`: right-align all columns but the first."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    head, *rows = ["|" + "".join(f" {cell} |" if cell else " |" for cell in line) for line in lines]
    return "\n".join([head, "|---" + ("|---:" if numbers else "|---") * (len(lines[0]) - 1) + "|", *rows])


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


def explanation(task, candidates, results, seconds, conditions):
    """What the numbers mean and how they were measured."""
    counts = sorted({len(times) for timed in seconds.values() for times in timed.values()})
    batches = f"{counts[0]} to {counts[-1]} batches" if len(counts) > 1 else f"{counts[0]} batches"
    files = ", ".join(f"`{answers.file}` ({len(answers.labels):,} rows)" for answers in candidates["student"].answers)
    text = (
        f"Scores: {files}. Parameters: without the projection onto the teacher's width, which serves training only. "
        f"Latency: median and 95th percentile of {batches}, from token ids to logits, without padding, with the models "
        f"taking turns; {conditions}."
    )
    if "baseline" in candidates:
        metric, settings = task.metrics[0], read_record(candidates["baseline"].folder).get("settings", {})
        text += (
            "\n\nBaseline: the student's architecture, its weights drawn at random and trained on the gold labels "
            "alone, without distillation, for as many steps on the same rows as the prediction step (batches of "
            f"{settings.get('train_batch_size')}, learning rate {settings.get('learning_rate')}). The student's "
            f"{metric} differs from the baseline's by {results['student'][metric] - results['baseline'][metric]:+.4f}."
        )
    return text


def step_section(task, step):
    """The report's section on one training: settings, first and last losses (by layer where it has them), scores."""
    told = {"num_train_epochs": "epochs", "train_batch_size": "batch size", "learning_rate": "learning rate"}
    told |= {"layer_map": "layers", "attention_loss": "attention"} if step.layered else {"temperature": "temperature"}
    settings = [f"{words} {step.settings[name]}" for name, words in told.items() if name in step.settings]
    parts = [f"## {step.title.capitalize()}", ", ".join([f"`{step.folder}`", *settings])]
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


def layer_title(layer):
    return f"layer {layer}" if layer else "embeddings"


def training_steps(folder):
    """The trainings that led to a model folder, oldest first, as far as their folders can be found: [Step]."""
    steps, folder, seen = [], Path(folder), set()
    while folder and (record := read_record(folder)):
        seen.add(folder.resolve())
        settings, curves = record["settings"], read_curves(folder / HISTORY_NAME)
        title = STEPS.get(settings.get("step") or record.get("script"), "training")
        layered, losses = {}, {}
        for name, curve in curves["losses"].items():
            kind, _, layer = name.partition("/")
            if layer:
                layered.setdefault(kind, {})[int(layer)] = curve
            else:
                losses[name] = curve
        steps.insert(0, Step(title, folder, settings, layered, losses, curves["evaluation"]))
        # The record identifies the run's initial student by content, not by path.
        wanted = record["inputs"].get("student_model")
        places = sorted(path.parent for path in folder.parent.glob(f"*/{HISTORY_NAME}"))
        # 4_task_distill_mid/reviews for 5_task_distill_out/reviews
        places += sorted(path.parent for path in folder.parent.parent.glob(f"*/{folder.name}/{HISTORY_NAME}"))
        places += [Path(at_root("4_task_distill_mid")), Path(at_root("3_general_distill"))]
        folder = next((each for each in places if each.resolve() not in seen and fingerprint(each) == wanted), None)
    return steps


def make_panels(task, candidates, results, steps):
    """The picture's panels: scores, answers, dev score by step, and the losses of each step, latest step first."""
    scores = {metric: {name: results[name][metric] for name in candidates} for metric in results["student"]}
    panels = [partial(drawing.bars, title="dev scores", groups=scores)]
    for name in ("student", "teacher"):
        if name in candidates:
            answers = candidates[name].answers[0]
            panels.append(task.kind.panel(task, f"{name}'s answers to {answers.file}", answers))
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
