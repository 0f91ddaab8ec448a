"""Stage 1: widen a task's training set by replacing words (TinyBERT, algorithm 1 of the paper).

Each word that carries meaning is replaced, with probability --p, by one of its candidates: a word of one piece is
masked and the masked language model proposes --M others; a word of several pieces gets its --M nearest GloVe
neighbours. Every sentence is tried --N times; what comes out new is kept, with the row's label.
Chinese text works too: its characters are joined to the words that the vectors know; a word of one character is masked,
a longer one gets its neighbours.

Reads:   <glue_dir>/<task>/train.tsv (.csv, .jsonl), a BERT with a masked-LM head, GloVe vectors (text)
Writes:  <glue_dir>/<task>/train_aug.tsv (.csv, .jsonl): the header, then each row itself followed by its variants;
         beside vectors of more than 16 MB a binary copy, <glove_embs>.npz, which loads faster

The output depends on the inputs, the flags and the seed, not on --batch_size, the number of processes or a stop between
(that is why --precision is fp32 here; in bf16 and fp16, candidates with nearly equal scores may change places with the
batch). On several GPUs or processes:
torchrun --nproc_per_node=2 data_augmentation.py ...

    python data_augmentation.py --pretrained_bert_model teacher_model --glove_embs 1_pre_data/glove.6B.100d.txt \\
        --glue_dir . --task_name SST-2
    python data_augmentation.py --sample

第一步：数据增强。用掩码语言模型和词向量近邻替换词语，写出 train_aug.tsv；中文按词替换。
"""

import logging
import os
import re
import time
from array import array
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from transformer import stages
from transformer.data import SequencesBuilder
from transformer.downloads import model_folder, upload
from transformer.files import UserError
from transformer.glue import TaskFile
from transformer.modeling import BertConfig, BertForMaskedLM, check_vocabulary, load_state_dict
from transformer.own_tasks import find_task
from transformer.stages import flag
from transformer.tokenization import CJK, BertTokenizer
from transformer.training import begin, claim, from_first, gather, launch, leave
from transformer.vectors import WordVectors, is_special

# For debugging in an editor: a flag's value put here replaces its default, e.g. {"sample": True, "limit": 20}.
HEADER = {}

CHUNK_ROWS = 256  # rows of one process between two saved states; their masked words share batches
CUDA_CHUNKS = 4  # so many such chunks on a GPU, which is done with one before the state is saved
REPORT_SECONDS = 60  # between two lines of the log that say how far it is, where nobody watches the bar
FULL_LENGTH = 128  # tokens of the sentences that --batch_size counts

# Two scores of one mask nearer to each other than this, in standard deviations of its scores over the vocabulary, are
# compared in float64. Float32's noise in the same unit, largest of 1.5 million scores: 3e-6 in a random BERT-base with
# weights of deviation 0.02, 6e-6 with 0.05 (a trained one's are between), 3e-5 with 0.1; 3e-6 in the sample's teacher.
# Two scores err by at most 1.2e-5 in a trained model, then, and this is 1.7 times that, a model of deviation 0.1 left
# aside. It sends 0.7% of a random BERT-base's words through float64; 1e-4 would send 6%.
TIE = 2e-5
SAMPLED = 2000  # scores of a mask, at least, that its deviation is taken from
HEAD_ROWS = 256  # masks after which their scores over the vocabulary are computed
DECIMALS = 9  # scores equal to so many places in float64 (its noise is 1e-14) are equal: the lower id comes first

