"""The scripts' flags: what --help shows, and which of command line, header, sample, task and default wins."""

import re
import shlex
import shutil

import pytest
from pipeline import call
from tiny import ROOT, call_script, scripts

import data_augmentation
import general_distill
import pregenerate_training_data
import task_distill
from transformer import console
from transformer.files import UserError
from transformer.flags import flags_of, model, path
from transformer.glue import TASKS

FLAGS = {
    data_augmentation: "--pretrained_bert_model --glove_embs --glue_dir --task_name --N --M --p --limit --batch_size "
    "--precision",
    pregenerate_training_data: "--train_corpus --output_dir --bert_model --do_lower_case --do_whole_word_mask "
    "--reduce_memory --num_workers --epochs_to_generate --max_seq_len --short_seq_prob --masked_lm_prob "
    "--max_predictions_per_seq --one_seq --limit --packed",
    general_distill: "--pregenerated_data --teacher_model --student_model --output_dir --max_seq_length "
    "--reduce_memory --do_eval --do_lower_case --train_batch_size --eval_batch_size --learning_rate --weight_decay "
    "--wd --num_train_epochs --warmup_proportion --no_cuda --local_rank --gradient_accumulation_steps --fp16 "
    "--continue_train --eval_step --max_steps --init_student --keep_checkpoints --layer_map --attention_loss "
    "--attention_weight --hidden_weight --compile --precision --teacher_precision",
    task_distill: "--data_dir --teacher_model --student_model --task_name --output_dir --cache_dir --max_seq_length "
    "--do_eval --do_lower_case --train_batch_size --eval_batch_size --learning_rate --weight_decay --wd "
    "--num_train_epochs --warmup_proportion --no_cuda --gradient_accumulation_steps --aug_train --eval_step "
    "--pred_distill --temperature --do_finetune --no_finetune --do_predict --do_export --max_steps --layer_map "
    "--attention_loss --attention_weight --hidden_weight --compile --seeds --baseline --precision --student_vocab "
    "--teacher_precision --teacher_states",
}


COMMON_FLAGS = "--data_url --sample --seed --overwrite_output --debug"


def settings_of(script, flags):
    found = script.read_settings(flags)
    return found[0] if isinstance(found, tuple) else found  # with the task beside them


