"""The report on a task's student: a table beside its teacher and its baseline, its answers, and how it was trained.

`Candidate`s come in, one for each column of the table; `write_report` measures them, prints the table and leaves
report.md and, where matplotlib is installed, report.png.
"""

import platform
import re
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from transformer import drawing, stages
from transformer.evaluation import BATCH_SIZES, confusion_matrix, measure_speed, results_of
from transformer.files import atomic_write
from transformer.modeling import describe, weights_file
from transformer.training import HISTORY_NAME

KINDS = {"att_loss": "attention", "rep_loss": "hidden states"}  # of the losses that every layer has
STEPS = {
    "general": "general distillation",
    "intermediate": "intermediate step",
    "prediction": "prediction step",
    "finetune": "fine-tuning",
}


class Candidate(NamedTuple):
    """A model of the report. `dev`: its dev sets, (file name, Sequences); `answers`: `evaluation.answer` to them."""

    folder: Path
    model: torch.nn.Module
    tokenizer: object
    dev: list
    answers: list


class Column(NamedTuple):
    """What the table tells of a model: its weights, its file's MB, {metric: value}, {batch size: Speed}."""

    parameters: int
    megabytes: float
    results: dict
    speeds: dict


class Step(NamedTuple):
    """A training that led to the student: its title, its folder, its settings, its curves (`drawing.read_curves`)."""

    title: str
    folder: Path
    settings: dict
    curves: dict


def write_report(task, candidates, output, args, place):
    """Measure the candidates, {name: Candidate} with a "student" among them, print the table, write the report's files.

    The columns are in the candidates' order. Returns the files, of the folder `output`.
    """
    speeds = measure_speed(
        {name: (each.model, each.tokenizer, each.dev[0][1]) for name, each in candidates.items()},
        args.max_seq_length,
        place,
    )
    columns = {
        name: Column(
            each.model.num_parameters(),
            weights_file(each.folder).stat().st_size / 1e6,
            results_of(task, each.answers),
            speeds[name],
        )
        for name, each in candidates.items()
    }
    conditions = f"{args.max_seq_length} tokens, {conditions_of(place)}"
    print(f"\n{format_table(columns)}\nlatency and throughput: {conditions}\n", flush=True)
    steps = training_steps(candidates["student"].folder)
    picture = output / stages.PICTURE_NAME
    drawn = drawing.save_panels(picture, make_panels(task, candidates, columns, steps))
    parts = [
        f"# {task.name}: {', '.join(candidates)}",
        markdown(table_of(columns)),
        explanation(task, candidates, columns, conditions),
        f"![scores, answers and losses]({picture.name})" if drawn else "",
        models_section(candidates),
        answers_section(task, candidates, columns),
        *(step_section(task, step) for step in steps),
    ]
    with atomic_write(output / stages.REPORT_NAME) as file:
        file.write("\n\n".join(part for part in parts if part) + "\n")
    return [output / stages.REPORT_NAME, *([picture] if drawn else [])]


def reported(folder):
    """Which models the report in a folder has a column for; none where there is no report."""
    path = Path(folder) / stages.REPORT_NAME
    found = re.search(r"^\| \|(.*)\|$", path.read_text(encoding="utf-8"), re.M) if path.is_file() else None
    return [name.strip() for name in found[1].split("|")] if found else []


# --- the table


def smaller(teacher, student):
    return f"{teacher / student:.1f}x smaller"


def faster(teacher, student):
    """Of times."""
    return f"{teacher / student:.1f}x faster"


def more(teacher, student):
    """Of examples in a time."""
    return f"{student / teacher:.1f}x faster"


def share(teacher, student):
    """Of scores; nothing where the teacher's is not above 0."""
    return f"{100 * student / teacher:.1f}% of the teacher's" if teacher > 0 else ""


def table_of(columns):
    """The table's head and its rows, each a list of texts: a title, a value for each column, and with a teacher what
    the student is to it."""
    rows = [  # title, layout, what to say of the student beside the teacher, values
        ("parameters", "{:,}", smaller, [column.parameters for column in columns.values()]),
        ("size on disk, MB", "{:.1f}", smaller, [column.megabytes for column in columns.values()]),
    ]
    for name in columns["student"].results:
        rows.append((f"dev {name}", "{:.4f}", share, [column.results[name] for column in columns.values()]))
    for size in BATCH_SIZES:
        speeds = [column.speeds[size] for column in columns.values()]
        rows += [
            (f"latency p50, batch of {size}, ms", "{:.2f}", faster, [speed.p50 for speed in speeds]),
            (f"latency p95, batch of {size}, ms", "{:.2f}", faster, [speed.p95 for speed in speeds]),
            (f"sentences per second, batch of {size}", "{:,.0f}", more, [speed.per_second for speed in speeds]),
        ]
    names = list(columns)
    ratios = "teacher" in names
    head = ["", *names, *(["student's ratio" if len(names) > 2 else "ratio"] if ratios else [])]
    lines = [head]
    for title, layout, comparison, values in rows:
        found = dict(zip(names, values, strict=True))
        words = [comparison(found["teacher"], found["student"])] if ratios else []
        lines.append([title, *map(layout.format, values), *words])
    return lines