# Words that stay: they hold a sentence together and carry little of its meaning.
_STOP_WORDS = """
    i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her hers herself
    it its itself they them their theirs themselves what which who whom this that these those am is are was were be
    been being have has had having do does did doing a an the and but if or because as until while of at by for with
    about against between into through during before after above below to from up down in out on off over under
    again further then once here there when where why how all any both each few more most other some such no nor not
    only own same so than too very s t can will just don should now
    的 地 得 了 着 过 和 与 及 或 但 而 是 有 在 也 都 就 还 又 很 太 更 最 不 没 没有 我 你 您 他 她 它 们 我们 你们
    他们 她们 它们 自己 这 那 这个 那个 这些 那些 这样 那样 谁 什么 怎么 哪 哪里 把 被 让 给 从 到 对 向 于 以 为 因为
    所以 如果 虽然 但是 而且 吗 呢 吧 啊 个 之 其 過 著 與 還 沒 沒有 們 我們 你們 他們 這 這個 那個 個 嗎 從 對 為
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
WORD = re.compile(f"[a-z]+|[{CJK}]+")  # only such words are replaced, in any case of letters
# Where no space stands between two words: both are Chinese or its punctuation; quotes and dashes are so beside one.
_SOLID, _DASHES = CJK + "\u3000-\u30ff\uff01-\uff65", "\u2010-\u2027"
UNSPACED = re.compile(f"(?<=[{_SOLID}]) (?=[{_SOLID}{_DASHES}])|(?<=[{_DASHES}]) (?=[{_SOLID}])")


def parse_args(argv=None):
    parser = stages.make_parser(__doc__)
    group = parser.add_argument_group("input")
    flag(group, "--pretrained_bert_model", help="folder or name of a BERT with a masked-LM head (teacher_model)")
    flag(
        group,
        "--glove_embs",
        help="word vectors as text: a word and its numbers a line (1_pre_data/glove.6B.100d.txt); for Chinese text "
        "Chinese ones, whose words the text is then cut into",
    )
    flag(group, "--glue_dir", help="folder that holds the task's folder (.)")
    flag(group, "--task_name", help="a GLUE task, in any case of letters, or a folder of your own data (SST-2)")
    group = parser.add_argument_group("augmentation")
    flag(group, "--N", type=int, help="tries a sentence; repeated results are dropped (30)")
    flag(group, "--M", type=int, help="candidates a word (15)")
    flag(group, "--p", type=float, help="probability that a word is replaced, 0 to 1 (0.4)")
    flag(
        group,
        "--batch_size",
        type=int,
        help="masked sentences of 128 tokens computed at once; of shorter ones there are more (32)",
    )
    flag(group, "--cache_dir", help="where downloaded models are kept")
    flag(group, "--no_cuda", action="store_true", help="stay on the CPU")
    stages.add_common_flags(parser, "limit")
    args = parser.parse_args(argv)
    sample = stages.SAMPLE_AUGMENTATION if args.sample or HEADER.get("sample") else {}
    sample = stages.sample_values(sample, args.task_name or HEADER.get("task_name"))
    args.origins = stages.settle(args, ("script header", HEADER), ("sample", sample), ("default", stages.AUGMENTATION))
    stages.check_positive(args, "M", "limit", "batch_size")
    if args.N < 0 or not 0 <= args.p <= 1:
        raise UserError(f"--N {args.N} --p {args.p}: expected N of at least 0 and p from 0 to 1")
    return args


def main():
    args, started = parse_args(), time.monotonic()
    place = launch(args)
    # Products in TF32 would not only be noisier than TIE allows for: they would also miss neighbours of words.
    torch.set_float32_matmul_precision("highest")
    stages.set_up_logging(quiet=not place.first)
    logging.info("data augmentation: %s on %s", args.task_name, place)
    stages.print_settings(args)
    task = find_task(args.task_name, Path(args.glue_dir) / args.task_name)
    args.task_name = task.name  # the record knows one way to write it
    folder = Path(args.glue_dir) / task.name
    output = folder / task.augmented_file
    bert = model_folder(args.pretrained_bert_model, args.cache_dir)
    train_file = TaskFile(folder / task.train_file, task)

    inputs = {"pretrained_bert_model": bert, "glove_embs": args.glove_embs, "glue_dir": folder / task.train_file}
    record = stages.OutputRecord(folder / "train_aug.run.json", output, "data_augmentation", args, inputs)
    status, done = claim(record, [output], args.overwrite_output, place), ""
    if status != "finished":
        done = augment_file(train_file, output, bert, args, record, place)
        if place.first:
            record.finish()
    leave(place)
    if place.first:
        upload([output], args.data_url)
    stages.sum_up(status, output, started, done)
    defaults = {**stages.PREGENERATION, **(stages.SAMPLE_PREGENERATION if args.sample else {})}
    stages.hint_next("pregenerate_training_data.py", args, {"bert_model": args.pretrained_bert_model}, defaults)


def load_masked_lm(folder, place):
    """The masked LM and its tokenizer. Raises UserError for a checkpoint without a masked-LM head."""
    config, tokenizer = BertConfig.from_pretrained(folder), BertTokenizer.from_pretrained(folder)
    check_vocabulary(config, tokenizer, folder)
    if "cls.predictions.transform.dense.weight" not in load_state_dict(folder):
        raise UserError(
            f"{folder}: this checkpoint has no masked-LM head (cls.predictions.*), so it cannot propose words; "
            "take a BERT that was saved as a masked LM, such as bert-base-uncased"
        )
    return BertForMaskedLM.from_pretrained(folder).to(place.device).eval(), tokenizer


def augment_file(train_file, output, bert, args, record, place):
    """Write the header, then every row and its variants; goes on after the last round that a killed run saved.

    Returns a phrase that tells how many rows came in and went out.
    """
    part = output.with_name(f"{output.name}.part")
    # What the first process sees counts: it alone knows the record and changes the files.
    progress = from_first(find_progress(output, part, record), place)
    if progress is None:
        return "all rows were written before"
    before = progress["rows"]
    model, tokenizer = load_masked_lm(bert, place)
    vectors = WordVectors(args.glove_embs, keep_copy=place.first)
    proposer = CandidateProposer(model, tokenizer, vectors, args.M, place, args.batch_size)
    total = prepare(proposer, train_file, progress["rows"], args.limit, place)
    begin(record, place)
    if place.first:
        with stages.append_to(part, progress["bytes"]) as file:
            if not progress["bytes"] and train_file.header is not None:
                file.write(f"{train_file.header}\n".encode())
            write_rounds(train_file, proposer, progress, total, file, record, args, place)
        os.replace(part, output)
    else:
        write_rounds(train_file, proposer, progress, total, None, record, args, place)
    here = f" ({before} of them before)" if before else ""
    skipped = f", {train_file.skipped} left out" if train_file.skipped else ""
    return f"{progress['rows']} rows in{here}{skipped}, {progress['written']} rows out"


def find_progress(output, part, record):
    """What was written and saved before: {"rows": read, "written": rows, "bytes": of the file}; None = everything."""
    progress = record.progress
    if progress and output.exists() and not part.exists():
        return None  # killed between the rename and the record's last line
    if not progress or not part.exists() or part.stat().st_size < progress["bytes"]:
        return {"rows": 0, "written": 0, "bytes": 0}  # nothing was, or somebody removed it
    return progress


def prepare(proposer, train_file, start, limit, place):
    """Go through the rows once: what they need of the vectors, and which texts come again. Returns how many rows.

    A row that cannot be read is found here, before anything is written.
    """
    total = sum(1 for _ in train_file)
    hashes, words = array("q"), set()  # of the texts; a hash that two of them share costs memory, no more
    for _, _, rows in rounds(train_file, start, limit, place):
        for text in (text for row in rows for text in row.texts):
            hashes.append(hash(text))
            words |= proposer.looked_up(proposer.split(text))
    proposer.look_up(words)
    proposer.vectors = None  # the largest thing in memory beside the model
    hashes, counts = np.unique(np.array(hashes, dtype=np.int64), return_counts=True)
    proposer.to_come = dict(zip(hashes[counts > 1].tolist(), counts[counts > 1].tolist(), strict=True))
    return min(total, limit) if limit else total


def rounds(train_file, start, limit, place):
    """Yield (rows of the round, number of this process's first one, this process's) from row `start` on.

    In a round the processes take equal parts, the first the first; the number of processes may change between two runs.
    """
    rows = islice(train_file, start, limit)
    size = CHUNK_ROWS * place.world_size * (CUDA_CHUNKS if place.device.type == "cuda" else 1)
    while part := list(islice(rows, size)):
        share = -(-len(part) // place.world_size)
        first = min(place.rank * share, len(part))
        yield len(part), start + first, part[first : first + share]
        start += len(part)


def write_rounds(train_file, proposer, progress, total, file, record, args, place):
    """Compute the lines of all rounds; the first process writes them to `file` and saves how far it came."""
    before, started = progress["rows"], time.monotonic()
    told = started
    bar = tqdm(total=total, initial=before, unit="row", disable=None if place.first else True)
    with bar, logging_redirect_tqdm():
        for rows, first_number, mine in rounds(train_file, before, args.limit, place):
            lines = augment_rows(mine, first_number, train_file, proposer, args)
            parts = gather((len(lines), "".join(f"{line}\n" for line in lines).encode()), place)
            if place.first:
                file.writelines(text for _, text in parts)
                progress["rows"] += rows
                progress["written"] += sum(written for written, _ in parts)
                progress["bytes"] = file.tell()
                record.save_progress(file, progress)
                bar.update(rows)
                now = time.monotonic()
                if bar.disable and now - told >= REPORT_SECONDS and progress["rows"] < total:
                    speed, told = (progress["rows"] - before) / (now - started), now
                    left = (total - progress["rows"]) / speed / 60
                    logging.info("%d of %d rows, %.1f rows/s, %.0f min left", progress["rows"], total, speed, left)


def augment_rows(rows, first_number, train_file, proposer, args):
    """The output lines of some rows: each row as it stands, then its variants, one text column at a time."""
    candidates = proposer.candidates([text for row in rows for text in row.texts])
    lines = []
    for number, row in enumerate(rows, first_number):
        # Each row draws from its own generator, so the output depends on the seed only, not on what came before. The
        # reference draws from generators that nobody seeds.
        rng = np.random.default_rng([args.seed, number])
        lines.append(train_file.table.line(row.columns))
        for text, key in zip(row.texts, train_file.text_keys, strict=True):
            for variant in make_variants(text, *candidates[text], args.N, args.p, rng):
                # The row's other sentence stays the original one; in the reference it keeps its last variant.
                columns = row.columns.copy()
                columns[key] = variant
                lines.append(train_file.table.line(columns))
    return lines


def make_variants(text, words, candidates, tries, probability, rng):
    """New sentences from the words of `text` and each word's candidates {index: [word, ...]}, without repetitions."""
    if not candidates or not tries:
        return []
    seen, variants = {text, join_words(words)}, []
    counts = [len(choices) for choices in candidates.values()]
    drawn = rng.integers(counts, size=(tries, len(counts))).tolist()
    replaced = (rng.random((tries, len(counts))) < probability).tolist()
    for choices, flags in zip(drawn, replaced, strict=True):
        new_words = words.copy()
        for (index, options), choice, replace in zip(candidates.items(), choices, flags, strict=True):
            if replace:
                new_words[index] = options[choice]
        variant = join_words(new_words)
        if variant not in seen:
            seen.add(variant)
            variants.append(variant)
    return variants


