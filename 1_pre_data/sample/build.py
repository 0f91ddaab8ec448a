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
import re
import sys
from collections import Counter, namedtuple

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(os.path.dirname(HERE)))

from transformer.file_utils import UserError, atomic_write  # noqa: E402  (the path above comes first)

SEED = 42
SIZES = {"train": 3000, "dev": 400, "test": 200}
MAX_TOKENS = 45

# Share of reviews of each kind. Contrast and denial need word order; the other two teach what the clauses mean.
KIND_SHARES = {"single": 0.16, "denial": 0.08, "agreement": 0.34, "contrast": 0.42}
NEGATED_SHARE = 0.25
OPENER_SHARE = 0.2

SLOT = re.compile(r"\{[xy]\}")
# {y} is on the side of the label; {x}, in a contrast or a denial, is on the other side.
TEMPLATES = {
    "single": [
        "{y} .", "truly , {y} .", "frankly , {y} .", "to be honest , {y} .", "this time , {y} .",
        "in the end , {y} .", "it is true that {y} .", "i must admit that {y} .", "there is no doubt that {y} .",
        "nobody can deny that {y} .",
        "it has to be said that {y} .", "make no mistake , {y} .", "as far as i can tell , {y} .",
    ],
    "denial": [
        "it is not true that {x} .", "nobody could say that {x} .", "i can't agree that {x} .", "i doubt that {x} .",
        "it would be wrong to say that {x} .", "i don't believe that {x} .",
    ],
    "agreement": [
        "{y} and {y} .", "{y} , and {y} .", "{y} ; {y} .", "{y} , and what is more , {y} .",
        "{y} ; on top of that , {y} .", "it isn't just that {y} ; {y} .", "it is fair to say that {y} and that {y} .",
        "{y} , {y} and {y} .",
    ],
    "contrast": [
        "{x} , but {y} .", "{x} , yet {y} .", "{x} ; still , {y} .",
        "although {x} , {y} .", "{y} , although {x} .", "{y} , even though {x} .",
        "{x} , but {y} and {y} .", "although {x} , {y} and {y} .", "{y} and {y} , even though {x} .",
    ],
}
# Put before some reviews of two or three clauses; they change nothing.
OPENERS = ["frankly ,", "to be honest ,", "all in all ,", "in short ,", "on the whole ,", "as i see it ,"]
# Two clauses may both open with these; any other shared word would sound like an echo.
FUNCTION_WORDS = frozenset(
    re.findall(
        r"\S+",
        "a the and or of in to is are has have that this it its you no not never nothing hardly about every each there "
        "one real with for on at by as from does doesn't don't isn't be any",
    )
)

Clause = namedtuple("Clause", "id aspect forms")  # forms: {(side, negated): text}; side 1 is for the film
Review = namedtuple("Review", "text label kind template uses")  # uses: ((Clause, side, negated), ...)


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


def fits(clause, other):
    """Whether two clauses read well side by side: of different aspects, and opening with different words."""
    return clause.aspect != other.aspect and not subject_words(clause) & subject_words(other)


def subject_words(clause):
    return {word for text in clause.forms.values() for word in text.split()[:4]} - FUNCTION_WORDS


class ClauseDecks:
    """Deals clause forms like cards, so that each form on a side turns up equally often."""

    def __init__(self, clauses, rng):
        self.rng = rng
        keys = itertools.product((0, 1), (False, True))
        self.full = {key: [clause for clause in clauses if key in clause.forms] for key in keys}
        self.left = {key: [] for key in self.full}

    def deal(self, side, negated, others):
        """Returns a clause that has this form on this side and fits all of `others`."""
        cards = self.left[side, negated]
        for _ in range(2):  # what is left of the deck may hold nothing that fits
            for position, clause in enumerate(cards):
                if all(fits(clause, other) for other in others):
                    return cards.pop(position)
            cards += self.rng.sample(self.full[side, negated], len(self.full[side, negated]))
        raise UserError("clauses.tsv: no clause fits beside the others; expected more aspects")


# Reviews


def plan_reviews(size, rng):
    """Returns `size` shuffled (kind, template, label), both labels equally often (give or take one) per template."""
    plan = []
    for kind, share in KIND_SHARES.items():
        cells = itertools.cycle([(kind, template, label) for template in TEMPLATES[kind] for label in (0, 1)])
        plan += itertools.islice(cells, round(size * share))
    rng.shuffle(plan)
    return plan


