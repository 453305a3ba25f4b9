"""Flags that users of other trainers write, each with its hint, and names that are similar to nothing."""

import pytest

from ds_rvqvae import cli
from ds_rvqvae.config.request import read_training_flags

NO_HINT = " (--help lists the flags)"
EPOCHS = "--total_iter N, in optimizer steps; an epoch is windows / global batch, both are in a run's first lines"
GPUS = "--include localhost:1,2 for certain GPUs, or --num_gpus N for the first N"
SERVICES = "runs write TensorBoard files and metrics.jsonl, and send nothing to other services"
HERE, NONE, WRITE, NEAR = "; here it is ", "; there is none: ", "; write ", "; did you mean "
FLAGS = {
    # the twenty most likely
    "--epochs 100": HERE + EPOCHS,
    "--learning_rate 1e-4": HERE + "--lr",
    "--gpus 4": HERE + GPUS,
    "--nproc_per_node=7": HERE + GPUS,
    "--devices 0,1": HERE + GPUS,
    "--wandb": NONE + SERVICES,
    "--batch 64": HERE + "--batch_size",
    "--batch-size 64": WRITE + "--batch_size",
    "--steps 1000": HERE + "--total_iter",
    "--max_steps 1000": HERE + "--total_iter",
    "--data /d": HERE + "--data_path",
    "--dataset /d": HERE + "--data_path",
    "--output_dir o": HERE + "--out",
    "--exp_name x": HERE + "--name",
    "--config c.yaml": HERE + "--profile",
    "--checkpoint c": HERE + "--resume",
    "--precision 16": HERE + "--mixed_precision, which is bf16 or no",
    "--workers 8": HERE + "--num_workers",
    "--codebook_size 512": HERE + "--nb_code",
    "--debug": NONE + "DS_RVQVAE_DEBUG=1 in the environment shows tracebacks",
    # and more
    "--learning-rate 1e-4": HERE + "--lr",
    "--learningRate=1e-4": HERE + "--lr",
    "--fp16": HERE + "--mixed_precision, which is bf16 or no",
    "--fp32": HERE + "--mixed_precision no",
    "--num_codes 512": HERE + "--nb_code",
    "--n_q 6": HERE + "--num_quantizers",
    "--accumulate_grad_batches 2": HERE + "--gradient_accumulation_steps",
    "--ckpt c": HERE + "--resume",
    "--load c": HERE + "--resume",
    "--optimizer adam": HERE + "--set optimizer.type=Adam",
    "--seq_len 64": HERE + "--window_size",
    "--pretrained p": HERE + "--init_from",
    # T2M-GPT, MoMask, GestureLSM
    "--dataname t2m": HERE + "--data_path DIR; the format is recognised, or --format NAME",
    "--nb-code 512": WRITE + "--nb_code",
    "--code-dim 512": WRITE + "--code_dim",
    "--down-t 2": WRITE + "--down_t",
    "--vq-act relu": HERE + "--activation",
    "--vq_norm LN": HERE + "--norm",
    "--lr-scheduler 200000": HERE + "--milestones N,N,… with --gamma, or --kind cosine",
    "--total-iter 3": WRITE + "--total_iter",
    "--quantize-dropout-prob 0.2": WRITE + "--quantize_dropout_prob",
    "--quantize_dropout_cutoff_index 1": HERE + "--quantize_dropout_min_levels",
    "--max_epoch 50": HERE + EPOCHS,
    "--gpu_id 0": HERE + GPUS,
    "--is_continue": HERE + "--resume",
    "--eval_every_e 5": HERE + "--eval_every",
    "--training_speakers 2": HERE + "--speakers",
    # misspelt
    "--widht 3": NEAR + "--width?",
    "--wid 3": NEAR + "--width?",
    "--num_quantizer 3": HERE + "--num_quantizers",
    "--recon_los l1": NEAR + "--recons_loss?",
    "--loss_ 1": NEAR + "--loss_vel, --loss_acc or --loss_rotation?",
    "--gradient_ckeckpointing": NEAR + "--gradient_checkpointing?",
}
FAR = [
    "--model",
    "--gan",
    "--style",
    "--phone",
    "--x",
    "--e",
    "--nothing_like_it",
    "--temperature_scale",
    "--zz",
    "--test",
]
COMMANDS = {
    "evalute": NEAR + "evaluate?",
    "trian": NEAR + "train?",
    "prep": NEAR + "prepare?",
    "rendr": NEAR + "render?",
    "fit": HERE + "train",
    "eval": HERE + "evaluate",
    "tokenize": HERE + "encode",
    "preprocess": HERE + "prepare",
    "visualize": HERE + "render",
    "version": HERE + "--version",
    "Train": NEAR + "train?",
    "dance": "",
    "x": "",
}


