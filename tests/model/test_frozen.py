"""A second stage's trainer changes its modules, but not a tokenizer among them."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ds_rvqvae import BodyTokenizer, MotionTokenizer
from ds_rvqvae.process.torch_build import numbers_of
from tests.ranks import run_ranks
from tests.second_stage import SecondStage, Seen, made_motion, save_tokenizer, steps


@pytest.fixture(scope="module", params=["relu", "group norm"])
def seen(request, tmp_path_factory):
    return Seen(save_tokenizer(tmp_path_factory.mktemp("tokenizers") / "tokenizer", request.param))


def first_weights(module):
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Embedding):
        module.weight.data.normal_(0, 0.02)


def first_weights_of_all(stage):
    for parameter in stage.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    for module in stage.modules():
        first_weights(module)
    for child in stage.children():
        for module in child.children():
            module.apply(first_weights)


def first_weights_of_all_it_lists(stage):
    def uniform(module):
        for _, parameter in module.named_parameters():
            nn.init.uniform_(parameter.data, -0.08, 0.08)

    stage.apply(uniform)
    for child in stage.children():
        for values in [*child.parameters(), *child.buffers()]:
            values.data.zero_()


def groups_by_child(stage):
    for child in stage.children():
        for parameter in child.parameters():
            parameter.requires_grad_(True)
            parameter.grad = torch.ones_like(parameter)
    groups = [{"params": child.parameters()} for child in stage.children()]
    torch.optim.AdamW(groups, lr=0.1, weight_decay=0.5).step()


def decay_without_gradient(stage):
    stage.requires_grad_(True)
    for parameter in stage.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(stage.parameters(), lr=0.1, weight_decay=0.5).step()


def cast_tensor_by_tensor(stage):
    for parameter in stage.parameters():
        parameter.data = parameter.data.bfloat16()
    for module in stage.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = buffer.bfloat16()


def average_of_state_dicts(stage):
    average = copy.deepcopy(stage)
    for mean, tensor in zip(average.state_dict().values(), stage.state_dict().values(), strict=True):
        mean.copy_((0.9 * mean.double() + 0.2 * tensor.double()).to(mean.dtype))
    return average


def average_of_parameters(stage):
    average = AveragedModel(stage, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for parameter in stage.parameters():
        parameter.data.add_(1.0)
    average.update_parameters(stage)
    return average.module


def rounded_checkpoint(stage, dtype):
    other = copy.deepcopy(stage)
    other.load_state_dict({name: tensor.to(dtype) for name, tensor in stage.state_dict().items()})
    other.load_state_dict({name: tensor.to(dtype).float() for name, tensor in stage.state_dict().items()})
    return other


def averaged_checkpoint(stage):
    average = {name: tensor.clone() for name, tensor in stage.state_dict().items()}
    for _ in range(100):
        for name, tensor in stage.state_dict().items():
            if tensor.is_floating_point():
                average[name].mul_(0.999).add_(tensor, alpha=0.001)
    stage.load_state_dict(average)


def assigned_checkpoint(stage):
    stage.load_state_dict({name: tensor.half() for name, tensor in stage.state_dict().items()}, assign=True)


def layer_by_layer(stage):
    """Loads a checkpoint in a given float type, as transformers does."""
    for name, tensor in stage.state_dict().items():
        place, _, last = name.rpartition(".")
        stage.get_submodule(place).load_state_dict({last: tensor.half()}, strict=False, assign=True)


def saved_whole(stage):
    content = io.BytesIO()
    torch.save(stage, content)
    content.seek(0)
    return torch.load(content, weights_only=False)


def saved_state(stage):
    content = io.BytesIO()
    torch.save(stage.state_dict(), content)
    content.seek(0)
    stage.load_state_dict(torch.load(content, weights_only=True))


def with_parts_of_the_nets(stage):
    """A second stage that also registers the nets, and one of them, as its own modules."""
    stage.nets, stage.decoder = stage.tokenizer.model, stage.tokenizer.model.decoder
    stage.bfloat16().train()


def emptied(stage):
    stage.to_empty(device="cpu")


def vector(stage):
    values = nn.utils.parameters_to_vector(stage.parameters())
    nn.utils.vector_to_parameters(torch.zeros_like(values), stage.parameters())


def quantized(stage):
    return torch.ao.quantization.quantize_dynamic(stage, {nn.Linear, nn.Conv1d}, dtype=torch.qint8)


def functional(stage):
    other = {name: torch.zeros_like(tensor) for name, tensor in stage.named_parameters()}
    torch.func.functional_call(stage, other, (made_motion(),))


DONE_TO_IT = {
    "half": lambda stage: stage.half(),
    "bfloat16": lambda stage: stage.bfloat16(),
    "double": lambda stage: stage.double(),
    "to a type": lambda stage: stage.to(torch.float16),
    "to a device and a type": lambda stage: stage.to("cpu", torch.bfloat16),
    "to a tensor": lambda stage: stage.to(torch.zeros(1, dtype=torch.float64)),
    "type": lambda stage: stage.type(torch.float16),
    "cast tensor by tensor": cast_tensor_by_tensor,
    "there and back": lambda stage: stage.half().float(),
    "channels last": lambda stage: stage.to(memory_format=torch.channels_last),
    "emptied": emptied,
    "to meta": lambda stage: stage.to("meta"),
    "shared": lambda stage: stage.share_memory(),
    "train": lambda stage: stage.train(),
    "train, layer by layer": lambda stage: [module.train() for module in stage.modules()] and None,
    "train of the nets": lambda stage: [module.train() for module in stage.tokenizer.model.modules()] and None,
    "gradients": lambda stage: stage.requires_grad_(True),
    "first weights": lambda stage: stage.apply(first_weights),
    "first weights of all": first_weights_of_all,
    "first weights of all it lists": first_weights_of_all_it_lists,
    "groups by child": groups_by_child,
    "averaged checkpoint": averaged_checkpoint,
    "steps": lambda stage: steps(stage.train(), made_motion()),
    "decay": decay_without_gradient,
    "vector": vector,
    "average of parameters": average_of_parameters,
    "average of state dicts": average_of_state_dicts,
    "deepcopy": copy.deepcopy,
    "deepcopy of a cast one": lambda stage: copy.deepcopy(stage.half()),
    "pickle": lambda stage: pickle.loads(pickle.dumps(stage)),
    "saved whole": saved_whole,
    "saved state": saved_state,
    "rounded to bfloat16": lambda stage: rounded_checkpoint(stage, torch.bfloat16),
    "rounded to float16": lambda stage: rounded_checkpoint(stage, torch.float16),
    "assigned": assigned_checkpoint,
    "layer by layer": layer_by_layer,
    "nets by name": with_parts_of_the_nets,
    "quantized": quantized,
    "functional": functional,
    "data parallel": lambda stage: nn.DataParallel(stage).module,
}


@pytest.mark.parametrize("change", DONE_TO_IT.values(), ids=DONE_TO_IT)
def test_what_is_done_to_its_parent_changes_nothing(seen, change):
    stage = seen.stage()
    changed = change(stage)
    seen.check(stage.tokenizer)
    if isinstance(changed, SecondStage):
        seen.check(changed.tokenizer)


def a_trained_embedding(stage):
    stage.embedding = nn.Embedding.from_pretrained(stage.tokenizer.model.quantizer.codebooks[0], freeze=False)
    optimizer = torch.optim.SGD(stage.parameters(), lr=0.01)
    stage.embedding(torch.tensor(5)).sum().backward()
    optimizer.step()


WRITES = {
    "a trained embedding": a_trained_embedding,
    "first weights": lambda stage: [first_weights(module) for module in stage.tokenizer.modules()],
    "a tensor": lambda stage: stage.tokenizer.model.decoder[0].bias.data.add_(1e-3),
    "one number": lambda stage: stage.tokenizer.model.get_parameter("encoder.0.weight").detach()[1, 1, 1].mul_(1.001),
    "codes that change places": lambda stage: stage.tokenizer.model.quantizer.codebooks.copy_(
        stage.tokenizer.model.quantizer.codebooks.flip(1)
    ),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("use", ["encode", "decode", "save"])
def test_weights_that_were_written_to_by_hand_are_refused(seen, tmp_path, write, use):
    tokenizer = seen.stage().tokenizer
    uses = {
        "encode": lambda: tokenizer.encode(seen.motion),
        "decode": lambda: tokenizer.decode(seen.codes),
        "save": lambda: tokenizer.save_pretrained(tmp_path / "tokenizer"),
    }
    for tensor in tokenizer.model.state_dict().values():
        tensor.copy_(tensor.clone())
    uses[use]()
    stage = SecondStage(tokenizer)
    write(stage)
    with pytest.raises(RuntimeError, match=r"weights were written to .* load it again"):
        uses[use]()
    with pytest.raises(RuntimeError, match=r"weights were written to"):
        stage.state_dict()


def in_ddp(stage):
    steps(DistributedDataParallel(stage), made_motion())
    return stage


def in_deepspeed(stage):
    import deepspeed

    optimizer = {"type": "AdamW", "params": {"lr": 0.1, "weight_decay": 0.5, "torch_adam": True}}
    config = {"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": True}, "zero_optimization": {"stage": 2}}
    engine, *_ = deepspeed.initialize(model=stage, config={**config, "optimizer": optimizer})
    for _ in range(3):
        engine.backward(engine(made_motion()))
        engine.step()
    assert engine.module.embedding.weight.dtype == torch.bfloat16
    return engine.module


NO_CPU_FSDP = "torch 2.6 asks a stream of the CPU for an event, which it does not have"


def in_fully_sharded(stage):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, cast_forward_inputs=False)
    fully_shard(stage, mesh=init_device_mesh("cpu", (1,)), mp_policy=policy)
    steps(stage, made_motion())
    # A mixed-precision policy does this by default: the batch is in bf16 before the tokenizer gets it.
    cast = Seen(stage.folder).stage()
    fully_shard(cast, mesh=init_device_mesh("cpu", (1,)), mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    with pytest.raises(TypeError, match=r"motion is torch\.bfloat16"):
        cast(made_motion())
    return stage


def wrapped(folder, kind):
    """In a rank of its own."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo")
    seen = Seen(folder)
    stage = seen.stage()
    stage.folder = folder
    seen.check({"ddp": in_ddp, "deepspeed": in_deepspeed, "fsdp": in_fully_sharded}[kind](stage).tokenizer)


