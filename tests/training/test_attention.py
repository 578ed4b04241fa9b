"""Attention over packed examples: which function is chosen, and that it equals plain attention within each example."""

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM, LlamaConfig

from profuser.errors import UserError
from profuser.training import attention
from profuser.training.attention import BY_EXAMPLE, VARLEN, Boundaries, by_example, choose, set_attention, varlen
from profuser.training.step import FusionModule
from tests.training.made import CONFIGS, SMALL, config, model

CPU, GPU = torch.device("cpu"), torch.device("cuda")
LENGTHS = [5, 1, 9, 3]


def made_up(heads=4, groups=2, size=16, device=CPU, dtype=torch.float64):
    torch.manual_seed(0)
    shapes = [(1, count, sum(LENGTHS), size) for count in (heads, groups, groups)]
    return [torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for shape in shapes]


def boundaries(device=CPU):
    return Boundaries.of(np.concatenate([np.arange(n) for n in LENGTHS])[None], device)


def with_a_mask(q, k, v, window, scaling):
    """The reference: one mask over the whole sequence."""
    example = torch.repeat_interleave(torch.tensor(LENGTHS)).to(q.device)
    place = torch.arange(sum(LENGTHS), device=q.device)
    back = place[:, None] - place
    seen = (example[:, None] == example) & (back >= 0) & (back < (window or len(place)))
    return scaled_dot_product_attention(q, k, v, seen, scale=scaling, enable_gqa=True).transpose(1, 2)


def gradients(function, inputs):
    for each in inputs:
        each.grad = None
    out = function(*inputs)
    (out * torch.arange(out.numel(), device=out.device).reshape(out.shape).sin()).sum().backward()
    return [out.detach(), *(each.grad.clone() for each in inputs)]


@pytest.mark.parametrize("window", [None, 1, 3, 50])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_example_by_example_equals_attention_with_a_block_diagonal_mask(window, scaling):
    inputs, arguments = made_up(), boundaries().arguments()
    found = gradients(lambda *x: by_example(None, *x, None, scaling, sliding_window=window, **arguments)[0], inputs)
    for a, b in zip(found, gradients(lambda *x: with_a_mask(*x, window, scaling), inputs), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.gpu
def test_example_by_example_runs_on_a_gpu_as_on_a_cpu():
    found = []
    for device in (torch.device("cpu"), GPU):
        inputs = [each.detach().to(device).requires_grad_() for each in made_up()]
        arguments = boundaries(device).arguments()
        found.append(gradients(lambda *x: by_example(None, *x, None, 0.3, **arguments)[0], inputs))  # noqa: B023
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b.cpu(), atol=1e-4, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 1, 3, 50])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_kernel_equals_attention_with_a_block_diagonal_mask(window, groups):
    inputs = made_up(groups=groups, device=GPU, dtype=torch.bfloat16)
    arguments = boundaries(GPU).arguments()
    found = gradients(lambda *x: varlen(None, *x, None, 0.3, sliding_window=window, **arguments)[0], inputs)
    exact = [each.detach().double().requires_grad_() for each in inputs]
    for a, b in zip(found, gradients(lambda *x: with_a_mask(*x, window, 0.3), exact), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0.02, atol=0.02 * float(b.abs().max()))


def kernel_in_plain_code(q, k, v, offsets, offsets_k, longest, longest_k, scale, window_size, enable_gqa=False):
    """FlashAttention's definition: a window of (left, right) tokens around the query's own, within each sequence."""
    assert torch.equal(offsets, offsets_k)
    assert longest == longest_k == int(offsets.diff().max())
    left, right = window_size
    out = []
    for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        place = torch.arange(end - start)
        ahead = place - place[:, None]
        seen = (ahead <= right) & ((left < 0) | (-ahead <= left))
        part = [each[start:end].transpose(0, 1)[None] for each in (q, k, v)]
        out.append(scaled_dot_product_attention(*part, seen, scale=scale, enable_gqa=True)[0].transpose(0, 1))
    return torch.cat(out)


