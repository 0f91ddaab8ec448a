"""Stage 1: widen a task's training set by replacing words (TinyBERT, algorithm 1 of the paper).

Each word that carries meaning is replaced, with probability --p, by one of its candidates: a word of one piece is
masked and the masked language model proposes --M others; a word of several pieces gets its --M nearest GloVe
neighbours. Every sentence is tried --N times; what comes out new is kept, with the row's label.

Reads:   <glue_dir>/<task>/train.tsv, a BERT with a masked-LM head, GloVe vectors (text)
Writes:  <glue_dir>/<task>/train_aug.tsv: the header, then each row itself followed by its variants

    python data_augmentation.py --pretrained_bert_model teacher_model --glove_embs 1_pre_data/glove.6B.100d.txt \\
        --glue_dir . --task_name SST-2
    python data_augmentation.py --sample

第一步：数据增强。用掩码语言模型和 GloVe 近邻替换词语，写出 train_aug.tsv。
"""

import logging
import os
import re
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from transformer import stages
from transformer.file_utils import UserError, model_folder, upload
from transformer.glue import TaskFile, find_task, read_lines
from transformer.modeling import BertConfig, BertForMaskedLM, check_vocabulary, load_state_dict
from transformer.stages import flag
from transformer.tokenization import BertTokenizer
from transformer.training import launch

# For debugging in an editor: a flag's value put here replaces its default, e.g. {"sample": True, "limit": 20}.
HEADER = {}

CHUNK_ROWS = 128  # rows between two saved states; their masked words share batches
BATCH_TOKENS = 4096  # tokens in one batch of masked sequences