@pytest.mark.processes
@pytest.mark.parametrize(
    "kind",
    [
        "ddp",
        "deepspeed",
        pytest.param("fsdp", marks=pytest.mark.skipif(numbers_of(torch.__version__) < (2, 7), reason=NO_CPU_FSDP)),
    ],
)
def test_wrapped_for_several_ranks_it_stays_what_it_is(tmp_path, kind):
    folder = save_tokenizer(tmp_path / "tokenizer")
    run_ranks(1, wrapped, tmp_path / "results", folder=str(folder), kind=kind)


def test_a_parent_sees_no_weights_and_the_tokenizer_all(seen):
    stage = seen.stage()
    assert {name.partition(".")[0] for name, _ in stage.named_parameters()} == {"embedding", "convolution", "head"}
    assert not [*stage.buffers()] and len([*stage.modules()]) == 6  # itself, the tokenizer, its nets, three layers
    own = dict(stage.tokenizer.named_parameters())
    assert len(own) == len([*stage.tokenizer.model.parameters()]) > 10 and "model.encoder.0.weight" in own
    assert not any(parameter.requires_grad for parameter in own.values())
    assert {f"tokenizer.{name}" for name in stage.tokenizer.state_dict()} < set(stage.state_dict())


def test_a_bodys_parts_are_not_written_to_either(seen):
    part = MotionTokenizer.from_pretrained(seen.folder)
    stage = nn.ModuleDict({"body": BodyTokenizer({"upper": part})})
    first_weights_of_all_it_lists(stage)
    stage["body"].requires_grad_(False).apply(first_weights)
    seen.check(part)