def format_table(columns):
    """The table for the terminal: titles to the left, values to the right of their columns."""
    lines = table_of(columns)
    title_width = max(24, *(len(line[0]) for line in lines))
    width = max(14, *(len(cell) + 2 for line in lines for cell in line[1 : 1 + len(columns)]))
    return "\n".join(
        (
            f"{line[0]:{title_width}}"
            + "".join(f"{cell:>{width}}" for cell in line[1 : 1 + len(columns)])
            + "".join(f"   {cell}" for cell in line[1 + len(columns) :])
        ).rstrip()
        for line in lines
    )


def markdown(lines, numbers=True):
    """A Markdown table from rows of texts, the head first. `numbers`: all but the first column stand to the right."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    head, *rows = ["|" + "".join(f" {cell} |" if cell else " |" for cell in line) for line in lines]
    return "\n".join([head, "|---" + ("|---:" if numbers else "|---") * (len(lines[0]) - 1) + "|", *rows])


def conditions_of(place):
    """What latencies depend on, in one phrase: device, threads, precision, version."""
    threads = torch.get_num_threads()
    return (
        f"{device_name(place.device)}, {threads} thread{'s' if threads > 1 else ''}, "
        f"{str(place.dtype).removeprefix('torch.')}, torch {torch.__version__}"
    )


def device_name(device):
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.is_file() else ""
    found = re.search(r"^model name\s*: *(.+)$", text, re.M)
    return found[1].strip() if found else platform.processor() or platform.machine() or device.type


# --- what is written under it


def explanation(task, candidates, columns, conditions):
    """What the numbers mean and how they came about."""
    counts = {speed.repetitions for column in columns.values() for speed in column.speeds.values()}
    times = f"{min(counts)} to {max(counts)} batches" if len(counts) > 1 else f"{max(counts)} batches"
    files = ", ".join(f"`{answers.file}` ({len(answers.labels):,} rows)" for answers in candidates["student"].answers)
    text = (
        f"Scores: {files}. Parameters: without the projection onto the teacher's width, which serves training only. "
        f"Latency: the median and the 95th percentile of {times}, from token ids to logits, without padding, the "
        f"models by turns; {conditions}."
    )
    if "baseline" not in candidates:
        return text
    metric = task.metrics[0]
    gain = columns["student"].results[metric] - columns["baseline"].results[metric]
    settings = stages.read_record(candidates["baseline"].folder).get("settings", {})
    return (
        f"{text}\n\nBaseline: the student's architecture, its weights drawn at random and trained on the gold labels "
        f"alone, without distillation, for as many steps on the same rows as the prediction step took (batches of "
        f"{settings.get('train_batch_size')}, learning rate {settings.get('learning_rate')}). "
        f"The student's {metric} differs from the baseline's by {gain:+.4f}."
    )


def models_section(candidates):
    rows = [[name, f"`{each.folder}`", describe(each.model)] for name, each in candidates.items()]
    return "## Models\n\n" + markdown([["", "folder", "architecture"], *rows], numbers=False)


def answers_section(task, candidates, columns):
    """Confusion matrices by dev set, or for regression how scores and gold scores go together."""
    if task.regression:
        metrics = columns["student"].results
        rows = [[name, *(f"{columns[name].results[metric]:.4f}" for metric in metrics)] for name in candidates]
        return "## Answers against gold scores\n\n" + markdown([["correlation", *metrics], *rows])
    names, texts = class_titles(task), []
    for number, (file, *_) in enumerate(candidates["student"].answers):
        for name, each in candidates.items():
            counts = confusion_matrix(each.answers[number], len(names))
            lines = [[f"gold label of `{file}`", *(f"{name}: {label}" for label in names), "right"]]
            for label, row, right in zip(names, counts, counts.diagonal(), strict=True):
                lines.append([label, *(f"{count:,}" for count in row), f"{right / max(row.sum(), 1):.1%}"])
            texts.append(markdown(lines))
    return "## Answers against gold labels\n\n" + "\n\n".join(texts)


def class_titles(task):
    return task.label_names or task.labels


def step_section(task, step):
    """What a training's losses came to, layer by layer where it has layers."""
    layered, plain = by_layer(step.curves["losses"])
    told = {"num_train_epochs": "epochs", "train_batch_size": "batch size", "learning_rate": "learning rate"}
    told |= {"layer_map": "layers", "attention_loss": "attention"} if layered else {"temperature": "temperature"}
    settings = [f"{words} {step.settings[name]}" for name, words in told.items() if name in step.settings]
    parts = [f"## {step.title.capitalize()}", ", ".join([f"`{step.folder}`", *settings])]
    kinds = list(layered)
    if layered:
        head = ["layer", *(f"{KINDS[kind]}, {when}" for kind in kinds for when in ("first", "last"))]
        layers = sorted({layer for curves in layered.values() for layer in curves})
        rows = [
            [layer_title(layer), *(cell for kind in kinds for cell in first_and_last(layered[kind].get(layer)))]
            for layer in layers
        ]
        parts.append(markdown([head, *rows]))
    for name, points in plain.items():
        parts.append(f"{name}: {points[0][1]:.4f} at step {points[0][0]}, {points[-1][1]:.4f} at step {points[-1][0]}")
    for metric in task.metrics[:1]:
        if points := step.curves["evaluation"].get(metric):
            best = max(points, key=lambda point: point[1])
            parts.append(f"dev {metric}: best {best[1]:.4f} at step {best[0]}, at the end {points[-1][1]:.4f}")
    return "\n\n".join(parts)


