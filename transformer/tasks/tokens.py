"""Token labels: a label for each token of a text, such as named entities.

A token is a word as the file has it; its first piece carries its label. Shapes: N rows, P tokens, C labels.
"""

from functools import lru_cache, partial

import numpy as np
import torch
import torch.nn.functional as F

from transformer import drawing
from transformer.modeling import TinyBertForTokenClassification
from transformer.tasks.classification import Classification
from transformer.tasks.kind import Kind
from transformer.tokenization import BasicTokenizer

OUTSIDE = "O"  # the label of tokens that belong to no entity
# The prefixes of a label that begin an entity, and those that end one, in the schemes IOB, BIOES and BILOU.
BEGINS, ENDS = ("B", "S", "U"), ("E", "S", "L", "U")
NO_BREAK_SPACE = "\u00a0"  # stands for a space inside a token


def entities(labels):
    """The entities, {(type, first token, end)}, in a sentence's labels; a label without prefix continues its type."""
    found, start, last, current = set(), 0, "", None  # the prefix and the type of the label before; None = outside
    for place, label in enumerate([*labels, OUTSIDE]):
        prefix, dash, kind = label.partition("-")
        if not dash:
            prefix, kind = "", None if label == OUTSIDE else label
        # As in CoNLL's own script: another type begins a new entity, whatever its prefix.
        if prefix in BEGINS or last in ENDS or kind != current:
            if current is not None:
                found.add((current, start, place))
            start = place
        last, current = prefix, kind
    return found


@lru_cache(1 << 16)
def entity_counts(labels, predicted, gold):
    """{type: [right, predicted, true]} of a sentence's entities. predicted, gold: indices in `labels`, tuples."""
    found, true = (entities([labels[index] for index in each]) for each in (predicted, gold))
    counts = {}
    for column, group in enumerate((found & true, found, true)):
        for kind, *_ in group:
            counts.setdefault(kind, [0, 0, 0])[column] += 1
    return counts


def ratios(right, predicted, true):
    """{metric: value} from counts of entities; F1 is 0 where there are none."""
    precision, recall = (float(right / max(count, 1)) for count in (predicted, true))
    return {"f1": float(2 * right / max(predicted + true, 1)), "precision": precision, "recall": recall}


