"""From other teachers than an uncased English BERT: Chinese ones with Huawei's students, cased ones, large ones."""

import json
import random

import pytest
import torch
from tiny import (
    SPECIAL,
    STUDENT,
    TEACHER,
    VOCABULARY,
    call_script,
    flags_from,
    make_sst2,
    make_student_config,
    make_teacher,
)

from transformer.modeling import BertConfig, TinyBertForPreTraining, TinyBertForSequenceClassification
from transformer.tokenization import BertTokenizer

pytestmark = pytest.mark.usefixtures("no_pictures")

CHARACTERS = list("电影好看坏真的我不喜欢这部音乐剧情歌，。")
VECTORS = {"电影": (1, 0.1), "音乐": (0.9, 0.2), "好看": (0.1, 1), "真好": (0.2, 0.9), "剧情": (0.8, 0.1)}


def run(script, *flags):
    found = call_script(script, *flags)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def chinese(tmp_path_factory):
    """A teacher, Huawei's kind of student folder, vectors of words, and a task in CLUE's layout."""
    folder, rng = tmp_path_factory.mktemp("chinese"), random.Random(6)
    tokenizer = BertTokenizer({token: index for index, token in enumerate([*SPECIAL, *CHARACTERS, "##s"])})
    torch.manual_seed(4)
    teacher = TinyBertForPreTraining(BertConfig(**TEACHER, vocab_size=len(tokenizer), initializer_range=0.3))
    (folder / "teacher").mkdir()
    teacher.save_pretrained(folder / "teacher")
    tokenizer.save_pretrained(folder / "teacher")
    student = TinyBertForPreTraining(BertConfig(**STUDENT, vocab_size=len(tokenizer), fit_size=TEACHER["hidden_size"]))
    (folder / "huawei").mkdir()
    keys = {
        "cell": {},
        "emb_size": STUDENT["hidden_size"],
        "structure": [],
        "pre_trained": "",
        "training": "",
        "hidden_act": "gelu",
        "type_vocab_size": 2,
    }
    config = {**STUDENT, "vocab_size": len(tokenizer), **keys}
    (folder / "huawei" / "config.json").write_text(json.dumps(config))
    torch.save(student.state_dict(), folder / "huawei" / "pytorch_model.bin")
    (folder / "huawei" / "vocab.txt").write_text("\n".join(tokenizer.ids_to_tokens) + "\n", encoding="utf-8")
    lines = [f"{word} {x} {y}" for word, (x, y) in VECTORS.items()]
    (folder / "vectors.txt").write_text("\n".join([f"{len(lines)} 2", *lines]) + "\n", encoding="utf-8")
    (folder / "reviews").mkdir()
    for name, count in (("train", 29), ("dev", 11), ("test", 5)):
        rows = [
            {"id": number, "sentence": f"这部{rng.choice(['电影', '音乐', '剧情'])}真{'好坏'[number % 2]}。"}
            for number in range(count)
        ]
        if name != "test":
            rows = [{"label": str(100 + number % 2), **row, "keywords": ""} for number, row in enumerate(rows)]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / "reviews" / f"{name}.json").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.slow
def test_the_chinese_example_runs_from_vectors_of_words_to_predictions(chinese):
    task = [
        "--task_name",
        "reviews",
        "--data_dir",
        chinese / "reviews",
        "--teacher_model",
        chinese / "teacher",
        "--max_seq_length",
        21,
        "--train_batch_size",
        13,
        "--max_steps",
        6,
        "--eval_step",
        3,
    ]
    run(
        "data_augmentation.py",
        "--task_name",
        "reviews",
        "--glue_dir",
        chinese,
        "--pretrained_bert_model",
        chinese / "teacher",
        "--glove_embs",
        chinese / "vectors.txt",
        "--N",
        5,
        "--M",
        3,
    )
    rows = [json.loads(line) for line in (chinese / "reviews" / "train_aug.json").read_text("utf-8").splitlines()]
    assert len(rows) > 40 and not any(" " in row["sentence"] for row in rows)
    assert {"label", "id", "sentence", "keywords"} == set(rows[0]) and {row["label"] for row in rows} == {"100", "101"}
    run("task_distill.py", *task, "--aug_train", "--student_model", chinese / "huawei", "--output_dir", chinese / "4")
    run(
        "task_distill.py",
        *task,
        "--aug_train",
        "--pred_distill",
        "--student_model",
        chinese / "4",
        "--output_dir",
        chinese / "5",
    )
    table = run(
        "task_distill.py",
        *task,
        "--do_eval",
        "--do_predict",
        "--student_model",
        chinese / "5",
        "--output_dir",
        chinese / "5",
    )
    assert "dev acc" in table
    header, *lines = (chinese / "5" / "reviews.tsv").read_text().splitlines()
    assert header == "index\tprediction" and {line.split("\t")[1] for line in lines} <= {"100", "101"}
    assert len(lines) == 5


