"""Makes everything the bundled sample needs, from nothing but the files in this folder and a seed.

由本目录的手写子句生成示例数据。

Reads:  clauses.tsv (hand-written clauses of film reviews, each with its negated form)
Writes: SST-2/{train,dev,test}.tsv, a small task in SST-2's format: does the review end up for or against the film?

    python 1_pre_data/sample/build.py

A review joins one to three clauses. Single words give little away: a clause may be negated, a whole sentence may be
denied, and where two clauses disagree only the conjunction and the order say which of them decides the label.
"""

import argparse
import itertools
import os
import random
import sys
from collections import Counter, namedtuple

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(os.path.dirname(HERE)))

from transformer.file_utils import UserError, atomic_write  # noqa: E402  (the path above comes first)

SEED = 42
SIZES = {"train": 3000, "dev": 400, "test": 200}
MAX_TOKENS = 45

# Share of reviews of each kind. Contrast and denial need word order; plain clauses and agreement teach the clauses.
KIND_SHARES = {"single": 0.15, "denial": 0.12, "agreement": 0.28, "contrast": 0.45}
# Denied clauses always keep their plain form, so the other kinds take more than the 35 % wanted over all clauses.
NEGATED_SHARE = 0.38
OPENER_SHARE = 0.2

# {y} is on the side of the label. In a contrast {x} is on the other side, in a denial too.
TEMPLATES = {
    "single": [
        "{y} .", "truly , {y} .", "frankly , {y} .", "to be honest , {y} .", "this time {y} .", "it is true that {y} .",
        "i must admit that {y} .", "there is no doubt that {y} .", "nobody can deny that {y} .", "in the end {y} .",
        "it has to be said that {y} .", "make no mistake , {y} .", "as far as i can tell , {y} .", "as it happens , {y} .",
    ],
    "denial": [
        "it is not true that {x} .", "nobody could say that {x} .", "i can't agree that {x} .", "i doubt that {x} .",
        "it would be wrong to say that {x} .", "i don't believe for a second that {x} .", "it is simply false that {x} .",
        "only a fool would claim that {x} .", "don't let anyone tell you that {x} .", "there is no truth in the claim that {x} .",
    ],
    "agreement": [
        "{y} and {y} .", "{y} , and {y} .", "{y} ; {y} .", "{y} , and what is more , {y} .", "{y} ; on top of that , {y} .",
        "it isn't just that {y} ; {y} .", "it is fair to say that {y} and that {y} .", "{y} , {y} and {y} .",
    ],
    "contrast": [
        "{x} , but {y} .", "{x} , yet {y} .", "although {x} , {y} .", "even if {x} , {y} .", "{x} ; still , {y} .",
        "{x} ; however , {y} .", "despite the fact that {x} , {y} .", "it is true that {x} , but {y} .",
        "{y} , even though {x} .", "{y} , although {x} .", "{y} , despite the fact that {x} .", "{y} , even if {x} .",
        "{y} ; never mind that {x} .", "{y} , and it matters little that {x} .",
        "{x} and {x} , but {y} .", "{x} , but {y} and {y} .", "although {x} , {y} and {y} .", "{y} and {y} , even though {x} .",
    ],
}
# Put before some reviews of two or three clauses; they change nothing.
OPENERS = ["frankly ,", "to be honest ,", "all in all ,", "in short ,", "for me ,", "as i see it ,"]
FUNCTION_WORDS = set(
    "a the and or of in to is are has have that this it its you no not never nothing hardly about every each there "
    "one real with for on at by as from does doesn't don't isn't be any".split()
)

Clause = namedtuple("Clause", "id aspect forms")  # forms: {(label, negated): text}
Review = namedtuple("Review", "text label kind template uses")  # uses: ((clause id, negated), ...)


# Clauses


def read_clauses(path):
    """Returns the list of Clause in `path`; raises UserError for a row without four columns or a wrong polarity."""
    with open(path, encoding="utf-8") as rows:
        rows = [line.rstrip("\n").split("\t") for line in rows]
    clauses, seen = [], set()
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != 4 or row[1] not in ("+", "-"):
            raise UserError(f"{path}, line {number}: expected aspect, + or -, clause and negated form, split by tabs")
        aspect, label, (plain, negated) = row[0], int(row[1] == "+"), row[2:]
        if {plain, negated} & seen or plain == negated:
            raise UserError(f"{path}, line {number}: expected two new clauses, this one occurs before")
        seen |= {plain, negated}
        clauses.append(Clause(len(clauses), aspect, {(label, False): plain, (1 - label, True): negated}))
    return clauses


class ClauseDecks:
    """Deals clause forms like cards, so that each form of a side turns up equally often."""

    def __init__(self, clauses, rng):
        self.rng = rng
        self.full = {
            key: [clause for clause in clauses if key in clause.forms] for key in itertools.product((0, 1), (False, True))
        }
        self.left = {key: [] for key in self.full}

    def deal(self, label, negated, others):
        """Returns a clause with a form for `label`, of another aspect and with another subject than `others`' clauses."""
        key = label, negated
        for _ in range(2):  # the rest of the deck may hold nothing that fits, a new deck always does
            for position, clause in enumerate(self.left[key]):
                if all(fits(clause, other) for other in others):
                    return self.left[key].pop(position)
            self.left[key] += self.rng.sample(self.full[key], len(self.full[key]))
        raise AssertionError("no clause fits")


