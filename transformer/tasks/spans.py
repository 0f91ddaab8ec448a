"""Answer spans: the answer to a question is a stretch of the text beside it, or there is none (SQuAD 1.1 and 2.0).

A long text is read in windows, each an example: [CLS] question [SEP] window [SEP]. Its outputs are the logits of the
answer's start and end at [CLS], which stands for "not in this window", and at the window's tokens. Targets (P,): START,
END, their sum or 0.
"""

import json
import re
from collections import Counter
from functools import cached_property, lru_cache, partial
from itertools import accumulate, islice, zip_longest
from string import punctuation
from textwrap import shorten
from typing import NamedTuple

import numpy as np
import torch

from transformer import drawing
from transformer.json_file import Field, whole
from transformer.modeling import TinyBertForQuestionAnswering
from transformer.tasks.kind import Kind

START, END = 1, 2
MOST_TOKENS = 30  # of a predicted answer, as in SQuAD's own baselines
GROUPS, DRAWN = 8, 6  # the commonest first words of questions in the report; the most groups in a picture
NO_ANSWER, SHOWN = "(no answer)", 200  # in a report; the most characters of an answer there
TEXT, PLACE = Field("a text", low=1), whole()
SPECIAL = re.compile(r"\[(?:UNK|SEP|PAD|CLS|MASK)\]")
# A graded answer: its text, F1 and exact match against its row's gold answers, and the question's first word.
GRADED = np.dtype([("text", object), ("f1", float), ("exact", float), ("asked", object)])


class Shape(dict):
    """A table for `str.translate`: "a" for a character inside words, "!" for one that is a word, " " for one between.
    `split`: text to a tokenizer's words."""

    def __init__(self, split):
        super().__init__()
        self.split = split

    def __missing__(self, code):
        self[code] = "a !"[min(len(self.split(f"a{chr(code)}a")), 3) - 1]
        return self[code]


shape_of = lru_cache(8)(Shape)


def stretches(text, split):
    """[(start, end)] of the parts of a raw text which a tokenizer reads each by itself: it makes a word of each, or
    nothing, and end to end these words are those of the text. `split`: text to the tokenizer's words."""
    shape = text.translate(shape_of(split))
    for found in SPECIAL.finditer(text) if "[" in text else ():
        shape = f"{shape[: found.start()]}!{'-' * (len(found[0]) - 1)}{shape[found.end() :]}"
    return [found.span() for found in re.finditer("a+|!-*", shape)]


class Pieces(NamedTuple):
    """The ids of a raw text's pieces, and where they stand in it."""

    ids: list
    starts: np.ndarray
    ends: np.ndarray


@lru_cache(1 << 16)  # words occur again
def cut(word, tokenizer):
    """[(id, start, end)] of a word's pieces: of each its own characters, or where they have not as many as the word, as
    after the removal of accents, all of them."""
    ids = tokenizer.ids(word)
    ends = list(accumulate(len(tokenizer.ids_to_tokens[each].removeprefix("##")) for each in ids))
    places = zip([0, *ends], ends, strict=False) if ends[-1:] == [len(word)] else [(0, len(word))] * len(ids)
    return [(piece, *place) for piece, place in zip(ids, places, strict=False)]


@lru_cache(64)  # questions about one text come one after the other
def pieces_of(text, tokenizer):
    """The `Pieces` of a raw text."""
    words = stretches(text, tokenizer.basic_tokenizer.tokenize)
    found = [(piece, start + a, start + b) for start, end in words for piece, a, b in cut(text[start:end], tokenizer)]
    ids, starts, ends = np.array(found, np.int64).reshape(-1, 3).T
    return Pieces(ids.tolist(), starts, ends)


class Passages:
    """A file's rows, to read them again, and what it takes to turn outputs into answers."""

    def __init__(self, rows, tokenizer, stride, limit):
        self.rows, self.tokenizer, self.stride, self.limit = rows, tokenizer, stride, limit

    def __iter__(self):
        return islice(self.rows, self.limit)

    @cached_property
    def read(self):
        """(question, text, its `Pieces`, gold answers) of each row."""
        found = []
        for row in self:
            (question, text), gold = row.texts, tuple(answer for answer, _ in row.label or ())
            found.append((question, text, pieces_of(text, self.tokenizer), gold))
        return found


def log_softmax(outputs, examples):
    """Logarithms of probabilities over each example's outputs: (P, 2) in float32, from outputs (P, 2)."""
    # By way of a padded tensor, and not with sums by index, whose order on a GPU differs from run to run.
    counts = torch.bincount(examples)
    places = torch.arange(len(examples), device=examples.device) - (counts.cumsum(0) - counts)[examples]
    padded = outputs.new_full((len(counts), int(counts.max()), 2), -torch.inf, dtype=torch.float32)
    padded = padded.index_put((examples, places), outputs.float())
    return padded.log_softmax(dim=1)[examples, places]