ASKED = {
    "half": lambda tokenizer: tokenizer.half(),
    "bfloat16": lambda tokenizer: tokenizer.bfloat16(),
    "double": lambda tokenizer: tokenizer.double(),
    "to": lambda tokenizer: tokenizer.to(torch.bfloat16),
    "to by name": lambda tokenizer: tokenizer.to(dtype=torch.float16),
    "to a device and a type": lambda tokenizer: tokenizer.to("cpu", torch.float64),
    "to a tensor": lambda tokenizer: tokenizer.to(torch.zeros(1, dtype=torch.float16)),
    "to whole numbers": lambda tokenizer: tokenizer.to(torch.int64),
    "type": lambda tokenizer: tokenizer.type(torch.bfloat16),
    "type by name": lambda tokenizer: tokenizer.type("torch.HalfTensor"),
    "the nets": lambda tokenizer: tokenizer.model.half(),
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_asked_itself_for_another_type_it_names_the_way(seen, ask):
    tokenizer = seen.stage().tokenizer
    with pytest.raises(TypeError, match=r"stays float32.* from_pretrained\(…, dtype=torch\."):
        ask(tokenizer)
    seen.check(tokenizer)
    same = tokenizer.to("cpu").to(torch.float32).float().to(torch.zeros(1)).to(memory_format=torch.channels_last)
    assert same is tokenizer
    with pytest.raises(TypeError, match="trainable=True"):
        tokenizer.requires_grad_(True)
    with pytest.raises(ValueError, match="meta"):
        tokenizer.to("meta")
    assert not tokenizer.train().training
    seen.check(tokenizer)


def test_in_bf16_it_stays_what_was_asked_for(seen):
    tokenizer = MotionTokenizer.from_pretrained(seen.folder, dtype=torch.bfloat16)
    codes, fingerprint = tokenizer.encode(seen.motion), tokenizer.fingerprint
    stage = SecondStage(tokenizer).double().train()
    assert stage.tokenizer.model.encoder[0].weight.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.float16):
        assert torch.equal(tokenizer.encode(seen.motion), codes)
    assert tokenizer.encode(seen.motion.bfloat16()).shape == codes.shape and tokenizer.fingerprint == fingerprint
    assert tokenizer.bfloat16() is tokenizer
    with pytest.raises(TypeError, match="stays bfloat16"):
        tokenizer.float()