def fits(clause, other):
    """Whether two clauses read well side by side: different aspects, and no content word of one opens the other."""
    return clause.aspect != other.aspect and not subject_words(clause) & subject_words(other)


def subject_words(clause):
    return {word for text in clause.forms.values() for word in text.split()[:4]} - FUNCTION_WORDS


# Reviews


def plan_reviews(size, rng):
    """Returns `size` shuffled (kind, template, label), with both labels equally often in each template (give or take one)."""
    plan = []
    for kind, share in KIND_SHARES.items():
        wanted = round(size * share)
        cells = itertools.cycle([(kind, template, label) for template in TEMPLATES[kind] for label in (0, 1)])
        plan += itertools.islice(cells, wanted)
    rng.shuffle(plan)
    return plan


def compose_review(kind, template, label, decks, rng):
    """Fills the template with clauses on the sides that give `label`."""
    chosen, texts, uses = [], {"x": [], "y": []}, []
    slots = [part[0] for part in template.split("{")[1:]]
    for slot in slots:
        side = label if slot == "y" else 1 - label
        negated = kind != "denial" and rng.random() < NEGATED_SHARE
        clause = decks.deal(side, negated, chosen)
        chosen.append(clause)
        texts[slot].append(clause.forms[side, negated])
        uses.append((clause.id, negated))
    text = template
    for slot in slots:
        text = text.replace("{" + slot + "}", texts[slot].pop(0), 1)
    if len(slots) > 1 and rng.random() < OPENER_SHARE:
        text = f"{rng.choice(OPENERS)} {text}"
    return Review(text, label, kind, template, tuple(uses))


def combination(review):
    """What may not be shared between the splits: the set of clauses, or a single clause with its form and its wrapper."""
    if len(review.uses) == 1:
        return review.uses[0], review.template
    return frozenset(clause for clause, _ in review.uses)


def compose_splits(clauses, sizes, rng):
    """Returns {split: [Review]}, with no combination of clauses twice in all splits together."""
    decks = ClauseDecks(clauses, rng)
    seen, splits = set(), {}
    for split, size in sizes.items():
        splits[split] = []
        for kind, template, label in plan_reviews(size, rng):
            review = compose_review(kind, template, label, decks, rng)
            while combination(review) in seen or len(review.text.split()) > MAX_TOKENS:
                review = compose_review(kind, template, label, decks, rng)
            seen.add(combination(review))
            splits[split].append(review)
    return splits


def check_splits(splits):
    """Raises UserError where dev or test uses a form of a clause that train never shows, or a sentence occurs twice."""
    known = {use for review in splits["train"] for use in review.uses}
    for split, reviews in splits.items():
        if any(use not in known for review in reviews for use in review.uses):
            raise UserError(f"{split}.tsv: a clause form never occurs in train; expected more training reviews or fewer clauses")
    texts = Counter(review.text for reviews in splits.values() for review in reviews)
    if max(texts.values()) > 1:
        raise UserError(f"sentence occurs twice: {texts.most_common(1)[0][0]}")


def write_splits(splits, folder):
    """Writes SST-2's three files; as in GLUE, test has an index and no labels."""
    os.makedirs(folder, exist_ok=True)
    for split, reviews in splits.items():
        if split == "test":
            lines = ["index\tsentence"] + [f"{index}\t{review.text}" for index, review in enumerate(reviews)]
        else:
            lines = ["sentence\tlabel"] + [f"{review.text}\t{review.label}" for review in reviews]
        with atomic_write(os.path.join(folder, f"{split}.tsv")) as out:
            out.write("\n".join(lines) + "\n")


def bag_of_words_score(train, dev, ngrams=1):
    """Accuracy on `dev` of a linear classifier that sees which words (or n-grams) occur, but not where."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    counter = CountVectorizer(ngram_range=(1, ngrams), token_pattern=r"\S+")
    features = counter.fit_transform([review.text for review in train])
    classifier = LogisticRegression(max_iter=1000).fit(features, [review.label for review in train])
    return classifier.score(counter.transform([review.text for review in dev]), [review.label for review in dev])


def report_splits(splits):
    for split, reviews in splits.items():
        lengths = [len(review.text.split()) for review in reviews]
        positive = sum(review.label for review in reviews) / len(reviews)
        print(f"{split}: {len(reviews)} reviews, {positive:.1%} positive, "
              f"{sum(lengths) / len(lengths):.1f} tokens on average, {max(lengths)} at most")
    words = {word for reviews in splits.values() for review in reviews for word in review.text.split()}
    uses = [use for review in splits["train"] for use in review.uses]
    print(f"{len(words)} distinct words; {sum(negated for _, negated in uses) / len(uses):.1%} of the clauses are negated")
    for name, ngrams in (("unigrams", 1), ("bigrams", 2)):
        print(f"accuracy on dev from {name} alone: {bag_of_words_score(splits['train'], splits['dev'], ngrams):.3f}")


def build_reviews(folder, seed):
    """Composes the reviews, writes SST-2/*.tsv under `folder` and returns {split: [Review]}."""
    clauses = read_clauses(os.path.join(HERE, "clauses.tsv"))
    splits = compose_splits(clauses, SIZES, random.Random(seed))
    check_splits(splits)
    write_splits(splits, os.path.join(folder, "SST-2"))
    report_splits(splits)
    return splits


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default=HERE, help="folder that the sample is written to")
    parser.add_argument("--seed", type=int, default=SEED, help="the same seed gives the same bytes")
    return parser.parse_args()


def main():
    args = parse_args()
    build_reviews(args.output_dir, args.seed)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