def deal_uses(kind, template, label, decks, rng):
    """Returns one (clause, side, negated) for each slot of the template."""
    uses = []
    for slot in SLOT.findall(template):
        side = label if slot == "{y}" else 1 - label
        # "it is not true that nothing ..." is more than a reader should have to untangle
        negated = kind != "denial" and rng.random() < NEGATED_SHARE
        uses.append((decks.deal(side, negated, [clause for clause, _, _ in uses]), side, negated))
    return tuple(uses)


def compose_review(kind, template, label, uses, rng):
    """Puts the clauses on the label's side into the {y} slots and the others into the {x} slots."""
    waiting = {"{y}": [], "{x}": []}
    for clause, side, negated in uses:
        waiting["{y}" if side == label else "{x}"].append(clause.forms[side, negated])
    text = SLOT.sub(lambda slot: waiting[slot.group()].pop(0), template)
    if len(uses) > 1 and not template.startswith("it ") and rng.random() < OPENER_SHARE:
        text = f"{rng.choice(OPENERS)} {text}"
    return Review(text, label, kind, template, uses)


def combination(review):
    """What dev and test may not share with train: the set of clauses, of a lone clause with its form and template."""
    if len(review.uses) == 1:
        clause, _, negated = review.uses[0]
        return clause.id, negated, review.template
    return frozenset(clause.id for clause, _, _ in review.uses)


def compose_split(size, decks, seen, rng, turned):
    """Returns `size` reviews whose combinations are not in `seen`, and adds them to it.

    turned: compose each contrast of two clauses a second time with the roles turned round, so with the other label;
        such pairs teach that the conjunction decides, and not the clauses.
    """
    reviews, unturned = [], {0: [], 1: []}  # by the label that the turned review will have
    for kind, template, label in plan_reviews(size, rng):
        turnable = turned and kind == "contrast" and len(SLOT.findall(template)) == 2
        if turnable and unturned[label]:
            reviews.append(compose_review(kind, template, label, unturned[label].pop(0), rng))
            continue
        while True:
            uses = deal_uses(kind, template, label, decks, rng)
            review = compose_review(kind, template, label, uses, rng)
            if combination(review) not in seen and len(review.text.split()) <= MAX_TOKENS:
                break
        seen.add(combination(review))
        reviews.append(review)
        if turnable:
            unturned[1 - label].append(uses)
    return reviews


def compose_splits(clauses, rng):
    """Returns {split: [Review]}; the splits share clauses, and no combination of clauses."""
    decks, seen = ClauseDecks(clauses, rng), set()
    return {split: compose_split(size, decks, seen, rng, split == "train") for split, size in SIZES.items()}


def check_splits(splits):
    """Raises UserError where dev or test uses a clause form that train never shows, or where a review occurs twice."""
    known = {(clause.id, negated) for review in splits["train"] for clause, _, negated in review.uses}
    for split, reviews in splits.items():
        for clause, side, negated in itertools.chain.from_iterable(review.uses for review in reviews):
            if (clause.id, negated) not in known:
                form = clause.forms[side, negated]
                raise UserError(f"{split}.tsv: train never shows '{form}'; expected more training reviews")
    texts = Counter(review.text for reviews in splits.values() for review in reviews)
    text, count = texts.most_common(1)[0]
    if count > 1:
        raise UserError(f"'{text}' occurs {count} times; expected every review once")


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
    negated = [negated for review in splits["train"] for _, _, negated in review.uses]
    print(f"{len(words)} distinct words; {sum(negated) / len(negated):.1%} of train's clauses are negated")
    for name, ngrams in (("unigrams", 1), ("bigrams", 2)):
        print(f"accuracy on dev from {name} alone: {bag_of_words_score(splits['train'], splits['dev'], ngrams):.3f}")


def build_reviews(folder, seed):
    """Composes the reviews, writes SST-2/*.tsv under `folder` and returns {split: [Review]}."""
    clauses = read_clauses(os.path.join(HERE, "clauses.tsv"))
    splits = compose_splits(clauses, random.Random(seed))
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