def test_a_vocabulary_file_is_enough_to_make_sequences(chinese, tmp_path):
    (tmp_path / "corpus.txt").write_text("我喜欢这部电影。\n真好看。\n\n音乐不好。\n我不喜欢。\n", encoding="utf-8")
    flags = ["--train_corpus", tmp_path / "corpus.txt", "--max_seq_len", 19, "--epochs_to_generate", 1]
    for name, model in (("file", chinese / "teacher" / "vocab.txt"), ("folder", chinese / "teacher")):
        run("pregenerate_training_data.py", *flags, "--bert_model", model, "--output_dir", tmp_path / name)
    epochs = [(tmp_path / name / "epoch_0.json").read_bytes() for name in ("file", "folder")]
    assert epochs[0] == epochs[1] and "喜".encode() in epochs[0]


def test_a_cased_teacher_keeps_the_case_in_every_stage(tmp_path):
    words = [*VOCABULARY, "The", "FILM", "##M"]
    tokenizer = BertTokenizer({token: index for index, token in enumerate(words)}, do_lower_case=False)
    torch.manual_seed(4)
    (tmp_path / "teacher").mkdir()
    teacher = TinyBertForPreTraining(BertConfig(**TEACHER, vocab_size=len(words), initializer_range=0.3))
    teacher.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    make_student_config(tmp_path / "student")  # of another vocabulary: the student reads with its teacher's
    (tmp_path / "corpus.txt").write_text("The FILM is good .\nthe film .\n\nThe song .\na plot is the plot .\n")
    make_sst2(tmp_path / "SST-2")
    run(
        "pregenerate_training_data.py",
        "--train_corpus",
        tmp_path / "corpus.txt",
        "--bert_model",
        tmp_path / "teacher",
        "--output_dir",
        tmp_path / "2",
        "--max_seq_len",
        19,
        "--epochs_to_generate",
        1,
    )
    assert '"FILM"' in (tmp_path / "2" / "epoch_0.json").read_text()
    run(
        "general_distill.py",
        "--pregenerated_data",
        tmp_path / "2",
        "--teacher_model",
        tmp_path / "teacher",
        "--student_model",
        tmp_path / "student",
        "--output_dir",
        tmp_path / "3",
        "--max_seq_length",
        19,
        "--max_steps",
        2,
    )
    run(
        "task_distill.py",
        "--data_dir",
        tmp_path / "SST-2",
        "--teacher_model",
        tmp_path / "teacher",
        "--student_model",
        tmp_path / "3",
        "--output_dir",
        tmp_path / "4",
        "--max_seq_length",
        31,
        "--max_steps",
        2,
    )
    assert BertConfig.from_pretrained(tmp_path / "3").vocab_size == len(words) != len(VOCABULARY)
    for folder in ("3", "4", "teacher/SST-2"):
        again = BertTokenizer.from_pretrained(tmp_path / folder)
        assert not again.do_lower_case and again.tokenize("The FILM is") == ["The", "FILM", "is"]


@pytest.mark.parametrize(
    ("teacher", "student", "flags"),
    [
        # BERT-large's proportions: twice as deep, more and other heads than the student's
        ({"num_hidden_layers": 6, "num_attention_heads": 8, "hidden_size": 32}, {"num_hidden_layers": 3}, []),
        pytest.param(
            {"num_hidden_layers": 5, "num_attention_heads": 6}, {}, ["--layer_map", "top"], marks=pytest.mark.slow
        ),
        pytest.param(
            {"num_attention_heads": 2}, {"num_attention_heads": 3}, ["--layer_map", "last"], marks=pytest.mark.slow
        ),
        ({}, {"num_hidden_layers": 1, "num_attention_heads": 1, "hidden_size": 8}, ["--hidden_weight", "0.5"]),
    ],
    ids=["large", "five layers", "last layer", "one layer"],
)
@pytest.mark.slow
def test_teachers_of_any_width_depth_and_head_count_teach_by_relations(tmp_path, teacher, student, flags):
    make_teacher(tmp_path / "teacher", **teacher)
    make_student_config(tmp_path / "student", **student)
    make_sst2(tmp_path / "SST-2")
    (tmp_path / "corpus.txt").write_text("the film is good .\nthe film .\n\nthe song .\na plot is the plot .\n")
    names = {"CORPUS": tmp_path / "corpus.txt", "TEACHER": tmp_path / "teacher", "STUDENT": tmp_path / "student"}
    names |= {"DATA": tmp_path / "SST-2", **{f"OUT{number}": tmp_path / str(number) for number in range(2, 6)}}
    relations = f"--attention_loss relations {' '.join(flags)}"
    for command in (
        "pregenerate_training_data.py --train_corpus CORPUS --bert_model TEACHER --output_dir OUT2 --max_seq_len 19 "
        "--epochs_to_generate 1",
        "general_distill.py --teacher_model TEACHER --pregenerated_data OUT2 --student_model STUDENT --output_dir OUT3 "
        f"--max_seq_length 19 --max_steps 3 {relations}",
        "task_distill.py --teacher_model TEACHER --data_dir DATA --student_model OUT3 --output_dir OUT4 "
        f"--max_seq_length 31 --max_steps 3 {relations}",
        "task_distill.py --pred_distill --teacher_model TEACHER --data_dir DATA --student_model OUT4 --output_dir OUT5 "
        "--max_seq_length 31 --max_steps 3",
    ):
        run(*flags_from(command, **names))
    model = TinyBertForSequenceClassification.from_pretrained(tmp_path / "5")
    assert model.config.num_attention_heads == {**STUDENT, **student}["num_attention_heads"]
    assert all(weight.isfinite().all() for weight in model.state_dict().values())