def by_layer(losses):
    """Curves {"att_loss/1": points, ...} as {"att_loss": {1: points, ...}, ...}, and those that have no layers."""
    layered, plain = {}, {}
    for name, points in losses.items():
        kind, _, layer = name.partition("/")
        if kind in KINDS and layer.isdecimal():
            layered.setdefault(kind, {})[int(layer)] = points
        else:
            plain[name] = points
    return layered, plain


def layer_title(layer):
    return f"layer {layer}" if layer else "embeddings"


def first_and_last(points):
    return [f"{points[0][1]:.4f}", f"{points[-1][1]:.4f}"] if points else ["", ""]


# --- how the student came about


def training_steps(folder):
    """The trainings that led to a model folder, the first one first, as far as they can be found: [Step].

    A run's record tells by content, not by place, which student it started from. That one is looked for beside the
    folder and among the stages' own folders.
    """
    steps, folder, seen = [], Path(folder), set()
    while folder is not None and (record := stages.read_record(folder)):
        seen.add(folder.resolve())
        name = "general" if record.get("script") == "general_distill" else record["settings"].get("step")
        curves = drawing.read_curves(folder / HISTORY_NAME)
        steps.insert(0, Step(STEPS.get(name, "training"), folder, record["settings"], curves))
        wanted = record["inputs"].get("student_model")
        beside = sorted(path.parent for path in folder.parent.glob(f"*/{HISTORY_NAME}"))
        others = [*beside, Path(stages.INTERMEDIATE_STUDENT), Path(stages.GENERAL_STUDENT)]
        fitting = (each for each in others if each.resolve() not in seen and stages.fingerprint(each) == wanted)
        folder = next(fitting, None) if wanted else None
    return steps


def make_panels(task, candidates, columns, steps):
    """The picture's panels: scores, answers, dev score by step, and the losses of the steps, the latest first."""
    results = columns["student"].results
    panels = [
        partial(
            drawing.bars,
            title="dev scores",
            groups={metric: {name: column.results[metric] for name, column in columns.items()} for metric in results},
        )
    ]
    for name in ("student", "teacher"):
        if name in candidates:
            panels.append(answers_panel(task, name, candidates[name].answers[0]))
    single, layered = dev_score_panel(task, candidates, columns, steps), []
    for step in reversed(steps):
        of_layers, plain = by_layer(step.curves["losses"])
        for kind, curves in of_layers.items():
            curves = {layer_title(layer): points for layer, points in sorted(curves.items())}
            title = f"loss of {KINDS[kind]}, {step.title}"
            layered.append(partial(drawing.lines, title=title, curves=curves, log=True, ordered=True))
        if plain:
            single.append(partial(drawing.lines, title=f"loss, {step.title}", curves=plain, log=True))
    while single or layered:  # in a picture of three columns the two of one step stand side by side
        panels += [*single[:1], *layered[:2]]
        single, layered = single[1:], layered[2:]
    return panels


def answers_panel(task, name, answers):
    title = f"{name}'s answers to {answers.file}"
    if task.regression:
        return partial(drawing.scatter, title=title, gold=answers.labels, scores=answers.predictions)
    names = class_titles(task)
    return partial(drawing.matrix, title=title, counts=confusion_matrix(answers, len(names)), names=names)


def dev_score_panel(task, candidates, columns, steps):
    """[panel] of the student's dev score by step beside the baseline's and the teacher's last one; [] without any."""
    metric = task.metrics[0]
    logs = {"student": steps[-1].curves if steps else {}}
    if "baseline" in candidates:
        logs["baseline"] = drawing.read_curves(candidates["baseline"].folder / HISTORY_NAME)
    curves = {name: log["evaluation"][metric] for name, log in logs.items() if log and metric in log["evaluation"]}
    levels = {"teacher": columns["teacher"].results[metric]} if "teacher" in columns else {}
    return [partial(drawing.lines, title=f"dev {metric} by step", curves=curves, levels=levels)] if curves else []