@pytest.mark.parametrize("window", [None, 1, 3, 50])
@pytest.mark.parametrize("has_gqa", [True, False])
def test_the_kernel_gets_arguments_that_match_its_definition(window, has_gqa, monkeypatch):
    """A stand-in for the CUDA kernel, written from its definition: tests windows, heads and layout."""
    monkeypatch.setattr(attention, "varlen_attn", kernel_in_plain_code)
    monkeypatch.setattr(attention, "HAS_GQA", has_gqa)
    inputs, arguments = made_up(), boundaries().arguments()
    found = gradients(lambda *x: varlen(None, *x, None, 0.3, sliding_window=window, **arguments)[0], inputs)
    for a, b in zip(found, gradients(lambda *x: with_a_mask(*x, window, 0.3), inputs), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("wanted", [{"softcap": 5.0}, {"s_aux": torch.ones(1)}, {"is_causal": False}])
def test_options_that_would_change_the_result_are_rejected(wanted):
    for function in (by_example, varlen):
        with pytest.raises(ValueError, match="packed attention does not support"):
            function(None, *made_up(), None, **boundaries().arguments(), **wanted)


@pytest.mark.parametrize(
    ("name", "on_gpu", "on_cpu"),
    [
        ("llama", VARLEN, BY_EXAMPLE),
        ("gpt_neox", VARLEN, BY_EXAMPLE),
        ("qwen3", VARLEN, BY_EXAMPLE),
        ("mistral, sliding", VARLEN, BY_EXAMPLE),
        ("gemma3, a layer of windows", VARLEN, BY_EXAMPLE),
        ("gemma2, tied and capped", "flex_attention", "eager"),
        ("mpt", "eager", "eager"),
    ],
)
def test_auto_selects_what_the_targets_attention_allows(name, on_gpu, on_cpu, monkeypatch):
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda name: None)
    assert choose(model(name), "auto", True, GPU, torch.bfloat16).implementation == on_gpu
    assert choose(model(name), "auto", True, CPU, torch.float32).implementation == on_cpu


def test_a_model_that_the_kernel_does_not_support_gets_a_mask_and_the_reason_is_reported():
    found = choose(model("llama"), "auto", True, GPU, torch.float32)
    assert str(found) == "attention: sdpa (with a mask: the kernel needs half precision, this is float32)"
    odd = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=50, head_dim=20, **SMALL))
    assert "in steps of 8, these are 20" in choose(odd, "auto", True, GPU, torch.bfloat16).why


@pytest.mark.parametrize(
    ("name", "wanted", "reason"),
    [
        ("mpt", "varlen", "MptForCausalLM has its own attention; use auto"),
        ("mpt", "flex_attention", "MptForCausalLM has its own attention; set eager, or use auto"),
        ("gemma2, tied and capped", "varlen", "Gemma2ForCausalLM caps its attention logits; use auto"),
        ("llama", "flash_attention_2", "package flash_attn is not installed"),
        ("llama", "flex_attention", "no backward pass on a CPU"),
    ],
)
def test_an_unavailable_attention_is_rejected(name, wanted, reason):
    with pytest.raises(UserError, match=rf"^fuse.attention: {wanted}: .*{reason}"):
        set_attention(model(name), wanted, True, CPU, torch.float32)


def test_no_mask_is_made_for_packed_examples():
    """For 4,096 tokens an S x S mask would take 16 MiB in booleans alone."""
    module = FusionModule(model("llama"), config(attention="varlen"))
    positions = np.tile(np.arange(64), 64)[None]
    with torch.profiler.profile(profile_memory=True) as profiler, torch.no_grad():
        module.hidden(
            torch.ones(1, 4096, dtype=torch.int64), torch.from_numpy(positions), Boundaries.of(positions, CPU)
        )
    assert max(event.self_cpu_memory_usage for event in profiler.events()) < 4096 * 4096 / 4


@pytest.mark.parametrize("name", CONFIGS)
def test_a_trained_target_still_generates_with_a_cache(name):
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    plain = model(name).eval()
    expected = plain.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)
    module = FusionModule(model(name), config()).eval()
    assert torch.equal(module.model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0), expected)
