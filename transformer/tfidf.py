"""What a user would try first: TF-IDF of words and word pairs with a linear model, from scikit-learn."""

import logging
import pickle
from itertools import islice
from pathlib import Path

import numpy as np

from transformer.evaluation import Answers, Candidate
from transformer.tasks.task import TaskFile

TITLE = "TF-IDF"  # the column in the report


class TextModel:
    """A scikit-learn pipeline in a comparison of models."""

    def __init__(self, pipeline):
        self.predict = pipeline.predict
        vocabulary, linear = (step for _, step in pipeline.steps)
        self.weights = len(vocabulary.idf_) + linear.coef_.size + np.size(linear.intercept_)

    def eval(self):
        return self

    def num_parameters(self, part=""):
        return 0 if part else self.weights


def first_try(task, folder, limit, student):
    """{TITLE: Candidate}, trained on the task's own training file; {} for a task whose rows are not one text with one
    answer. `folder`: the task's files; limit: rows to read, None = all; student: the `Candidate` with the gold
    labels."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline

    linear = task.kind.linear_model()
    rows = list(islice(TaskFile(Path(folder) / task.train_file, task), limit)) if linear else []
    targets = [task.kind.target(row.label, task.labels) for row in rows]
    if len(task.text_columns) != 1 or len(set(targets)) < 2:
        return {}
    pipeline = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\w+|[^\w\s]"), linear)
    pipeline.fit([row.texts[0] for row in rows], targets)
    answers, texts = [], []
    for name, gold in zip(task.dev_files, student.answers, strict=True):
        texts.append([row.texts[0] for row in islice(TaskFile(Path(folder) / name, task), limit)])
        answers.append(Answers(gold.file, pipeline.predict(texts[-1]), gold.labels))
    logging.info("%s: trained on %d rows of %s", TITLE, len(rows), task.train_file)
    size = len(pickle.dumps(pipeline))
    return {TITLE: Candidate(Path(folder), TextModel(pipeline), None, student.dev, answers, size, texts[0])}
