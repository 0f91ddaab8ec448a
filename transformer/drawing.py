"""Pictures of trainings and results, where matplotlib is installed. A picture is a grid of panels, functions that draw
into an axis."""

import functools
import importlib.util
import logging
import math
import warnings
from pathlib import Path

from transformer.files import atomic_write

# Name prefixes of fonts for Chinese, Japanese and Korean labels, which matplotlib's own font cannot show.
FONTS = ("Noto Sans CJK", "WenQuanYi", "Microsoft YaHei", "SimHei", "PingFang", "Hiragino Sans", "Arial Unicode")


def save_panels(path, panels):
    """Draw the panels into a PNG file. Returns False, without a file, if there is no panel, or matplotlib is missing or
    fails, which is only worth a warning."""
    Path(path).unlink(missing_ok=True)  # an old picture would be wrong
    if importlib.util.find_spec("matplotlib") is None or not panels:
        return False
    try:
        _draw(path, panels)
    except Exception as error:  # a broken matplotlib must not fail a finished run
        logging.warning("no %s: %s", Path(path).name, error)
        return False
    return True


@functools.cache
def fonts():
    """The names of the fonts of a picture, matplotlib's own first."""
    import matplotlib
    from matplotlib import font_manager

    installed = sorted(font_manager.get_font_names(), reverse=True)  # ... SC, simplified Chinese, before ... JP
    return [
        *matplotlib.rcParams["font.family"],
        *(name for start in FONTS for name in installed if name.startswith(start)),
    ]


@functools.cache
def drawable(text):
    """Whether a picture's fonts have all characters of a text. True where no picture can be drawn."""
    try:
        from matplotlib import font_manager

        properties = (font_manager.FontProperties(family=[name]) for name in fonts())
        faces = [font_manager.get_font(font_manager.findfont(each)) for each in properties]
    except Exception:  # matplotlib is missing or broken
        return True
    return all(any(face.get_char_index(ord(character)) for face in faces) for character in text)