def refusal(call, words, capsys):
    with pytest.raises(SystemExit) as end:
        call(words)
    said = capsys.readouterr()
    assert end.value.code == 2 and said.out == "" and said.err.count("\n") == 1
    return said.err.rstrip("\n")


@pytest.fixture(scope="module")
def train():
    """The parser of `ds-rvqvae train`."""
    return {name: parser for name, _, parser in cli.make_parser().commands()}["train"]


@pytest.mark.parametrize("line", FLAGS)
def test_a_name_from_elsewhere_gets_the_name_that_it_has_here(train, line, capsys):
    flag = line.replace("=", " ").split()[0]
    assert refusal(train.parse_args, line.split(), capsys) == f"error: unknown flag {flag}{FLAGS[line]}{NO_HINT}"


@pytest.mark.parametrize("flag", FAR)
def test_no_hint_is_better_than_a_wrong_one(train, flag, capsys):
    assert refusal(train.parse_args, [flag, "3"], capsys) == f"error: unknown flag {flag}{NO_HINT}"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_there_is_not(command, capsys):
    said = refusal(cli.main, [command, "--out", "x"], capsys)
    assert said == f"error: no command {command!r}{COMMANDS[command]} (--help lists the commands)"


def test_commands_below_commands_have_hints_too(capsys):
    assert "no command 'shwo'; did you mean show?" in refusal(cli.main, ["store", "shwo"], capsys)
    # A flag that is similar to none of them is not taken for a command above.
    assert refusal(cli.main, ["store", "fit"], capsys) == "error: no command 'fit' (--help lists the commands)"


@pytest.mark.parametrize(
    ("flag", "hint"), [("--demo", "; a command goes before its flags"), ("--verison", NEAR + "--version?")]
)
def test_flags_before_any_command(flag, hint, capsys):
    assert refusal(cli.main, [flag], capsys) == f"error: unknown flag {flag}{hint}{NO_HINT}"
    if flag == "--demo":
        with_value = refusal(cli.main, ["--data_path", "x"], capsys)  # which is no command
        assert with_value == f"error: unknown flag --data_path{hint} (--help lists the commands)"


def test_a_flag_that_is_missing_as_another_was_written(capsys):
    said = refusal(cli.main, ["encode", "run", "motion", "--output", "z"], capsys)
    assert said == f"error: the following arguments are required: --out. Unknown flag --output{HERE}--out{NO_HINT}"
    assert refusal(cli.main, ["encode", "run", "motion"], capsys).endswith(f"required: --out{NO_HINT}")


def test_several_flags_get_a_line_together(train, capsys):
    said = refusal(train.parse_args, ["--epochs", "3", "--lrate=1", "--batch", "2"], capsys)
    assert said.startswith(f"error: unknown flag --epochs{HERE}{EPOCHS}. Unknown flag --lrate")
    assert said.endswith(f". Unknown flag --batch{HERE}--batch_size{NO_HINT}")


def test_hints_name_only_flags_that_the_command_has(capsys):
    assert "unknown flag --epochs (" in refusal(cli.main, ["evaluate", "x", "--epochs", "3"], capsys)
    plan = refusal(cli.main, ["plan", "--profile", "best"], capsys)
    assert plan == f"error: unknown flag --profile; give PROFILE without a flag{NO_HINT}"
    assert "unknown flag --output; here it is --out (" in refusal(
        cli.main, ["encode", "a", "b", "--out", "c", "--output", "d"], capsys
    )
    rank = refusal(read_training_flags, ["--gpus", "3"], capsys)
    assert rank == f"error: unknown flag --gpus{NO_HINT}"  # a rank cannot choose where ranks run


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["/tmp"], "'/tmp' belongs to no flag; give motion with --data_path ("),
        (["bset"], "'bset' belongs to no flag ("),
        (
            ["--milestones", "10", "20"],
            "'20' belongs to no flag; join several numbers of one flag with commas",
        ),
        (
            ["rvqvae.model.width=3"],
            "'rvqvae.model.width=3' belongs to no flag; give a key of the profile as --set",
        ),
    ],
)
def test_words_without_a_flag(train, words, said, capsys):
    assert said in refusal(train.parse_args, words, capsys)
