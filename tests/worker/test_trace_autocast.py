"""Autocast without a device: the same types as torch's own on the CPU, the header's table for CUDA, and torch's cache."""

import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional  # noqa: E402

from autofit.worker.trace_autocast import AutocastPolicy, registered_operators, unknown_operators  # noqa: E402


def battery(device):
    """Types of results under autocast, one a kind of operator."""
    x = torch.ones(4, 8, device=device, requires_grad=True)
    half = torch.ones(4, 8, device=device, dtype=torch.bfloat16)
    weight = torch.nn.Parameter(torch.ones(8, 8, device=device))
    labels = torch.ones(4, device=device, dtype=torch.long)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        linear = functional.linear(x, weight)
        results = {
            "linear": linear,
            "matmul": x @ weight,
            "bmm": torch.bmm(x[None], weight[None]),
            "norm": functional.layer_norm(half, (8,)),
            "add": x + linear,
            "softmax": half.softmax(-1),
            "sum": half.sum(),
            "pow": half.pow(2),
            "rsqrt": half.rsqrt(),
            "cat": torch.cat([x, half]),
            "loss": functional.cross_entropy(linear, labels),
            "integers": labels + 1,
        }
        with torch.autocast("cpu", enabled=False):
            results["off"] = x @ weight
    return {name: value.dtype for name, value in results.items()}


def test_the_cpu_policy_is_that_of_real_tensors():
    with AutocastPolicy("cpu").installed():
        ours = battery("meta")
    assert ours == battery("cpu")


def test_the_cuda_policy_follows_the_table():
    with AutocastPolicy("cuda").installed():
        ours = battery("meta")
    half, full = torch.bfloat16, torch.float32
    assert {name for name, dtype in ours.items() if dtype == half} == {"linear", "matmul", "bmm"}
    assert {ours[name] for name in ("norm", "softmax", "sum", "pow", "rsqrt", "cat", "loss", "off", "add")} == {full}


def test_nothing_is_left_behind():
    before = battery("cpu")
    with AutocastPolicy("cuda").installed():
        pass
    assert battery("cpu") == before
    assert battery("meta")["linear"] == torch.float32


def test_weights_are_copied_once_until_the_outermost_context_ends():
    weight = torch.nn.Parameter(torch.ones(8, 8, device="meta"))
    x = torch.ones(4, 8, device="meta")
    policy = AutocastPolicy("cuda")
    with policy.installed():
        with torch.autocast("cuda", dtype=torch.bfloat16):
            functional.linear(functional.linear(x, weight), weight)
            assert len(policy._copies) == 1
            with torch.autocast("cuda", dtype=torch.bfloat16):
                functional.linear(x, weight)
            assert len(policy._copies) == 1
        assert len(policy._copies) == 0


def test_frozen_weights_are_not_kept():
    policy = AutocastPolicy("cuda")
    weight = torch.nn.Parameter(torch.ones(8, 8, device="meta"), requires_grad=False)
    with policy.installed(), torch.autocast("cuda", dtype=torch.bfloat16):
        functional.linear(torch.ones(4, 8, device="meta"), weight)
        assert len(policy._copies) == 0


def test_gradients_return_through_the_cast_in_the_type_of_the_weight():
    weight = torch.nn.Parameter(torch.ones(8, 8, device="meta"))
    with AutocastPolicy("cuda").installed():
        with torch.autocast("cuda", dtype=torch.bfloat16):
            out = functional.linear(torch.ones(4, 8, device="meta"), weight)
        out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert weight.grad.dtype == torch.float32


@pytest.mark.parametrize("policy", ["cuda", "cpu"])
def test_the_tables_know_every_operator_that_torch_casts(policy):
    assert len(registered_operators(policy)) > 50
    assert unknown_operators(policy) == []
