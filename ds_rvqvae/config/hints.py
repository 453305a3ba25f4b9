"""Names of flags and commands in other programs, and their names here."""

import difflib
import re
from collections.abc import Iterable, Sequence

_ELSEWHERE = {
    "activation": "act vq_act",
    "auto_batch_size": "auto_scale_batch_size find_batch_size",
    "batch_size": "batch batchsize bs micro_batch micro_batch_size per_device_train_batch_size "
    "per_gpu_batch_size train_batch_size train_micro_batch_size_per_gpu",
    "body_part": "part parts body",
    "checkpoint": "ckpt which_epoch",
    "clip": "file sample",
    "code_dim": "codebook_dim dim_code e_dim embed_dim embedding_dim latent_dim output_emb_width vq_dim",
    "commit": "beta commit_beta commit_loss commitment commitment_beta commitment_cost commitment_weight",
    "compile": "torch_compile",
    "data_path": "data data_dir data_folder data_root dataroot dataset dataset_dir dataset_path dataset_root "
    "motion motion_dir input input_dir train_data",
    "dead_code_threshold": "threshold_ema_dead_code dead_code",
    "depth": "layers n_layers n_resblk num_layers num_res_blocks resblocks",
    "down_t": "downsample down_sampling downsampling",
    "dropout": "p_dropout drop",
    "ema_decay": "ema model_ema",
    "eval_every": "check_val_every_n_epoch eval_every_e eval_interval eval_iter eval_iters eval_steps "
    "val_check_interval val_every val_interval",
    "fps": "frame_rate framerate motion_fps pose_fps",
    "fsq_levels": "fsq",
    "gradient_accumulation_steps": "accum accumulate accumulate_grad_batches accumulation accumulation_steps "
    "grad_accum grad_accum_steps gradient_accumulation",
    "gradient_checkpointing": "activation_checkpointing checkpoint_activations grad_checkpointing recompute",
    "gradient_clipping": "clip clip_grad clip_grad_norm clip_norm grad_clip grad_norm gradient_clip gradient_clip_val "
    "max_grad_norm",
    "hang_timeout": "timeout",
    "init_from": "finetune finetune_from init_weights pretrained pretrained_model pretrained_path",
    "keep_checkpoints": "save_total_limit save_top_k max_checkpoints",
    "keep_every": "save_every_e",
    "log_every": "log_every_n_steps log_interval log_steps logging_steps print_every print_freq print_iter",
    "loss_vel": "vel_weight velocity velocity_loss velocity_weight loss_velocity",
    "lr": "base_lr initial_lr learning_rate learningrate",
    "master_port": "port main_process_port rdzv_port",
    "max_restarts": "restarts retries",
    "milestones": "lr_milestones lr_steps",
    "mu": "codebook_decay decay ema_mu vq_decay",
    "name": "exp exp_name experiment experiment_name expname job_name run run_name",
    "nb_code": "codebook_size codebooksize codes n_codes n_e n_embed nb_codes num_codes num_embeddings vocab_size",
    "norm": "vq_norm",
    "num_nodes": "nnodes nodes num_machines",
    "num_quantizers": "levels n_levels n_q n_quantizers nq num_levels num_quantizer num_rvq quantizers rvq_layers",
    "num_workers": "dataloader_num_workers n_workers nworkers workers",
    "out": "checkpoint_dir checkpoints_dir exp_dir log_dir logdir out_dir outdir output output_dir output_folder "
    "output_path result_dir results save_dir save_path work_dir workdir",
    "profile": "cfg conf config config_file config_path preset recipe yaml",
    "quantize_dropout_min_levels": "quantize_dropout_cutoff_index",
    "quantize_dropout_prob": "quantize_dropout quantizer_dropout rvq_dropout",
    "recons_loss": "loss loss_type recon_loss reconstruction_loss",
    "resume": "ckpt ckpt_path checkpoint checkpoint_path continue continue_train is_continue load load_checkpoint "
    "load_from restart restore resume_from resume_from_checkpoint resume_path resume_pth",
    "sample_codebook_temp": "temperature gumbel_temp codebook_temp",
    "save_every": "checkpoint_every checkpoint_interval ckpt_every save_freq save_interval save_iter "
    "save_latest save_steps",
    "seed": "manual_seed random_seed rng_seed",
    "shared_codebook": "share_codebook shared_codebooks",
    "speakers": "speaker speaker_id training_speakers",
    "total_iter": "iter iterations iters max_iter max_iters max_steps n_steps niter num_iter num_iterations num_steps "
    "num_train_steps num_training_steps max_train_steps steps total_iters total_steps train_iters train_steps",
    "up_axis": "up z_up",
    "warm_up_iter": "lr_warmup_steps num_warmup_steps warm_up warm_up_steps warmup warmup_iter warmup_iters "
    "warmup_steps",
    "weight_decay": "wd",
    "width": "channels dim filters hidden hidden_dim hidden_size hidden_width",
    "window_size": "chunk_size clip_len clip_length frames num_frames pose_length seq_len seq_length sequence_length "
    "window window_len window_length",
    "window_stride": "hop stride window_step",
}
"""Our flags, each with its names in other trainers: MoMask, T2M-GPT, GestureLSM, Lightning, Hugging Face, torchrun."""