def test_a_checkpoint_of_another_tokenizer_is_refused(seen, tmp_path):
    stage = seen.stage()
    content = stage.state_dict()
    content["tokenizer.model.encoder.0.weight"][0, 0, 0] *= 1.01
    with pytest.raises(RuntimeError, match=r"that differ: 1, the first is tokenizer\.model\.encoder\.0\.weight"):
        stage.load_state_dict(content)
    with pytest.raises(RuntimeError, match="load the tokenizer of this checkpoint"):
        stage.load_state_dict(content, strict=False)
    seen.check(stage.tokenizer)
    without = {name: tensor for name, tensor in content.items() if not name.startswith("tokenizer.")}
    with pytest.raises(RuntimeError, match="Missing key"):
        stage.load_state_dict(without)
    stage.load_state_dict(without, strict=False)
    seen.check(stage.tokenizer)


def test_a_trainable_one_is_as_any_module(seen):
    tokenizer = MotionTokenizer.from_pretrained(seen.folder, trainable=True)
    assert torch.equal(tokenizer.train().encode(seen.motion), seen.codes) and tokenizer.model.training
    with pytest.raises(TypeError, match=r"motion is torch\.bfloat16"):
        tokenizer.encode(seen.motion.bfloat16())
    stage = SecondStage(tokenizer)
    assert all(parameter.requires_grad for parameter in tokenizer.parameters())
    assert {*tokenizer.parameters()} < {*stage.parameters()}
    normalised = ((seen.motion - tokenizer.mean) / tokenizer.std)[None, :400]
    optimizer = torch.optim.AdamW(stage.parameters(), lr=0.01)
    tokenizer.model(normalised).reconstruction.square().mean().backward()
    optimizer.step()
    assert tokenizer.fingerprint != seen.fingerprint
    stage.load_state_dict(seen.stage().state_dict())
    assert torch.equal(tokenizer.encode(seen.motion), seen.codes) and tokenizer.fingerprint == seen.fingerprint
    assert stage.bfloat16().tokenizer.model.encoder[0].weight.dtype == torch.bfloat16
    assert tokenizer.mean.dtype == torch.float32
