"""The comparison of a student with its teacher, its exports and its baselines: one table, shown in several ways."""

from functools import partial
from typing import NamedTuple

import numpy as np

from transformer import drawing

RATIOS = {  # the student in relation to the teacher, for each kind of row
    "size": lambda teacher, student: f"{teacher / student:.1f}x smaller",
    "score": lambda teacher, student: f"{100 * student / teacher:.1f}% of the teacher's" if teacher > 0 else "",
    "time": lambda teacher, student: f"{teacher / student:.1f}x faster",
    "rate": lambda teacher, student: f"{student / teacher:.1f}x faster",
}


# The columns of a student's exports: those in int8 for this suite and for PyTorch alone, and those for onnxruntime.
EXPORTED = ("int8", "int8 model.pt", "onnx", "onnx int8")


class Measured(NamedTuple):
    """What was measured of the candidates."""

    results: dict  # {name: {metric: value}}
    samples: dict  # {name: {metric: (R,)}}, see `resampled_results`
    seconds: dict  # see `measure_speed`
    own_seconds: dict = {}  # likewise, with dev rows as they are


class Row(NamedTuple):
    """A row of the table; a model that it does not concern has no value."""

    title: str
    layout: str  # for `str.format`
    kind: str | None  # of ratio
    values: dict  # {name: number, or (low, high)}


def rows_of(task, candidates, measured):
    """The table's `Row`s."""
    models = {name: each.model for name, each in candidates.items()}
    results, inner = measured.results, {name: model.num_parameters("bert.embeddings") for name, model in models.items()}
    rows = [
        Row("parameters", "{:,}", "size", {name: model.num_parameters() for name, model in models.items()}),
        Row("of which embeddings", "{:,}", "size", {name: count for name, count in inner.items() if count}),
        Row("size on disk, MB", "{:.1f}", "size", {name: each.bytes() / 1e6 for name, each in candidates.items()}),
    ]
    for metric in results["student"]:
        rows.append(Row(f"dev {metric}", "{:.4f}", "score", {name: results[name][metric] for name in candidates}))
        ends = {name: interval(measured.samples[name][metric]) for name in candidates}
        rows.append(Row(f"dev {metric}, 95% interval", "{0[0]:.3f} to {0[1]:.3f}", None, ends))
    rows += [agreement_row(task, candidates, "teacher")] if "teacher" in candidates else []
    rows += [agreement_row(task, candidates, "student")] if set(EXPORTED) & set(candidates) else []
    unit = "windows" if candidates["student"].in_windows else "sentences"
    for whose, seconds in (("", measured.seconds), (", own lengths", measured.own_seconds)):
        for size, timed in seconds.items():
            for percent in (50, 95):
                latencies = {name: float(np.percentile(times, percent)) * 1000 for name, times in timed.items()}
                rows.append(Row(f"latency p{percent}, batch of {size}{whose}, ms", "{:.2f}", "time", latencies))
            rates = {name: size / float(np.mean(times)) for name, times in timed.items()}
            rows.append(Row(f"{unit} per second, batch of {size}{whose}", "{:,.0f}", "rate", rates))
    return rows


def table_of(rows, models):
    """The table of `rows_of` as rows of text, header first: title, a value for each of the `models` (their names) and,
    with a teacher, the student's ratio."""
    taught = "teacher" in models
    ratio = ["student's ratio" if len(models) > 2 else "ratio"] if taught else []
    lines = [["", *models, *ratio]]
    for title, layout, kind, values in rows:
        ratio = [RATIOS[kind](values["teacher"], values["student"]) if kind else ""] if taught else []
        cells = [layout.format(values[name]) if name in values else "" for name in models]
        lines.append([title, *cells, *ratio])
    return lines


def summary(task, rows):
    """One sentence on the student, from the table's `rows`."""
    by_title = {row.title: row.values for row in rows}
    metric = task.metrics[0]
    scores, sizes = by_title[f"dev {metric}"], by_title["size on disk, MB"]
    times = by_title["latency p50, batch of 1, ms"]
    unit = "window" if "windows per second, batch of 1" in by_title else "text"
    parts = [f"The student's {metric} on dev is {scores['student']:.4f}"]
    if "teacher" in scores:
        kept, smaller, faster = (
            RATIOS[kind](values["teacher"], values["student"])
            for kind, values in (("score", scores), ("size", sizes), ("time", times))
        )
        parts += [kept] if kept else []
        parts.append(f"with {sizes['student']:.1f} MB ({smaller}) and {times['student']:.2f} ms a {unit} ({faster})")
    else:
        parts.append(f"with {sizes['student']:.1f} MB and {times['student']:.2f} ms a {unit}")
    text = ", ".join(parts)
    if forms := [name for name in EXPORTED if name in scores]:
        small, fast = min(forms, key=sizes.get), min(forms, key=times.get)
        text += f"; its smallest export is {small} with {sizes[small]:.1f} MB ({metric} {scores[small]:.4f})"
        text += f", the fastest {fast} with {times[fast]:.2f} ms ({metric} {scores[fast]:.4f})"
    return f"{text}."


def interval(samples):
    """The ends of the 95% interval of a number with these bootstrap samples, (R,)."""
    return tuple(np.percentile(samples, (2.5, 97.5)).tolist())


def agreement_row(task, candidates, other):
    """The table's row on how alike each model's answers are to those of `other`, one of them."""
    answers = {name: np.concatenate([file.predictions for file in each.answers]) for name, each in candidates.items()}
    found = {name: task.kind.agreement(each, answers[other]) for name, each in answers.items() if name != other}
    title = next(iter(found.values()))[0].replace("teacher", other)
    return Row(title, "{:.4f}", None, {name: value for name, (_, value) in found.items()})


def format_table(lines, models):
    """Format the table for the terminal: titles left-aligned, the `models` columns of values right-aligned."""
    title_width = max(len(line[0]) for line in lines)
    widths = [max(14, *(len(line[column]) + 2 for line in lines)) for column in range(1, models + 1)]
    texts = []
    for title, *cells in lines:
        values = "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=False))
        texts.append("   ".join([f"{title:{title_width}}{values}", *cells[models:]]).rstrip())
    return "\n".join(texts)


def markdown(lines, numbers=True):
    """A Markdown table from rows of text, header first. `numbers`: right-align all columns but the first."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    head, *rows = ["|" + "".join(f" {cell} |" if cell else " |" for cell in line) for line in lines]
    return "\n".join([head, "|---" + ("|---:" if numbers else "|---") * (len(lines[0]) - 1) + "|", *rows])


def panels(task, rows):
    """The pictures of score against size and against latency."""
    by_title, metric = {row.title: row.values for row in rows}, task.metrics[0]
    scores = by_title[f"dev {metric}"]
    found = []
    for title in ("size on disk, MB", "latency p50, batch of 1, own lengths, ms"):
        points = {name: (value, scores[name]) for name, value in by_title.get(title, {}).items()}
        labels = {"title": f"dev {metric} against {title.split(',')[0]}", "x": title, "y": f"dev {metric}"}
        found.append(partial(drawing.points, places=points, **labels))
    return found