_EXPLAINED = (
    (
        "total_iter",
        "epoch epochs max_epoch max_epochs n_epochs nepochs num_epochs num_train_epochs",
        "--total_iter N, in optimizer steps; an epoch is windows / global batch, both are in a run's first lines",
    ),
    (
        "include",
        "cuda cuda_visible_devices device device_ids devices gpu gpu_id gpu_ids gpus n_gpu n_gpus ngpus nproc "
        "nproc_per_node num_devices num_processes world_size",
        "--include localhost:1,2 for certain GPUs, or --num_gpus N for the first N",
    ),
    (
        "mixed_precision",
        "amp autocast bf16 dtype fp16 half precision use_amp",
        "--mixed_precision, which is bf16 or no",
    ),
    ("mixed_precision", "fp32 float32 no_amp", "--mixed_precision no"),
    (
        "kind",
        "lr_decay lr_schedule lr_scheduler scheduler sched",
        "--milestones N,N,… with --gamma, or --kind cosine",
    ),
    (
        "data_path",
        "dataname dataset_name dataset_type",
        "--data_path DIR; the format is recognised, or --format NAME",
    ),
    ("set", "optim optimizer", "--set optimizer.type=Adam"),
    ("set", "betas", "--set optimizer.params.betas=[0.9,0.99]"),
    ("set", "zero zero_stage", "--set zero_optimization.stage=1, or 2"),
    ("set", "override overrides opts", "--set PATH=VALUE"),
    ("augment", "aug augmentation data_aug mirror mirror_prob", """--augment '{"mirror": 0.5}'"""),
    ("fsq_levels", "quantizer", "--fsq_levels for a grid; else codebooks are moving averages (--mu)"),
)
"""The same with a longer hint: a flag that the parser must have, its other names, and the hint."""

_NOTHING = (
    ("debug", "DS_RVQVAE_DEBUG=1 in the environment shows tracebacks"),
    ("verbose", "--log_every N logs more often, and DS_RVQVAE_DEBUG=1 in the environment shows tracebacks"),
    ("tensorboard use_tensorboard", "every run writes TensorBoard files into its folder"),
    (
        "comet logger mlflow report_to use_wandb wandb wandb_project",
        "runs write TensorBoard files and metrics.jsonl, and send nothing to other services",
    ),
    ("deepspeed", "every run uses DeepSpeed; its keys are in the profile"),
    ("distributed ddp multi_gpu", "the launcher starts one rank per GPU"),
)
"""Names of flags in other trainers that have no flag here, and the hint."""

_COMMANDS = {
    "bench": "benchmark speed time profile_step",
    "data plot": "plot plot_data inspect",
    "decode": "detokenize dequantize decompress",
    "encode": "tokenize quantize compress",
    "evaluate": "eval score test validate val",
    "export": "save convert",
    "help": "h",
    "import": "load from_momask",
    "monitor": "gpus nvidia-smi smi top watch",
    "plan": "memory estimate",
    "prepare": "pack preprocess process build",
    "profile": "profiles config configs",
    "render": "video visualize visualise viz animate draw reconstruct",
    "store show": "info show ls list",
    "store verify": "verify check",
    "train": "fit run start launch finetune resume demo",
    "--version": "version",
}
"""Our commands, each with other names for it."""

CUTOFF = 0.75
"""Smallest similarity of a name that is suggested, from 0 to 1, by `difflib`."""


def of_flag(flag: str, known: Sequence[str]) -> str:
    """Returns the hint after `unknown flag FLAG`; empty if no name is similar, because a wrong hint is worse than none.

    Args:
        flag: the unknown flag as it was written, with its dashes.
        known: the existing flags, with their dashes.
    """
    names = {name.lstrip("-"): name for name in known if name.startswith("--")}
    name = _plain(flag)
    if name in names:
        return f"; write {names[name]}"
    for here, others, words in _EXPLAINED:
        if here in names and name in others.split():
            return f"; here it is {words}"
    here = next((here for here, others in _ELSEWHERE.items() if here in names and name in others.split()), "")
    if here:
        return f"; here it is {names[here]}"
    for others, words in _NOTHING if "total_iter" in names else ():
        if name in others.split():
            return f"; there is none: {words}"
    near = near_names(name, list(names))
    return f"; did you mean {_either(names[name] for name in near)}?" if near else ""


def of_command(command: str, known: Iterable[str]) -> str:
    """Returns the hint after `no command COMMAND`."""
    names = list(known)
    here = next((here for here, others in _COMMANDS.items() if command.lower() in others.split()), "")
    if here and ("train" in names):
        return f"; here it is {here}"
    near = near_names(command.lower(), names)
    return f"; did you mean {_either(near)}?" if near else ""


def near_names(name: str, known: Sequence[str]) -> list[str]:
    """Returns the known names that begin with `name`, if it has at least three letters and they are at most three; else
    the most similar name."""
    longer = [other for other in known if other.startswith(name)]
    if len(name) > 2 and 0 < len(longer) <= 3:
        return longer
    return difflib.get_close_matches(name, known, n=1, cutoff=CUTOFF)


def _plain(flag: str) -> str:
    """Returns `learning_rate` for `--learning-rate`, `-learning_rate` and `--learningRate`."""
    words = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", flag.lstrip("-"))
    return words.replace("-", "_").lower()


def _either(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last
