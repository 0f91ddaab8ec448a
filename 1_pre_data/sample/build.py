"""Makes everything the bundled sample needs, from nothing but the files in this folder and a seed.

由本目录的手写子句生成示例数据。

Reads:  clauses.tsv (hand-written clauses of film reviews, each with its negated form) and ../documents.txt
Writes: SST-2/{train,dev,test}.tsv, a small task in SST-2's format: does the review end up for or against the film?
        teacher/ (vocabulary, configuration, weights of a small masked LM), student/config.json, vectors.txt (words
        as GloVe's); about seven minutes on two cores

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

import numpy as np  # noqa: E402  (the path above comes first)
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from transformer.data import SequencesBuilder, epoch_batches  # noqa: E402
from transformer.file_utils import UserError, atomic_write  # noqa: E402
from transformer.modeling import WEIGHTS_NAME, BertConfig, BertForMaskedLM, save_weights  # noqa: E402
from transformer.optimization import BertAdam, decay_groups  # noqa: E402
from transformer.processes import keep_freed_memory  # noqa: E402
from transformer.tokenization import BasicTokenizer, BertTokenizer  # noqa: E402

CORPUS = os.path.join(os.path.dirname(HERE), "documents.txt")
SEED = 42
# The unlabelled reviews are not written: they are what the teacher is pre-trained on, beside train and the corpus.
SIZES = {"train": 5000, "dev": 400, "test": 200, "unlabelled": 6000}
MAX_TOKENS = 45

# Share of reviews of each kind. Contrast and denial need word order; the other two teach what the clauses mean.
KIND_SHARES = {"single": 0.22, "denial": 0.08, "agreement": 0.35, "contrast": 0.35}
NEGATED_SHARE = 0.25
OPENER_SHARE = 0.2

# The teacher: the heads must be those of BERT-base, the rest is as small as the task allows.
TEACHER = {
    "hidden_size": 144,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 576,
    "max_position_embeddings": 128,
    "initializer_range": 0.05,
}
STUDENT = {**TEACHER, "hidden_size": 72, "num_hidden_layers": 3, "intermediate_size": 288}
# Models as small as these learn faster without dropout; the teacher's pre-training had it.
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
VOCABULARY_SIZE = 3000
MIN_WORD_COUNT = 2  # rarer words are left to pieces
BATCH_SIZE, MASK_RATE, CLAUSE_EPOCHS, REVIEW_EPOCHS = 64, 0.3, 120, 11
VECTOR_SIZE, WINDOW = 32, 5  # of the word vectors: numbers, and words to either side

SLOT = re.compile(r"\{[xy]\}")
# {y} is on the side of the label; {x}, in a contrast or a denial, is on the other side.
TEMPLATES = {
    "single": [
        "{y} .",
        "truly , {y} .",
        "frankly , {y} .",
        "to be honest , {y} .",
        "this time , {y} .",
        "in the end , {y} .",
        "it is true that {y} .",
        "i must admit that {y} .",
        "there is no doubt that {y} .",
        "nobody can deny that {y} .",
        "it has to be said that {y} .",
        "make no mistake , {y} .",
        "as far as i can tell , {y} .",
    ],
    "denial": [
        "it is not true that {x} .",
        "nobody could say that {x} .",
        "i can't agree that {x} .",
        "i doubt that {x} .",
        "it would be wrong to say that {x} .",
        "i don't believe that {x} .",
    ],
    "agreement": [
        "{y} and {y} .",
        "{y} , and {y} .",
        "{y} ; {y} .",
        "{y} , and what is more , {y} .",
        "{y} ; on top of that , {y} .",
        "it isn't just that {y} ; {y} .",
        "it is fair to say that {y} and that {y} .",
        "{y} , {y} and {y} .",
    ],
    "contrast": [
        "{x} , but {y} .",
        "{x} , yet {y} .",
        "{x} ; still , {y} .",
        "although {x} , {y} .",
        "{y} , although {x} .",
        "{y} , even though {x} .",
        "{x} , but {y} and {y} .",
        "although {x} , {y} and {y} .",
        "{y} and {y} , even though {x} .",
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
        print(
            f"{split}: {len(reviews)} reviews, {positive:.1%} positive, "
            f"{sum(lengths) / len(lengths):.1f} tokens on average, {max(lengths)} at most"
        )
    words = {word for reviews in splits.values() for review in reviews for word in review.text.split()}
    negated = [negated for review in splits["train"] for _, _, negated in review.uses]
    print(f"{len(words)} distinct words; {sum(negated) / len(negated):.1%} of train's clauses are negated")
    for name, ngrams in (("unigrams", 1), ("bigrams", 2)):
        print(f"accuracy on dev from {name} alone: {bag_of_words_score(splits['train'], splits['dev'], ngrams):.3f}")


def build_reviews(clauses, folder, seed):
    """Composes the reviews, writes SST-2/*.tsv under `folder` and returns {split: [Review]}."""
    splits = compose_splits(clauses, random.Random(seed))
    check_splits(splits)
    unlabelled = splits.pop("unlabelled")
    write_splits(splits, os.path.join(folder, "SST-2"))
    report_splits(splits)
    return {**splits, "unlabelled": unlabelled}


# Vocabulary


def make_vocabulary(words, size):
    """BERT's special tokens, every character, the most frequent words, and the pieces that most of the other words
    need.

    Args: words: Counter. The rarer words are left to pieces on purpose, so that augmentation has words for its vectors.
    """
    characters = sorted({character for word in words for character in word})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{letter}" for letter in characters)]
    by_frequency = sorted(words, key=lambda word: (-words[word], word))
    whole = [word for word in by_frequency if len(word) > 1 and words[word] >= MIN_WORD_COUNT]
    pieces = Counter()
    for word in set(words) - set(whole):
        for cut in range(2, len(word) - 1):
            pieces[word[:cut]] += cut
            pieces[f"##{word[cut:]}"] += len(word) - cut
    common = sorted(pieces, key=lambda piece: (-pieces[piece], piece))
    for token in [*whole, *common]:
        if len(vocabulary) == size:
            break
        if token not in vocabulary:
            vocabulary.append(token)
    return vocabulary


# Teacher


def mask_tokens(input_ids, tokenizer, generator):
    """Mask tokens as BERT does; returns (masked ids, labels with -100 where nothing is asked)."""
    draw = torch.rand(input_ids.shape, generator=generator)
    ordinary = input_ids > tokenizer.mask_token_id  # the special tokens come first in the vocabulary
    chosen = (draw < MASK_RATE) & ordinary
    labels = torch.where(chosen, input_ids, -100)
    masked = torch.where(chosen & (draw < MASK_RATE * 0.8), tokenizer.mask_token_id, input_ids)
    random_ids = torch.randint(tokenizer.mask_token_id + 1, len(tokenizer.vocab), input_ids.shape, generator=generator)
    return torch.where(chosen & (draw >= MASK_RATE * 0.8) & (draw < MASK_RATE * 0.9), random_ids, masked), labels


def make_sequences(texts, tokenizer):
    """Sequences from (sentence, second sentence or None)."""
    builder = SequencesBuilder(len(tokenizer.vocab), pad_token_id=tokenizer.pad_token_id)
    for first, second in texts:
        pieces = [tokenizer.ids(first), None if second is None else tokenizer.ids(second)]
        input_ids, token_types = tokenizer.encode_pair(*pieces, TEACHER["max_position_embeddings"])
        builder.add(input_ids, len(input_ids) - sum(token_types))
    return builder.build()


def alone_and_in_pairs(sentences, rng):
    """Every sentence once, in random order, alone and in pairs by turns: (sentence, second sentence or None)."""
    queue, texts = rng.sample(sentences, len(sentences)), []
    while queue:
        texts.append((queue.pop(), queue.pop() if queue and rng.random() < 0.5 else None))
    return texts


def pretrain_teacher(clauses, sentences, tokenizer, folder, seed):
    """Train a small BERT as a masked LM and write its folder, weights as float16.

    The clauses come first, alone: on whole reviews from the start the model stays at the words' frequencies for long.
    """
    torch.manual_seed(seed)
    keep_freed_memory()
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    model = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer.vocab), **TEACHER))
    forms = [(form, None) for clause in clauses for form in clause.forms.values()]
    epochs = [make_sequences(forms, tokenizer)] * CLAUSE_EPOCHS
    epochs += [make_sequences(alone_and_in_pairs(sentences, rng), tokenizer) for _ in range(REVIEW_EPOCHS)]
    batches = [epoch_batches(epoch.lengths, BATCH_SIZE, seed, number) for number, epoch in enumerate(epochs)]
    # BertAdam corrects no bias, so its first steps are several times the rate: 1e-3 ruins this model for good.
    optimizer = BertAdam(decay_groups(model, 0.01), 3e-4, 0.05, sum(map(len, batches)), "warmup_linear")
    for number, epoch in enumerate(epochs):
        loss_sum = 0.0
        for indices in batches[number]:
            loss = masked_lm_loss(model, epoch.batch(indices), tokenizer, generator)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum += loss.item()
        if number >= CLAUSE_EPOCHS or number % 10 == 9:
            mean_loss = loss_sum / len(batches[number])
            print(f"masked LM, epoch {number + 1} of {len(epochs)}: loss {mean_loss:.3f}", flush=True)
    model.config.__dict__.update(NO_DROPOUT)
    model.config.save_pretrained(folder, model.architecture)
    tokenizer.save_pretrained(folder)
    # Half precision halves the file; what it loses is far below what the model knows.
    weights = {key: value.half() for key, value in model.state_dict().items() if not key.endswith("decoder.weight")}
    save_weights(weights, os.path.join(folder, WEIGHTS_NAME))


def masked_lm_loss(model, batch, tokenizer, generator):
    input_ids, labels = mask_tokens(batch["input_ids"], tokenizer, generator)
    output = model.bert(input_ids, batch["token_type_ids"], batch["attention_mask"], score_layers=())
    asked = labels != -100
    return F.cross_entropy(model.cls.predictions(output.hidden_states[-1][asked]), labels[asked])


# Word vectors


def write_vectors(sentences, words, path):
    """Word vectors in GloVe's text format: positive pointwise mutual information of neighbours, factored by SVD."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.linalg import svds

    names = [word for word in words if words[word] > 1 and word.isalpha()]
    names.sort(key=lambda word: (-words[word], word))
    index = {word: row for row, word in enumerate(names)}
    counts = Counter()
    for sentence in sentences:
        rows = [index[word] for word in sentence if word in index]
        for position, row in enumerate(rows):
            for distance, other in enumerate(rows[position + 1 : position + 1 + WINDOW], 1):
                counts[row, other] += 1 / distance
                counts[other, row] += 1 / distance
    (rows, columns), values = np.array(list(counts)).T, np.array(list(counts.values()))
    matrix = coo_matrix((values, (rows, columns)), shape=(len(names), len(names))).tocsr()
    sums = np.asarray(matrix.sum(axis=1)).ravel()
    matrix = matrix.tocoo()
    gain = np.maximum(np.log(matrix.data * sums.sum() / (sums[matrix.row] * sums[matrix.col])), 0)
    matrix = coo_matrix((gain, (matrix.row, matrix.col)), shape=matrix.shape).tocsr()
    left, strength, _ = svds(matrix, k=VECTOR_SIZE, v0=np.ones(len(names)))
    vectors = left * np.sqrt(strength)
    with atomic_write(path) as file:
        for word, vector in zip(names, vectors, strict=True):
            file.write(f"{word} {' '.join(f'{value:.4f}' for value in vector)}\n")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default=HERE, help="folder that the sample is written to")
    parser.add_argument("--reviews_only", action="store_true", help="leave teacher, student and vectors as they are")
    parser.add_argument("--seed", type=int, default=SEED, help="the same seed gives the same bytes")
    return parser.parse_args()


def build_models(clauses, splits, folder, seed):
    """The vocabulary and the pre-trained teacher, the student's configuration, and the word vectors."""
    with open(CORPUS, encoding="utf-8") as lines:
        documents = [line.strip() for line in lines if line.strip()]
    basic = BasicTokenizer(do_lower_case=True)
    texts = [review.text for review in splits["train"]] + documents
    words = Counter(word for text in texts for word in basic.tokenize(text))
    vocabulary = make_vocabulary(words, VOCABULARY_SIZE)
    tokenizer = BertTokenizer({token: index for index, token in enumerate(vocabulary)}, do_lower_case=True)
    print(f"vocabulary of {len(vocabulary)} pieces for {len(words)} words")
    texts += [review.text for review in splits["unlabelled"]]
    write_vectors([basic.tokenize(text) for text in texts], words, os.path.join(folder, "vectors.txt"))
    for name in ("teacher", "student"):
        os.makedirs(os.path.join(folder, name), exist_ok=True)
    student = BertConfig(vocab_size=len(vocabulary), **STUDENT, **NO_DROPOUT)
    student.save_pretrained(os.path.join(folder, "student"), "BertForPreTraining")
    pretrain_teacher(clauses, texts + documents, tokenizer, os.path.join(folder, "teacher"), seed)


def main():
    args = parse_args()
    clauses = read_clauses(os.path.join(HERE, "clauses.tsv"))
    splits = build_reviews(clauses, args.output_dir, args.seed)
    if not args.reviews_only:
        build_models(clauses, splits, args.output_dir, args.seed)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