def _draw(path, panels):
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot: no window, no global state

    # Labels come from users: a dollar sign is not a formula, and a character without a font is not worth a warning.
    with matplotlib.rc_context({"font.family": fonts(), "text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        # The fewest empty cells, then the squarest grid.
        columns = min((3, 2, 4), key=lambda count: (-len(panels) % count, abs(count - math.sqrt(len(panels)))))
        columns = min(columns, len(panels))
        rows = math.ceil(len(panels) / columns)
        figure = Figure(figsize=(5.2 * columns, 4 * rows), layout="constrained")
        for number, panel in enumerate(panels, 1):
            panel(figure.add_subplot(rows, columns, number))
        with atomic_write(path, "wb") as file:
            figure.savefig(file, format="png", dpi=100)


def lines(axis, title, curves, log=False, levels=(), ordered=False):
    """Draw curves by step, {label: [(step, value)]}. `levels`: {label: value} of horizontal lines; `ordered`: curves of
    layers get graded colours."""
    from matplotlib import colormaps, ticker

    for number, (label, points) in enumerate(curves.items()):
        colour = {"color": colormaps["viridis"](number / max(len(curves) - 1, 1) * 0.9)} if ordered else {}
        axis.plot(*zip(*points, strict=True), marker="." if len(points) < 20 else "", label=label, **colour)
    for number, (label, value) in enumerate(dict(levels).items()):
        axis.axhline(value, linestyle="--", color=f"C{number + 7}", label=f"{label} {value:.4f}")
    axis.set(title=title, xlabel="optimizer step")
    axis.xaxis.set_major_locator(ticker.MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    positive = [value for points in curves.values() for _, value in points if value > 0]
    if log and positive:
        axis.set_yscale("log")
        if max(positive) < 100 * min(positive):
            axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        # Within a single power of ten there may be no major tick to label, only minor ones.
        axis.yaxis.set_minor_formatter("{x:g}" if max(positive) < 10 * min(positive) else ticker.NullFormatter())
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small", ncols=1 + (len(curves) + len(levels)) // 7)


def bars(axis, title, groups, intervals=None):
    """Draw a group of bars per metric, {name: {label: value}}, with the values above them. `intervals`: {name: {label:
    (low, high)}}."""
    labels = list(next(iter(groups.values())))
    width, few = 0.8 / len(labels), len(groups) * len(labels) < 7
    for number, label in enumerate(labels):
        places = [place + (number - (len(labels) - 1) / 2) * width for place in range(len(groups))]
        heights, errors = [values[label] for values in groups.values()], None
        if intervals:
            ends = [intervals[name][label] for name in groups]
            # A score may lie outside its interval by rounding; an error bar has no negative length.
            pairs = zip(heights, ends, strict=True)
            errors = [*zip(*((max(value - low, 0), max(high - value, 0)) for value, (low, high) in pairs), strict=True)]
        drawn = axis.bar(places, heights, width * 0.92, label=label, yerr=errors, ecolor="dimgray", capsize=3)
        axis.bar_label(drawn, fmt="%.4f" if few else "%.3f", padding=2, fontsize="small" if few else "x-small")
    lowest = min(value for values in groups.values() for value in values.values())
    lowest = min([lowest, *(low for ends in (intervals or {}).values() for low, _ in ends.values())])
    axis.set(title=title, ylim=(min(lowest * 1.15, 0), 1.32), xlim=(-0.7, len(groups) - 0.3))
    axis.set_xticks(range(len(groups)), list(groups))
    axis.set_yticks([tick / 5 for tick in range(math.floor(min(lowest, 0) * 5), 6)])
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    axis.legend(fontsize="small", ncols=min(len(labels), 4), loc="upper center")


def matrix(axis, title, counts, names, others=None):
    """Draw a confusion matrix (C, C) with its counts. The colour is a cell's share of its true class. `others`: the
    name of one more column, for answers that have no column of their own."""
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    few, size = len(names) < 7, max(10 - len(names) / 4, 5.5)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row in range(len(names) if len(names) < 15 else 0):  # for more classes the colours must do
        for column in range(counts.shape[1]):
            share = f"\n{shares[row, column]:.1%}" if few else ""
            style = {"fontsize": size, "color": "white" if shares[row, column] > 0.5 else "black"}
            axis.text(column, row, f"{counts[row, column]:,}{share}", ha="center", va="center", **style)
    axis.set(title=title, xlabel="answer", ylabel="gold label")
    names = [name if len(name) < 19 else f"{name[:8]}…{name[-9:]}" for name in names]
    upright = len(names) > 8 or sum(map(len, names)) > 45
    answers = [*names, others] if others else names
    axis.set_xticks(range(len(answers)), answers, rotation=90 if upright else 0, fontsize=size)
    axis.set_yticks(range(len(names)), names, rotation=0 if upright else 90, va="center", fontsize=size)


def scatter(axis, title, gold, scores, limits):
    """Draw scores (N,) against gold scores, and the line where both are equal. `limits`: (low, high) of both axes."""
    low, high = map(float, limits)
    margin = (high - low) * 0.04 or 1
    limits = low - margin, high + margin
    axis.scatter(gold, scores, s=9, alpha=0.5)
    axis.plot(limits, limits, linestyle="--", color="gray", label="equal")
    axis.set(title=title, xlabel="gold score", ylabel="answer", xlim=limits, ylim=limits, aspect="equal")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")


def points(axis, title, places, x, y):
    """Draw named points, {name: (x, y)}, on a logarithmic x axis. x, y: the axes' labels."""
    from matplotlib import ticker

    for name, place in places.items():
        axis.plot(*place, "o", label=name, alpha=0.7)
    axis.margins(x=0.25, y=0.3)  # room for the legend, also with two points
    axis.set(title=title, xlabel=x, ylabel=y, xscale="log")
    axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(ticker.NullFormatter())
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
