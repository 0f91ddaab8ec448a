"""The tokenizer against Hugging Face's on very many strings: a longer run of what tests/test_fuzz.py does.

Reads:  a BERT vocabulary (optional; without it a small one with pieces of many scripts)
Prints: strings tried and differences, by settings; ends with status 1 where there is one

    python tests/benchmarks/fuzz.py --strings 100000 --vocab vocab.txt

Half of the strings mix scripts, marks, controls, special tokens and long words, half are random code points. Left
out are the characters that tests/test_tokenization.py lists with the reason: the two sides' Unicode tables differ.
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

from test_tokenization import comparable_characters, hugging_face, mixed_texts, small_vocab  # noqa: E402

from transformer.tokenization import BertTokenizer, load_vocab  # noqa: E402

SETTINGS = (
    {"do_lower_case": True},
    {"do_lower_case": False},
    {"do_lower_case": True, "strip_accents": False},
    {"do_lower_case": True, "tokenize_chinese_chars": False},
)


def random_texts(count, rng):
    characters = comparable_characters()
    common = [char for char in characters if ord(char) < 0x3000]
    for _ in range(count):
        pool = rng.choice((characters, common, common))
        yield "".join(
            rng.choice(pool) if rng.random() < 0.9 else rng.choice(("the ", "[SEP]", " ", "ing"))
            for _ in range(rng.randint(1, 40))
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strings", type=int, default=100_000, help="strings, divided among the settings")
    parser.add_argument("--vocab", type=Path, help="vocabulary file")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    vocab = load_vocab(args.vocab) if args.vocab else small_vocab()
    differences, each = 0, -(-args.strings // len(SETTINGS))
    print("| settings | strings | pieces | strings that differ |\n|---|---|---|---|")
    for number, config in enumerate(SETTINGS):
        rng, unlike, pieces = random.Random(args.seed + number), 0, 0
        ours = BertTokenizer(vocab, **config)
        with tempfile.TemporaryDirectory() as folder:
            hf = hugging_face(Path(folder), vocab, **config)
            for texts in (mixed_texts(each // 2, rng), random_texts(each - each // 2, rng)):
                for text in texts:
                    ids = hf(text, add_special_tokens=False)["input_ids"]
                    pieces += len(ids)
                    if list(ours.ids(text)) != ids:
                        unlike += 1
                        print(f"differs: {text!a}", file=sys.stderr)
        told = ", ".join(f"{name} {value}" for name, value in config.items())
        print(f"| {told} | {each:,} | {pieces:,} | {unlike} |", flush=True)
        differences += unlike
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