def join_words(words):
    """The sentence of some words, spaces between them but not inside Chinese."""
    text = " ".join(words)
    return text if text.isascii() else UNSPACED.sub("", text)


def replaceable(word):
    return WORD.fullmatch(word.lower()) and word.lower() not in STOP_WORDS


class CandidateProposer:
    """Proposes substitutes for words: from the masked LM, or for words of several pieces from word vectors.

    `to_come`: {hash of a text: how often it is still to come}, for texts that come more than once; what was proposed
    for them is kept until then. `vectors` may be set to None when all words needed were looked up.
    """

    def __init__(self, model, tokenizer, vectors, num_candidates, place, batch_size=32):
        self.model, self.tokenizer, self.vectors, self.place = model, tokenizer, vectors, place
        self.num_candidates, self.batch_tokens = num_candidates, batch_size * FULL_LENGTH
        self.max_length = model.config.max_position_embeddings
        self.chinese_words, self.neighbours = vectors.chinese_words, {}
        self.to_come, self.kept = {}, {}
        # Neither [UNK] and its kin nor half words are substitutes; the reference drops the half words only.
        self.offered = [
            None if token.startswith("##") or is_special(token) else token for token in tokenizer.ids_to_tokens
        ]

    def candidates(self, texts):
        """{text: (words, {word index: candidates})}; words without candidates are left out.

        Args: texts: as they come, repetitions included.
        """
        split = {text: self.split(text) for text in sorted(set(texts))}
        self.look_up(set().union(*map(self.looked_up, split.values())))
        proposed = {text: self.kept[text] for text in split if text in self.kept}
        proposed |= self._propose({text: words for text, words in split.items() if text not in proposed})
        for text in filter(lambda text: hash(text) in self.to_come, texts):
            self.to_come[hash(text)] -= 1
            if self.to_come[hash(text)]:
                self.kept[text] = proposed[text].copy()  # of a view that would keep the chunk's
            else:
                self.kept.pop(text, None)
        return {text: self._choices(words, proposed[text]) for text, words in split.items()}

    def split(self, text):
        """[(word, its pieces' ids)]: the tokenizer's words; runs of Chinese characters as the longest words known."""
        words = self.tokenizer.words_and_ids(text)
        if not self.chinese_words or text.isascii():
            return words
        joined, start = [], 0
        while start < len(words):
            for end in range(min(start + 8, len(words)), start, -1):
                word = "".join(word for word, _ in words[start:end])
                if word in self.chinese_words or end == start + 1:
                    joined.append((word, tuple(piece for _, ids in words[start:end] for piece in ids)))
                    start = end
                    break
        return joined

    def looked_up(self, words):
        """Those of some (word, ids) whose substitutes come from the vectors, in lower case."""
        return {word.lower() for word, ids in words if len(ids) > 1 and replaceable(word)}

    def look_up(self, words):
        """Find the neighbours of words, those known already left out."""
        if unknown := sorted(words - self.neighbours.keys()):
            self.neighbours |= self.vectors.neighbours(unknown, self.num_candidates, self.place.device)

    def _choices(self, split, proposed):
        """(words, {word index: candidates}) of one text from what the model proposed for it."""
        proposed = {index: ids for index, *ids in proposed.tolist()}
        candidates = {}
        for index, (word, ids) in enumerate(split):
            choices = []
            if index in proposed:
                # Nor is the word itself a substitute.
                tokens = map(self.offered.__getitem__, proposed[index])
                choices = [token for token in tokens if token is not None and token != word]
            elif len(ids) > 1 and replaceable(word):
                choices = self.neighbours[word.lower()]
            if choices:
                candidates[index] = choices
        return [word for word, _ in split], candidates

    def _propose(self, texts):
        """{text: (masked words, 1 + M) int32: a word's index and the ids of the model's proposals for it}."""
        builder, indices, masks, ends = SequencesBuilder(len(self.tokenizer)), [], [], []
        for words in texts.values():
            pieces = [piece for _, ids in words for piece in ids]
            position = 0
            for index, (word, ids) in enumerate(words):
                if len(ids) == 1 and replaceable(word):
                    pair, first_length, mask = self._masked_pair(pieces, position)
                    builder.add(pair, first_length)
                    indices.append(index)
                    masks.append(mask)
                position += len(ids)
            ends.append(len(indices))
        if not indices:
            return dict.fromkeys(texts, np.zeros((0, 1), dtype=np.int32))
        best = self._run_masked_lm(builder.build(), np.array(masks))
        table = np.column_stack([indices, best]).astype(np.int32)
        return dict(zip(texts, np.split(table, ends[:-1]), strict=True))

    def _masked_pair(self, pieces, position):
        """[CLS] sentence with the mask [SEP] sentence as it was [SEP], a window around the mask if it is too long."""
        # The reference cuts the sequence at its end, and with it the masks of a long sentence's last words.
        room = (self.max_length - 3) // 2
        start = min(max(position - room // 2, 0), max(len(pieces) - room, 0))
        window = pieces[start : start + room]
        masked = list(window)
        masked[position - start] = self.tokenizer.mask_token_id
        ids, _ = self.tokenizer.encode_pair(masked, window)
        return ids, len(masked) + 2, position - start + 1

    @torch.inference_mode()
    def _run_masked_lm(self, sequences, masks):
        """The most likely ids at `masks` (N,), one of each sequence, the most likely first: (N, M).

        In float32 the ranking is that of exact arithmetic: batches of other shapes round differently, so near scores
        are compared once more in float64.
        """
        count = min(self.num_candidates, len(self.tokenizer))
        best, results = np.zeros((len(masks), count), dtype=np.int64), []
        for rows, scores in self._scores(sequences, masks, np.arange(len(masks)), self.batch_tokens):
            scores = scores.float()
            values, ids = scores.topk(min(count + 1, scores.shape[1]))
            deviation = scores[:, :: max(scores.shape[1] // SAMPLED, 1)].std(dim=1, keepdim=True)
            near = (values[:, :-1] - values[:, 1:] < TIE * deviation).any(dim=1)
            results.append((rows, ids[:, :count], near))
        for rows, ids, _ in results:  # after the loop: each copy waits for the device
            best[rows] = ids.cpu().numpy()
        near = np.concatenate([rows[near.cpu().numpy()] for rows, _, near in results])
        if self.place.dtype == torch.float32 and len(near):
            self.model.double()
            try:
                for rows, scores in self._scores(sequences, masks, near, self.batch_tokens // 2):
                    scores = scores.round(decimals=DECIMALS)
                    best[rows] = scores.sort(dim=1, descending=True, stable=True).indices[:, :count].cpu().numpy()
            finally:
                self.model.float()  # the very weights that it had
        return best

    def _scores(self, sequences, masks, rows, tokens):
        """Yield (some of the rows, their scores over the vocabulary at the masks (R, V)) until all are through."""
        waiting, hidden, to_come = [], [], len(rows)
        for part in batches(rows, sequences.lengths, tokens):
            waiting.append(part)
            hidden.append(self._hidden(sequences, masks, part))
            to_come -= len(part)
            # A batch has few masks, and the vocabulary's matrix is the largest of all: it is read for several at once.
            if not to_come or sum(map(len, waiting)) >= HEAD_ROWS:
                with self.place.autocast():
                    scores = self.model.cls.predictions(torch.cat(hidden))
                yield np.concatenate(waiting), scores[:, : len(self.tokenizer)]  # a config may round the size up
                waiting, hidden = [], []

    def _hidden(self, sequences, masks, rows):
        """The last hidden states at the masks of some sequences, (B, D)."""
        batch = sequences.batch(rows, self.tokenizer.pad_token_id)
        batch["masks"] = torch.from_numpy(masks[rows])
        batch["places"], batch["copies"] = distinct_tokens(batch["input_ids"], batch["token_type_ids"])
        batch = self.place.to_device(batch)
        with self.place.autocast():
            return self.model.bert.states_at(
                batch["masks"],
                batch["input_ids"],
                batch["token_type_ids"],
                batch["attention_mask"],
                (batch["places"], batch["copies"]),
            )


def distinct_tokens(input_ids, token_type_ids):
    """(places, copies) of a batch (B, L): places (U,), an index into the flat batch for each different (id, segment,
    position); copies (B, L), each token's index into `places`."""
    tokens = (2 * input_ids + token_type_ids) * input_ids.shape[1] + torch.arange(input_ids.shape[1])
    _, places, copies = np.unique(tokens.numpy(), return_index=True, return_inverse=True)
    return torch.from_numpy(places), torch.from_numpy(copies.reshape(input_ids.shape))


def batches(rows, lengths, tokens):
    """Cut row numbers into batches, the longest sequences first, of at most so many tokens (or one sequence): all of
    one length where that makes a quarter of `tokens`, else filled up to a quarter with shorter ones."""
    rows = rows[np.argsort(-lengths[rows], kind="stable")]
    while len(rows):
        longest = int(lengths[rows[0]])
        alike = np.count_nonzero(lengths[rows] == longest)
        # Padding costs as much as words do, but so does a batch too small for the processor.
        size = max(min(max(alike, tokens // 4 // longest), tokens // longest), 1)
        yield rows[:size]
        rows = rows[size:]


if __name__ == "__main__":
    stages.run(main)