@pytest.mark.parametrize("script", FLAGS, ids=lambda script: script.__name__)
def test_every_flag_is_in_the_help(script, capsys):
    with pytest.raises(SystemExit) as end:
        script.read_settings(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for flag in f"{FLAGS[script]} {COMMON_FLAGS}".split():
        assert re.search(rf"^  .*{flag}\b", text, re.M), flag
    assert script.__doc__.splitlines()[0] in text


GUIDE = """
python data_augmentation.py --pretrained_bert_model teacher_model --glove_embs 1_pre_data/glove.6B.100d.txt --glue_dir . --task_name SST-2
python pregenerate_training_data.py --train_corpus 1_pre_data/documents.txt --output_dir 2_pregenerate_data --bert_model teacher_model --do_whole_word_mask
python general_distill.py --pregenerated_data 2_pregenerate_data --teacher_model teacher_model --student_model student_model --output_dir 3_general_distill --do_lower_case
python task_distill.py --data_dir SST-2 --teacher_model teacher_model --student_model 3_general_distill --task_name sst-2 --output_dir 4_task_distill_mid --aug_train --do_lower_case
python task_distill.py --data_dir SST-2 --teacher_model teacher_model --student_model 4_task_distill_mid --task_name sst-2 --output_dir 5_task_distill_out --aug_train --do_lower_case --pred_distill
python task_distill.py --do_eval --student_model 5_task_distill_out --data_dir SST-2 --task_name SST-2 --output_dir 5_task_distill_out --do_lower_case
"""  # noqa: E501


SCRIPTS = {f"{script.__name__}.py": script for script in FLAGS}


@pytest.mark.parametrize("line", GUIDE.strip().splitlines(), ids=range(6))
def test_the_commands_of_the_guide_mean_what_no_flag_means(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    before = set(ROOT.iterdir())
    _, script, *flags = shlex.split(line)
    given = settings_of(SCRIPTS[script], flags)
    step = [flag for flag in flags if flag in ("--pred_distill", "--do_eval")]
    usual = settings_of(SCRIPTS[script], step)
    different = {name for name in given if given[name] != usual[name]}
    assert different <= {"do_lower_case", "do_whole_word_mask", "aug_train"}
    assert set(ROOT.iterdir()) == before


def test_a_header_value_replaces_the_default_and_a_flag_replaces_it(copy, monkeypatch):
    monkeypatch.setattr(task_distill, "HEADER", {"max_steps": 3, "seed": 8})
    process = call(copy, "intermediate", "--output_dir", copy / "mid", "--seed", 7)
    assert process.returncode == 0, process.stderr
    assert re.search(r"max_steps +3 +script header", process.stdout)
    assert re.search(r"seed +7 +command line", process.stdout)
    assert "global_step = 3\n" in (copy / "mid" / "eval_results.txt").read_text()
    assert '"seed": 7' in (copy / "mid" / "run.json").read_text()


def test_a_header_s_output_folder_is_the_student_s_not_the_teacher_s(copy, monkeypatch):
    shutil.rmtree(copy / "teacher" / "SST-2")
    monkeypatch.setattr(task_distill, "HEADER", {"max_steps": 2, "output_dir": str(copy / "mid")})
    script, flags = scripts(copy)["intermediate"]
    position = flags.index("--output_dir")
    process = call_script(script, *flags[:position], *flags[position + 2 :])
    assert process.returncode == 0, process.stderr
    assert (copy / "teacher" / "SST-2" / "pytorch_model.bin").exists()
    assert "rep_loss" in (copy / "mid" / "eval_results.txt").read_text()


@pytest.mark.parametrize("script", FLAGS, ids=lambda script: script.__name__)
def test_every_script_has_a_header_to_edit(script, monkeypatch):
    assert script.HEADER == {}
    monkeypatch.setattr(script, "HEADER", {"limit": 17, "sample": True})
    settings = settings_of(script, [])
    assert settings.limit == 17 and settings.sample and settings.origins["limit"] == "script header"
    assert "sample" in settings.origins.values()  # the header can switch the sample on


def test_flags_win_over_the_header_the_sample_the_task_and_the_defaults():
    def origin_of(name, *flags):
        settings = settings_of(task_distill, list(flags))
        return settings[name], settings.origins.get(name)

    assert origin_of("max_seq_length", "--task_name", "mrpc") == (128, "MRPC")
    assert origin_of("max_seq_length") == (64, "SST-2")
    assert origin_of("max_seq_length", "--sample", "--task_name", "mrpc") == (64, "sample")
    assert origin_of("max_seq_length", "--sample", "--max_seq_length", "31") == (31, "command line")
    assert origin_of("num_train_epochs") == (10.0, "SST-2")
    assert origin_of("num_train_epochs", "--pred_distill") == (3.0, None)
    assert origin_of("data_dir", "--task_name", "cola") == ("CoLA", "CoLA")
    assert origin_of("temperature") == (1.0, None)


def test_each_step_has_its_own_default_folders():
    def folders(*flags):
        settings = settings_of(task_distill, list(flags))
        return settings.student_model, settings.output_dir

    assert folders() == ("3_general_distill", "4_task_distill_mid")
    assert folders("--pred_distill") == ("4_task_distill_mid", "5_task_distill_out")
    assert (
        folders("--do_eval")
        == folders("--do_predict")
        == folders("--do_export", "int8")
        == ("5_task_distill_out", "5_task_distill_out")
    )
    assert folders("--do_finetune")[0] is None


def test_a_header_may_ask_for_tracebacks(monkeypatch, tmp_path):
    def broken():
        raise UserError("no such thing")

    with pytest.raises(UserError):
        console.run(broken, {"debug": True}.get("debug"))
    with pytest.raises(SystemExit):
        console.run(broken, {}.get("debug"))


def test_two_steps_at_once_are_refused():
    with pytest.raises(UserError, match="--do_finetune: does not go with --do_eval"):
        task_distill.read_settings(["--do_finetune", "--do_eval"])


def default_of(script, name):
    """The default of a flag as the table in tests/README.md writes it."""
    settings = script.read_settings([])
    settings = settings[0] if isinstance(settings, tuple) else settings
    flag, value = flags_of(settings.step)[name], flags_of(settings.step)[name].value_at(settings.step)
    if name == "do_lower_case":
        assert value is None
        return "the model decides"
    if flag.type is bool:
        return "on" if value else "off"
    if flag.type in (path, model, list) or name == "task_name":
        value = settings[name]  # data_dir's comes from the task
        return f"`{' '.join(value) if isinstance(value, list) else value}`" if value else "none"
    if name == "N":
        assert {task.tries for task in TASKS.values()} == {None, 10, 20}
        return f"{value}; 10 or 20 for some tasks"
    text = "none" if value is None else str(value)
    return f"{text}, or the task's own" if settings.step in flag.by_task else text


@pytest.mark.parametrize("script", FLAGS, ids=lambda script: script.__name__)
def test_the_table_of_flags_is_that_of_the_suite(script, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = (ROOT / "tests" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(rf"^\| `{script.__name__}\.py` \| `--(\w+)` \| (.+?) \| (.+?) \| (\d*) \|$", text, re.M)
    assert len(rows) == PUBLISHED[script] and len({name for name, *_ in rows}) == len(rows)
    for name, there, here, number in rows:
        assert here == default_of(script, name), name
        assert number or here == there, name


PUBLISHED = {data_augmentation: 7, pregenerate_training_data: 14, general_distill: 22, task_distill: 23}