# Words that stay: they hold a sentence together and carry little of its meaning.
_STOP_WORDS = """
    i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her hers herself
    it its itself they them their theirs themselves what which who whom this that these those am is are was were be
    been being have has had having do does did doing a an the and but if or because as until while of at by for with
    about against between into through during before after above below to from up down in out on off over under
    again further then once here there when where why how all any both each few more most other some such no nor not
    only own same so than too very s t can will just don should now
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
WORD = re.compile("[a-z]+")  # only such words are replaced, in any case of letters


def parse_args(argv=None):
    parser = stages.make_parser(__doc__)
    group = parser.add_argument_group("input")
    flag(group, "--pretrained_bert_model", help="folder or name of a BERT with a masked-LM head (teacher_model)")
    flag(
        group,
        "--glove_embs",
        help="GloVe vectors as text: a word and its numbers a line (1_pre_data/glove.6B.100d.txt)",
    )
    flag(group, "--glue_dir", help="folder that holds the task's folder (.)")
    flag(group, "--task_name", help="a GLUE task, in any case of letters (SST-2)")
    group = parser.add_argument_group("augmentation")
    flag(group, "--N", type=int, help="tries a sentence; repeated results are dropped (30)")
    flag(group, "--M", type=int, help="candidates a word (15)")
    flag(group, "--p", type=float, help="probability that a word is replaced, 0 to 1 (0.4)")
    flag(group, "--cache_dir", help="where downloaded models are kept")
    flag(group, "--no_cuda", action="store_true", help="stay on the CPU")
    stages.add_common_flags(parser, "limit")
    args = parser.parse_args(argv)
    sample = stages.SAMPLE_AUGMENTATION if args.sample or HEADER.get("sample") else {}
    args.origins = stages.settle(args, ("script header", HEADER), ("sample", sample), ("default", stages.AUGMENTATION))
    stages.check_positive(args, "M", "limit")
    if args.N < 0 or not 0 <= args.p <= 1:
        raise UserError(f"--N {args.N} --p {args.p}: expected N of at least 0 and p from 0 to 1")
    return args


def main():
    args = parse_args()
    stages.set_up_logging()
    logging.info("data augmentation: %s", args.task_name)
    stages.print_settings(args)
    task = find_task(args.task_name)
    folder = Path(args.glue_dir) / task.name
    output = folder / "train_aug.tsv"
    bert = model_folder(args.pretrained_bert_model, args.cache_dir)
    train_file = TaskFile(folder / "train.tsv", task)

    inputs = {"pretrained_bert_model": bert, "glove_embs": args.glove_embs, "glue_dir": folder / "train.tsv"}
    record = stages.OutputRecord(folder / "train_aug.run.json", output, "data_augmentation", args, inputs)
    status = record.claim([output], args.overwrite_output)
    if status != "finished":
        place = launch(args)
        model, tokenizer = load_masked_lm(bert, place)
        proposer = CandidateProposer(model, tokenizer, WordVectors(args.glove_embs), args.M, place)
        augment_file(train_file, output, proposer, args, record)
        record.finish()
    upload([output], args.data_url)
    logging.info("%s: %s", "written" if status != "finished" else "finished before", output)
    stages.hint_next("pregenerate_training_data.py", args)


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


def augment_file(train_file, output, proposer, args, record):
    """Write the header, then every row and its variants; goes on after the last chunk that a killed run saved."""
    part = output.with_name(f"{output.name}.part")
    progress = record.progress or {"rows": 0, "written": 0, "bytes": 0}
    if output.exists() and not part.exists() and record.progress:
        return  # killed between the rename and the record's last line: all was written
    total = count_rows(train_file, args.limit)
    record.begin()
    if not part.exists() or part.stat().st_size < progress["bytes"]:
        progress = {"rows": 0, "written": 0, "bytes": 0}  # somebody removed it
    with stages.append_to(part, progress["bytes"]) as file:
        if not progress["bytes"] and train_file.header is not None:
            file.write(f"{train_file.header}\n".encode())
        bar = tqdm(total=total, initial=progress["rows"], unit="row", disable=None)
        for rows in chunks(train_file, args.limit, progress["rows"]):
            lines = augment_rows(rows, progress["rows"], train_file, proposer, args)
            file.write("".join(f"{line}\n" for line in lines).encode())
            progress["rows"], progress["written"] = progress["rows"] + len(rows), progress["written"] + len(lines)
            progress["bytes"] = file.tell()
            record.save_progress(file, progress)
            bar.update(len(rows))
        bar.close()
    os.replace(part, output)
    logging.info("%d rows in, %d rows out", progress["rows"], progress["written"])


def count_rows(train_file, limit):
    """Rows to do, for the progress bar; a row that cannot be read is found here, before anything is written."""
    rows = sum(1 for _ in train_file)
    return min(rows, limit) if limit else rows


def chunks(train_file, limit, start):
    """Yield lists of CHUNK_ROWS rows from row `start` on."""
    chunk = []
    for number, row in enumerate(train_file):
        if limit is not None and number >= limit:
            break
        if number >= start:
            chunk.append(row)
        if len(chunk) == CHUNK_ROWS:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def augment_rows(rows, first_number, train_file, proposer, args):
    """The output lines of some rows: each row as it stands, then its variants, one text column at a time."""
    candidates = proposer.candidates({text for row in rows for text in row.texts})
    lines = []
    for number, row in enumerate(rows, first_number):
        # Each row draws from its own generator, so the output depends on the seed only, not on what came before. The
        # reference draws from generators that nobody seeds.
        rng = np.random.default_rng([args.seed, number])
        lines.append("\t".join(row.columns))
        for text, index in zip(row.texts, train_file.text_indices, strict=True):
            for variant in make_variants(text, *candidates[text], args.N, args.p, rng):
                # The row's other sentence stays the original one; in the reference it keeps its last variant.
                columns = list(row.columns)
                columns[index] = variant
                lines.append("\t".join(columns))
    return lines


def make_variants(text, words, candidates, tries, probability, rng):
    """New sentences from the words of `text` and each word's candidates {index: [word, ...]}, without repetitions."""
    seen, variants = {text, " ".join(words)}, []
    for _ in range(tries):
        new_words = list(words)
        for index, choices in candidates.items():
            choice = choices[rng.integers(len(choices))]
            if rng.random() < probability:
                new_words[index] = choice
        variant = " ".join(new_words)
        if variant not in seen:
            seen.add(variant)
            variants.append(variant)
    return variants