def normalized(text):
    """A text as the official scripts compare it: no capitals, punctuation (ASCII), articles or repeated spaces."""
    text = text.lower().translate(dict.fromkeys(map(ord, punctuation)))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def grade(text, gold):
    """(F1, exact match) of an answer, the best over its gold answers; "" answers right where there are none."""
    wanted = {each for answer in gold if (each := normalized(answer))} or {""}
    found = normalized(text)
    words, scores = found.split(), []
    for each in wanted:
        theirs = each.split()
        same = sum((Counter(words) & Counter(theirs)).values())
        scores.append(2 * same / (len(words) + len(theirs)) if words and theirs else float(words == theirs))
    return max(scores), float(found in wanted)


class Spans(Kind):
    """The head has two outputs a token, the answer's start and its end.

    Labels are ((text, place in the context), ...), () where the context has no answer; the first one is learned. Where
    dev has such rows, a model's `task.null_threshold` tells by how much the best score of no answer has to be above
    that of the best answer. Answers: `GRADED`; gold labels: (N,) tuples of texts.
    """

    model = TinyBertForQuestionAnswering
    metrics = {
        "f1": lambda predictions, gold: predictions["f1"].mean(),
        "exact": lambda predictions, gold: predictions["exact"].mean(),
    }
    offered = ("f1", "exact")
    label_types = list | dict  # a list of objects
    per_token = True
    has_labels, by_id = False, True
    untold = 'has no threshold for "no answer", so every question gets an answer; a model of SQuAD 2.0 may have '
    untold += '"task": {"null_threshold": 0} there'
    texts, label_columns = ("question", "context"), ("answers",)
    telling = slice(1, None)  # a model must not know dev's contexts from other questions
    max_seq_length, shortest = 384, 4
    lengths = ("max_seq_length", "doc_stride", "max_query_length")
    target_type = np.int8
    suffix, submission = ".json", "predictions"
    augmented = {".json": ".jsonl"}
    join = staticmethod("".join)

    def claims(self, said, table):
        first = table.first if table and said.get("label", "answers") == "answers" else None
        return isinstance(first, dict) and {*self.texts, "answers"} <= {*first}

    def num_outputs(self, task):
        return 2

    def id2label(self, task, labels):
        return {0: "start", 1: "end"}

    def parts(self, task, label):
        return tuple(text for text, _ in label) if isinstance(label, tuple) else ()

    def read_label(self, task, label):
        keys, label = ("text", "answer_start"), label if isinstance(label, list | dict) else [None]
        if isinstance(label, dict):  # of two lists, as Hugging Face's datasets have them
            pairs = list(zip_longest(*(each if isinstance(each := label.get(key), list) else [None] for key in keys)))
        else:
            pairs = [tuple(map(each.get, keys)) if isinstance(each, dict) else (None, None) for each in label]
        if not all(TEXT.fits(text) and PLACE.fits(place) for text, place in pairs):
            raise ValueError('a list of {"text": a text, "answer_start": its place in the context, a whole number}')
        return tuple(pairs)

    def check_row(self, texts, label):
        for text, start in label:
            if (there := texts[1][start : start + len(text)]) != text:
                found, wanted = there[:SHOWN], text[:SHOWN]
                raise ValueError(f"{wanted!r} at character {start} of the context, where it has {found!r}")

    def encode(self, task_file, tokenizer, lengths, labels, limit=None, pad=False):
        found = super().encode(task_file, tokenizer, lengths, labels, limit, pad)
        found.source = Passages(task_file, tokenizer, lengths.doc_stride, limit)
        return found

    def add_row(self, builder, number, row, tokenizer, lengths, labels):
        question, context = (pieces_of(text, tokenizer) for text in row.texts)
        room = lengths.max_seq_length - 3
        question = question.ids[: min(lengths.max_query_length, room // 2)]
        room -= len(question)
        step = min(lengths.doc_stride, room)
        for text, start in (row.label or ())[:1]:
            first = np.searchsorted(context.ends, start, "right")
            last = np.searchsorted(context.starts, start + len(text)) - 1
        for start in range(0, max(len(context.ids) - room, 0) + step, step):
            part, target = context.ids[start : start + room], None
            ids, _ = tokenizer.encode_pair(question, part)
            if row.label is not None:
                target = [0] * (1 + len(part))
                inside = row.label and start <= first <= last < start + len(part)
                target[first - start + 1 if inside else 0] += START
                target[last - start + 1 if inside else 0] += END
            answered = [0, *range(len(question) + 2, len(ids) - 1)]
            builder.add(ids, len(question) + 2, target, answered, number)

    def row_losses(self, outputs, targets, examples):
        # Each example has one start and one end.
        found = log_softmax(outputs, examples)
        return -(found[targets & START > 0, 0] + found[targets & END > 0, 1]) / 2

    def prediction_loss(self, student_outputs, teacher_outputs, temperature, examples):
        # Equation 10 for positions, of which examples have different numbers: so not averaged over them. The mean of
        # start and end, as in `gold_loss`.
        targets = log_softmax(teacher_outputs / temperature, examples).exp()
        found = log_softmax(student_outputs / temperature, examples)
        return -(targets * found).sum() / (2 * (examples.max() + 1))

    def tune(self, outputs, sequences):
        gold = [row[-1] for row in sequences.source.read]
        if all(gold):
            return {}
        found = find_answers(outputs, sequences)
        scores = [(grade(text, each)[0], grade("", each)[0]) for text, each in zip(found.texts, gold, strict=True)]
        return {"null_threshold": best_threshold(found.margins, *np.array(scores).T)}

    def chosen(self, task, outputs, sequences):
        """(texts, probabilities): the answer to each row, "" for none."""
        found = find_answers(outputs, sequences)
        none = found.margins > (np.inf if task.null_threshold is None else task.null_threshold)
        texts = ["" if no else text for text, no in zip(found.texts, none, strict=True)]
        return texts, np.where(none, found.none_sure, found.sure)

    def answers(self, task, outputs, sequences, labels):
        rows = sequences.source.read
        pairs = zip(self.predictions(task, outputs, sequences, labels), rows, strict=True)
        graded = [(text, *grade(text, gold), first_word(question)) for text, (question, _, _, gold) in pairs]
        return np.array(graded, GRADED), np.fromiter((gold for *_, gold in rows), object, len(rows))

    def predictions(self, task, outputs, sequences, labels):
        return self.chosen(task, outputs, sequences)[0]

    def prediction_file(self, predictions, rows):
        # The layout that the official scripts read.
        keys = (str(number) if row.id is None else row.id for number, row in enumerate(rows))
        yield json.dumps(dict(zip(keys, predictions, strict=True)), ensure_ascii=False, indent=1) + "\n"

    def answer_columns(self, task, labels):
        return ["answer", "probability"]

    def answer_rows(self, task, outputs, sequences, labels):
        return [[text, f"{sure:.4f}"] for text, sure in zip(*self.chosen(task, outputs, sequences), strict=True)]

    def replaceable(self, row, column, words, candidates, split, known):
        text, parts, options, end = row.texts[column], [], {}, 0
        places = [place for place in stretches(text, split) for _ in split(text[slice(*place)])]
        taken = [(start, start + len(answer)) for answer, start in row.label] if column else []
        used = 0
        for index, word in enumerate(words):
            first, joined = used, ""  # some words are several of the tokenizer's
            while used == first or len(joined) < len(word):
                joined += "".join(split(text[slice(*places[used])]))
                used += 1
            place = places[first][0], places[used - 1][1]
            if index in candidates and not any(place[0] < last and start < place[1] for start, last in taken):
                parts += [text[end : place[0]], text[slice(*place)]]
                options[len(parts) - 1], end = candidates[index], place[1]
        return [*parts, text[end:]], options

    def variant(self, row, column, key, before, parts):
        columns = super().variant(row, column, key, before, parts)
        if column == 0:
            return columns
        ends = np.cumsum([len(part) for part in before])
        moved = np.cumsum([0, *(len(new) - len(old) for new, old in zip(parts, before, strict=True))]).tolist()
        places = [(text, start + moved[np.searchsorted(ends, start, "right")]) for text, start in row.label]
        return columns | {"answers": [{"text": text, "answer_start": start} for text, start in places]}

    def answer_text(self, task, answer):
        texts = dict.fromkeys(answer) if isinstance(answer, tuple) else [answer["text"]]
        return shorten(" / ".join(texts), SHOWN, placeholder=" ...") or NO_ANSWER

    def same(self, predictions, others):
        if predictions.dtype != others.dtype:  # a model's and the gold ones
            return predictions["exact"] == 1
        texts = (map(normalized, each["text"]) for each in (predictions, others))
        return np.array([one == other for one, other in zip(*texts, strict=True)])

    def different(self, answers):
        return len({*(answers["text"] if answers.dtype == GRADED else answers)})

    def chance(self, task, answers):
        share = np.mean([not gold for gold in answers.labels])
        return f"{share:.1%} of the rows of {answers.file} have no answer." if share else ""

    def answer_tables(self, task, answers, results):
        tables = []
        for number, (file, *_) in enumerate(answers["student"]):
            header = [f"{metric}, {model}" for model in answers for metric in self.metrics]
            tables.append([[f"questions of `{file}`", "rows", *header]])
            for name, rows in groups_of(answers["student"][number]).items():
                graded = [files[number].predictions[rows] for files in answers.values()]
                cells = [f"{each[metric].mean():.4f}" for each in graded for metric in self.metrics]
                tables[-1].append([name, f"{len(rows):,}", *cells])
        return "Answers by question", tables

    def panels(self, task, answers):
        panels = []
        for title, each in answers.items():
            scores = {name: each.predictions[rows] for name, rows in list(groups_of(each).items())[:DRAWN]}
            scores = {name: {metric: part[metric].mean() for metric in self.metrics} for name, part in scores.items()}
            panels.append(partial(drawing.bars, title=title, groups=scores))
        return panels


def first_word(question):
    """The first word of a question in lower case, for groups of questions."""
    return question.lower().split(maxsplit=1)[0] if question.strip() else ""


def groups_of(answers):
    """{name: numbers of the rows} of parts of a dev file: all, with and without answer, the commonest first words."""
    asked, some = answers.predictions["asked"], np.array([bool(gold) for gold in answers.labels])
    groups = {"all": some | True} | ({} if some.all() else {"with an answer": some, "without": ~some})
    groups |= {f"{word} ...": asked == word for word, count in Counter(asked).most_common(GROUPS) if count > 1}
    return {name: found for name, rows in groups.items() if len(found := np.flatnonzero(rows))}


class Found(NamedTuple):
    """The best answer to each row, and what speaks for none. `margins`: the score of no answer less that of `texts`;
    sure, none_sure: the probabilities of the two, (R,)."""

    texts: list
    margins: np.ndarray
    sure: np.ndarray
    none_sure: np.ndarray


def find_answers(outputs, sequences):
    """The `Found` in outputs (P, 2): of all spans of up to MOST_TOKENS tokens in all windows of a row, the one with the
    highest sum of logits. No answer has the lowest sum of the windows' [CLS]."""
    windows, _ = sequences.outputs_of(np.arange(len(sequences)))
    sure = log_softmax(outputs, torch.from_numpy(windows)).double().numpy()
    (start, end), first_outputs = outputs.double().T.numpy(), sequences.answer_offsets[:-1]
    best, ends = np.full(len(windows), -np.inf), np.arange(len(windows))
    for length in range(min(MOST_TOKENS, len(windows))):
        scores = start[: len(start) - length] + end[length:]
        better = (windows[: len(scores)] == windows[length:]) & (scores > best[: len(scores)])
        better[first_outputs[first_outputs < len(scores)]] = False
        place = np.flatnonzero(better)
        best[place], ends[place] = scores[place], place + length
    row_windows = np.flatnonzero(np.diff(sequences.rows, prepend=-1))  # the first window of each row
    row_outputs = first_outputs[row_windows]
    highest = np.maximum.reduceat(best, row_outputs)
    places = np.flatnonzero(best == np.repeat(highest, np.diff(row_outputs, append=len(windows))))
    first = places[np.unique(sequences.rows[windows[places]], return_index=True)[1]]  # (R,); of equal ones the first
    last = ends[first]
    # From a window's outputs to the pieces of the whole text.
    steps = np.minimum(sequences.source.stride, np.diff(sequences.answer_offsets)[row_windows] - 1)
    shift = (windows[first] - row_windows) * steps - first_outputs[windows[first]] - 1
    places = zip(sequences.source.read, first + shift, last + shift, np.isfinite(highest), strict=True)
    # A text without pieces has no span.
    texts = [text[at.starts[a] : at.ends[b]] if some else "" for (_, text, at, _), a, b, some in places]
    none = np.minimum.reduceat(start[first_outputs] + end[first_outputs], row_windows)
    none_sure = np.exp(np.minimum.reduceat(sure[first_outputs].sum(axis=1), row_windows))
    return Found(texts, none - highest, np.exp(sure[first, 0] + sure[last, 1]), none_sure)


def best_threshold(margins, answered, unanswered):
    """The threshold of the margins (N,) that gives the best sum of scores, of the rows' answers below and at it and of
    no answer above, (N,) each; of several the one nearest to 0."""
    order = np.argsort(margins, kind="stable")[: np.isfinite(margins).sum()]
    if not len(order):
        return 0.0
    margins, answered, unanswered = margins[order], answered[order], unanswered[order]
    sums = np.append(0, np.cumsum(answered - unanswered))  # by how many rows are answered, and less a constant
    low, high = np.append(margins[0] - 1, margins), np.append(margins, margins[-1] + 1)
    middles, sums = ((low + high) / 2)[low < high], sums[low < high]  # no threshold divides equal margins
    best = middles[sums >= sums.max() - 1e-9]
    return float(best[np.abs(best).argmin()])


SPANS = Spans()
