"""A finished model's answers: for a test set in the format of the GLUE site, or for the texts of any file."""

import contextlib
import itertools
import logging
import re
import sys
from pathlib import Path

from tqdm import tqdm

from transformer.checkpoint import label_names
from transformer.downloads import upload
from transformer.files import UserError, atomic_write
from transformer.glue import TASKS
from transformer.outputs import check_apart
from transformer.tasks.task import STANDARD_INPUT, label_order, read_rows

ANSWERS_NAME = "predictions.tsv"
CHUNK_ROWS = 4096  # rows in memory at a time; sorted by length, they share batches


def predict(run, student, output_dir, source=None):
    """Answer the texts of the file `source`, see `answer_texts`; without one the test files of the run's task and of
    other tasks that its models do, if they are there: MNLI's models also answer the diagnostic set AX."""
    run.warn_of_answers(student)
    if source:
        return answer_texts(run, student, source, output_dir)
    model, tokenizer = run.load_finished(student)
    labels, folder, written = label_order(run.task, label_names(model.config)), Path(output_dir), []
    found = [(run.task, run.folder)]
    for other in TASKS.values():
        if other.trained_as != run.task.name or other.source == run.task.source:  # MNLI-mm's file is MNLI's own
            continue
        folders = (run.folder, run.folder.parent / other.name)
        found += [(other, place) for place in folders if (place / other.test_files[0]).is_file()][:1]
    check_apart(folder, ((task.test_files[0], data_dir / task.test_files[0]) for task, data_dir in found))
    # Every file is read before the first one is written, so that a bad one leaves earlier predictions as they were.
    read = [(task, run.read(task.test_files, tokenizer, labels, False, task, data_dir)) for task, data_dir in found]
    for task, sets in [(task.as_in(model.config), sets) for task, sets in read]:
        for name, (_, sequences) in zip(task.submissions, sets, strict=True):
            predictions = task.kind.predictions(task, run.evaluator.outputs(model, sequences), sequences, labels)
            with atomic_write(folder / name) as file:
                file.writelines(task.kind.prediction_file(predictions, sequences.source))
            logging.info("%d predictions: %s", len(predictions), folder / name)
            written.append(folder / name)
    upload(written, run.provenance.data_url)


def check_source(source):
    """Raise UserError where there is no file to answer."""
    if source != STANDARD_INPUT and not Path(source).is_file():
        raise UserError(f"{source}: no such file; expected a file with texts, or - for standard input")


def answer_texts(run, student, source, output_dir):
    """Write the texts of the file `source`, each with the model's answer, to predictions.tsv in `output_dir`, or from
    standard input to standard output where `source` is "-". Raises UserError for a file without texts."""
    model, tokenizer = run.load_finished(student)
    task, answered = run.task.as_in(model.config), 0
    labels = label_order(task, label_names(model.config))
    path = None if source == STANDARD_INPUT else Path(output_dir) / ANSWERS_NAME
    if path and path.resolve() == Path(source).resolve():
        raise UserError(f"{source}: the answers would take its place; --output_dir writes elsewhere")
    rows = itertools.islice(read_rows(source, task), run.reading.limit)
    first = next(rows, None)
    if first is None:
        raise UserError(f"{source}: no texts to answer")
    rows, ids = itertools.chain([first], rows), [] if first.id is None else ["id"]
    there = " (in place of an earlier file)" if path and path.exists() else ""
    with contextlib.ExitStack() as opened:
        file = opened.enter_context(atomic_write(path)) if path else sys.stdout
        bar = opened.enter_context(tqdm(unit="row", total=count_lines(source) if path else None, disable=None))
        file.write(tab_separated([*ids, *task.text_columns, *task.kind.answer_columns(task, labels)]))
        while chunk := list(itertools.islice(rows, CHUNK_ROWS)):
            sequences = task.kind.encode(chunk, tokenizer, run.reading.lengths, labels)
            answers = task.kind.answer_rows(task, run.evaluator.outputs(model, sequences), sequences, labels)
            for row, cells in zip(chunk, answers, strict=True):
                file.write(tab_separated([*(row.id or "" for _ in ids), *row.texts, *cells]))
            file.flush()
            answered += len(chunk)
            bar.update(len(chunk))
    if path:
        logging.info("%d answers: %s%s", answered, path, there)
        upload([path], run.provenance.data_url)


def count_lines(path):
    """The number of line ends in a file, for the progress bar."""
    with open(path, "rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def tab_separated(cells):
    """A line of a table without quoting: tabs and line ends inside a cell become spaces."""
    return "\t".join(re.sub(r"[\t\r\n]", " ", cell) for cell in cells) + "\n"