class CandidateProposer:
    """Proposes substitutes for words: from the masked LM, or for words of several pieces from GloVe."""

    def __init__(self, model, tokenizer, vectors, num_candidates, place):
        self.model, self.tokenizer, self.vectors, self.place = model, tokenizer, vectors, place
        self.num_candidates = num_candidates
        self.max_length = model.config.max_position_embeddings

    def candidates(self, texts):
        """{text: (words, {word index: candidates})}; words without candidates are left out."""
        result, requests = {}, []
        for text in sorted(texts):
            words_and_ids = self.tokenizer.words_and_ids(text)
            result[text] = ([word for word, _ in words_and_ids], {})
            requests += self._requests(text, words_and_ids, result[text][1])
        for text, index, proposed in self._run_masked_lm(requests):
            word = result[text][0][index]
            # Neither [UNK] and its kin, nor half words, nor the word itself are substitutes; the reference drops the
            # half words only.
            kept = [
                token for token in proposed if token != word and not token.startswith("##") and not is_special(token)
            ]
            if kept:
                result[text][1][index] = kept
        # In the order of the words, whichever way they came: the draws follow this order.
        return {text: (words, dict(sorted(found.items()))) for text, (words, found) in result.items()}

    def _requests(self, text, words_and_ids, found):
        """Masked sequences for words of one piece: (text, word index, ids, length of segment 0, mask position).

        Words of several pieces get their neighbours into `found` right away.
        """
        pieces = [piece for _, ids in words_and_ids for piece in ids]
        position = 0
        for index, (word, ids) in enumerate(words_and_ids):
            if WORD.fullmatch(word.lower()) and word.lower() not in STOP_WORDS:
                if len(ids) == 1:
                    yield (text, index, *self._masked_pair(pieces, position))
                elif neighbours := self.vectors.neighbours(word.lower(), self.num_candidates):
                    found[index] = neighbours
            position += len(ids)

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
    def _run_masked_lm(self, requests):
        """Yield (text, word index, the most likely tokens at the mask), in batches of sequences of similar length."""
        requests = sorted(requests, key=lambda request: len(request[2]), reverse=True)
        while requests:
            size = max(BATCH_TOKENS // len(requests[0][2]), 1)
            batch, requests = requests[:size], requests[size:]
            length = len(batch[0][2])
            input_ids = torch.full((len(batch), length), self.tokenizer.pad_token_id)
            token_type_ids, attention_mask = torch.zeros_like(input_ids), torch.zeros_like(input_ids)
            for row, (_, _, ids, first_length, _) in enumerate(batch):
                input_ids[row, : len(ids)] = torch.tensor(ids)
                token_type_ids[row, first_length : len(ids)] = 1
                attention_mask[row, : len(ids)] = 1
            positions = torch.tensor([request[4] for request in batch])
            inputs = [tensor.to(self.place.device) for tensor in (input_ids, token_type_ids, attention_mask, positions)]
            with self.place.autocast():
                scores = self.model(*inputs)  # (B, V): the head runs at the mask only
            best = scores.float().topk(min(self.num_candidates, scores.shape[1])).indices.tolist()
            for (text, index, *_), ids in zip(batch, best, strict=True):
                yield text, index, self.tokenizer.convert_ids_to_tokens(ids)


def is_special(token):
    """[UNK], [PAD], [MASK], [unused7], ..."""
    return len(token) > 2 and token[0] == "[" and token[-1] == "]"


class WordVectors:
    """Word vectors, normalised, and their nearest neighbours by cosine."""

    def __init__(self, path):
        """Read GloVe's text format. Raises UserError: a missing or empty file, a line of another length, no numbers."""
        if not Path(path).is_file():
            raise UserError(f"{path}: no such file; `python -m transformer.file_utils glove` fetches GloVe's vectors")
        self.index, blocks, block, width = {}, [], [], None
        for line, text in read_lines(path):
            word, _, numbers = text.rstrip(" ").partition(" ")
            count = numbers.count(" ") + 1
            width = width or count
            if count != width or not numbers:
                raise UserError(
                    f"{path} line {line}: {count if numbers else 0} numbers after the word, expected {width}"
                )
            self.index.setdefault(word, line - 1)
            block.append(numbers)
            if len(block) == 10_000:
                blocks.append(parse_numbers(block, width, line, path))
                block = []
        if block:
            blocks.append(parse_numbers(block, width, line, path))
        if not blocks:
            raise UserError(f"{path}: the file is empty")
        vectors = np.concatenate(blocks)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        self.vectors = vectors / np.where(norms == 0, 1, norms)
        self.words = [""] * len(vectors)
        for word, row in self.index.items():
            self.words[row] = word
        self._known = {}

    def neighbours(self, word, count):
        """The `count` words nearest to `word`, nearest first; [] for a word without a vector."""
        if word not in self.index:
            return []
        if word not in self._known:
            row = self.index[word]
            cosines = self.vectors @ self.vectors[row]
            cosines[row] = -np.inf
            nearest = np.argpartition(-cosines, min(count, len(cosines) - 1))[: count + 1]
            nearest = nearest[np.argsort(-cosines[nearest], kind="stable")][:count]
            self._known[word] = [
                self.words[row]
                for row in nearest
                if self.words[row] not in ("", word) and not is_special(self.words[row])
            ]
        return self._known[word]


def parse_numbers(block, width, last_line, path):
    """The numbers of some lines as float32 (lines, width). Raises UserError naming the line that is not all numbers."""
    try:
        return np.array(" ".join(block).split(" "), dtype=np.float32).reshape(-1, width)
    except ValueError:
        for offset, numbers in enumerate(block):
            try:
                np.array(numbers.split(" "), dtype=np.float32)
            except ValueError:
                line = last_line - len(block) + 1 + offset
                raise UserError(f"{path} line {line}: expected a word and {width} numbers") from None
        raise


if __name__ == "__main__":
    stages.run(main)