def windows(lengths, room):
    """Yield (first word, end, first answered, end of these) of the windows over words of `lengths` pieces, of at most
    `room` pieces together. Each word is answered once, in the window that shows more of what is around it."""
    first = answered = 0
    starts = np.concatenate([[0], np.cumsum(np.minimum(lengths, room))])  # of the words, in pieces, and the end
    while first < len(lengths):
        last = int(np.searchsorted(starts, starts[first] + room, "right")) - 1
        following = max(int(np.searchsorted(starts, starts[last] - room // 2)), first + 1)
        end = last if last == len(lengths) else (following + last + 1) // 2
        if answered < end:
            yield first, last, answered, end
        first, answered = len(lengths) if last == len(lengths) else following, end


class Tokens(Classification):
    """Each token has one of the task's labels; the head has one output per label for each token.

    In CoNLL's files a token and its label stand on a line; JSON Lines have lists, "tokens" and "tags". Metrics count
    whole entities, but for `acc`, the share of tokens. Answers and gold labels: a tuple of label numbers for each row.
    """

    model = TinyBertForTokenClassification
    metrics, means = {}, {}  # `score` computes all of them from the same counts
    offered = ("f1", "precision", "recall", "acc")
    problem_type = None
    text_types = list | str
    label_types = list | str
    per_token = True
    texts, shortest = ("tokens",), 3
    made, gold_loss = Kind.made, Kind.gold_loss
    suffix = ".conll"

    def claims(self, said, table):
        first = table.first if table else None
        name = said.get("text", "tokens")
        if not isinstance(first, dict) or not isinstance(name, str):
            return False
        tokens, label = (first.get(table.find(*names)) for names in ([name], [said.get("label"), *self.label_columns]))
        # One label beside a list of tokens is that of the whole text.
        return isinstance(tokens, list) and (isinstance(label, list) or len(str(label).split()) == len(tokens))

    def read_text(self, value):
        tokens = value.strip(" ").split(" ") if isinstance(value, str) else value
        if not tokens or not all(map(str.strip, tokens)):
            raise ValueError("tokens, none of them empty")
        return " ".join(token.replace(" ", NO_BREAK_SPACE) for token in tokens)

    def read_line(self, text):
        return " ".join(BasicTokenizer(do_lower_case=False).tokenize(text))

    def parts(self, task, label):
        return tuple(label.split() if isinstance(label, str) else label)

    def read_label(self, task, label):
        found = self.parts(task, label)
        if "" in found and "" not in task.labels:
            raise ValueError("tags, none of them empty")
        try:
            return [super(Tokens, self).read_label(task, each) for each in found] if task.labels else list(found)
        except ValueError as error:
            wrong = next(each for each in found if each.lower() not in map(str.lower, task.labels))
            raise ValueError(f"each tag {error}; found {wrong!r}") from None

    def check_row(self, texts, label):
        if len(label) != (count := len(texts[0].split(" "))):
            raise ValueError(f"a tag for each of its {count} tokens; found {len(label)}")

    def add_row(self, builder, number, row, tokenizer, lengths, labels):
        unknown = [tokenizer.vocab["[UNK]"]]  # a token of control characters has no pieces, but a label
        words = [tokenizer.ids(token) or unknown for token in row.texts[0].split(" ") if token]
        room = lengths.max_seq_length - 2
        # An empty line, which nothing is answered about, has its place among the answers.
        for first, last, begin, end in list(windows(list(map(len, words)), room)) or [(0, 0, 0, 0)]:
            starts = np.concatenate([[1], 1 + np.cumsum(list(map(len, words[first:last])))])
            pieces = [piece for word in words[first:last] for piece in word][:room]
            ids, _ = tokenizer.encode_pair(pieces)
            targets = row.label and [labels.index(label) for label in row.label[begin:end]]
            builder.add(ids, len(ids), targets, starts[begin - first : end - first].tolist(), number)

    def row_losses(self, outputs, targets, examples):
        losses = F.cross_entropy(outputs.float(), targets, reduction="none")
        return mean_by_example(losses, examples)

    def prediction_loss(self, student_outputs, teacher_outputs, temperature, examples):
        # Equation 10 for each token. The mean over a sentence's tokens first: sentences then count alike, and a batch
        # gives the same loss on one process and on several.
        targets = F.softmax(teacher_outputs.float() / temperature, dim=1)
        losses = -(targets * F.log_softmax(student_outputs.float() / temperature, dim=1)).sum(dim=1)
        return mean_by_example(losses, examples).mean()

    def answers(self, task, outputs, sequences, labels):
        to_table = np.array([task.labels.index(label) for label in labels])
        found = [to_table[outputs.argmax(dim=1).numpy()], to_table[sequences.labels]]
        return [np.fromiter((tuple(row.tolist()) for row in by_row(each, sequences)), object) for each in found]

    def evidence(self, task, predictions, gold):
        rows = []
        for predicted, true in zip(predictions, gold, strict=True):
            counts = sum(map(np.array, entity_counts(task.labels, predicted, true).values()), np.zeros(3, int))
            rows.append([*counts, np.equal(predicted, true).sum(), len(true)])
        return (np.array(rows),)  # (N, 5)

    def metrics_of(self, task, counts):
        *entity, right, tokens = counts.sum(axis=0).tolist()
        values = ratios(*entity) | {"acc": right / tokens}
        return {name: values[name] for name in task.metrics}

    def predictions(self, task, outputs, sequences, labels):
        answers = by_row(outputs.argmax(dim=1).numpy(), sequences)
        return [" ".join(labels[index] for index in row) for row in answers]

    def prediction_file(self, predictions, rows):
        for row, labels in zip(rows, predictions, strict=False):  # --limit may have left rows out
            pairs = zip(row.texts[0].split(" "), labels.split(" "), strict=True)
            yield "".join(f"{token}\t{label}\n" for token, label in pairs) + "\n"

    def answer_columns(self, task, labels):
        return ["labels", "lowest probability"]

    def answer_rows(self, task, outputs, sequences, labels):
        names = self.id2label(task, labels)
        highest = by_row(outputs.softmax(dim=1).max(dim=1).values.numpy(), sequences)
        answers = self.predictions(task, outputs, sequences, list(names.values()))
        lowest = [f"{row.min():.4f}" if len(row) else "" for row in highest]
        return [list(pair) for pair in zip(answers, lowest, strict=True)]

    def answer_text(self, task, answer):
        return " ".join(task.titles[index] for index in answer)

    def different(self, answers):
        return len({index for row in answers for index in row})

    def agreement(self, predictions, others):
        pairs = zip(predictions, others, strict=True)
        return "same label as the teacher", float(np.mean(np.concatenate([np.equal(*pair) for pair in pairs])))

    def chance(self, task, answers):
        counts = np.bincount(np.concatenate(answers.labels))
        name, share = task.titles[counts.argmax()], counts.max() / counts.sum()
        return f"{share:.1%} of the {counts.sum():,} tokens of {answers.file} have the commonest label, {name}."

    def by_type(self, task, answers):
        """{type: [right, predicted, true]} of the entities of one file's answers."""
        total = {}
        for pair in zip(answers.predictions, answers.labels, strict=True):
            for kind, counts in entity_counts(task.labels, *pair).items():
                total[kind] = np.add(total.get(kind, 0), counts)
        return dict(sorted(total.items()))

    def answer_tables(self, task, answers, results):
        tables = []
        for number, (file, *_) in enumerate(answers["student"]):
            counts = {model: self.by_type(task, files[number]) for model, files in answers.items()}
            rows = [[f"entities in `{file}`", "number", *(f"{name}, {model}" for model in counts for name in SHOWN)]]
            for kind in sorted(set().union(*counts.values())):
                found = {model: each.get(kind, (0, 0, 0)) for model, each in counts.items()}
                values = [ratios(*each)[name] for each in found.values() for name in SHOWN]
                rows.append([kind, f"{found['student'][2]:,}", *(f"{value:.4f}" for value in values)])
            tables.append(rows)
        return "Entities, type by type", tables

    def panels(self, task, answers):
        panels = []
        for title, each in answers.items():
            counts = self.by_type(task, each)
            most = sorted(counts, key=lambda kind: -counts[kind][2])[:DRAWN]
            groups = {kind: {f"F1 of the {len(most)} commonest types": ratios(*counts[kind])["f1"]} for kind in most}
            panels.append(partial(drawing.bars, title=title, groups=groups))
        return panels

    def linear_model(self):
        return None

    def known(self, rows):
        pairs = {pair for row in rows for pair in zip(row.label, row.texts[0].split(" "), strict=True)}
        found = {}
        for label, token in sorted(pairs):
            found.setdefault(label, []).append(token)
        return {label: tokens for label, tokens in found.items() if label != OUTSIDE}

    def replaceable(self, row, column, words, candidates, split, known):
        tokens, options = row.texts[0].split(" "), {}
        # Tokens and words are pieces of the same characters: a token that begins and ends as a word does is that word.
        index_of = {span: index for index, span in enumerate(spans(map(len, words)))}
        lengths = (sum(map(len, split(token))) for token in tokens)
        for place, (span, label) in enumerate(zip(spans(lengths), row.label, strict=True)):
            if label == OUTSIDE and index_of.get(span) in candidates:
                options[place] = candidates[index_of[span]]
            elif others := [each for each in known.get(label, ()) if each != tokens[place]]:
                options[place] = others
        return tokens, options

    def join(self, parts):
        return " ".join(parts)

    def variant(self, row, column, key, before, parts):
        tokens = [part.replace(NO_BREAK_SPACE, " ") for part in parts]
        columns = row.columns.copy()
        columns[key] = tokens if isinstance(row.columns[key], list) else self.join(parts)
        return columns


SHOWN, DRAWN = ("f1", "precision", "recall"), 6  # metrics in the report's table; most types in a picture


def spans(lengths):
    """Yield (begin, end) of consecutive parts of these lengths."""
    end = 0
    for length in lengths:
        begin, end = end, end + length
        yield begin, end


def mean_by_example(losses, examples):
    """The mean loss of each example, (B,), from those of its tokens, (P,); `examples` as in `Kind`."""
    return torch.segment_reduce(losses, "mean", lengths=torch.bincount(examples))


def by_row(values, sequences):
    """The parts of `values` (P, ...) that belong to each row, a list."""
    which, _ = sequences.outputs_of(np.arange(len(sequences)))
    counts = np.bincount(sequences.rows[which], minlength=sequences.rows[-1] + 1)  # 0 for an empty line
    return np.split(values, np.cumsum(counts)[:-1])


TOKENS = Tokens()
