"""Matrices of 8-bit integers: what rounding costs, and that nothing but rounding is lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from splitglm_glm.linear import Int8Linear, Linear

CPU = torch.device("cpu")


def random_matrix() -> np.ndarray:
    rng = np.random.default_rng(5)
    weight = rng.standard_normal((33, 70)).astype(np.float32) * rng.uniform(1e-6, 1e3, (33, 1)).astype(np.float32)
    weight[7] = 0
    weight[8, 3] = 1e6  # an outlier costs its own row only
    return weight


def test_every_weight_is_off_by_at_most_half_a_step_of_its_row() -> None:
    weight = random_matrix()
    linear = Int8Linear.quantise(weight, None, CPU)
    assert linear.weight.dtype == torch.int8 and int(linear.weight.min()) >= -127
    restored = (linear.weight * linear.scale[:, None]).numpy()
    steps = np.abs(weight).max(axis=1, keepdims=True) / 127
    assert np.all(np.abs(restored - weight) <= 0.5001 * steps)
    assert np.array_equal(restored[7], weight[7])
    largest = np.abs(weight).argmax(axis=1)
    rows = np.arange(33)
    np.testing.assert_allclose(restored[rows, largest], weight[rows, largest], rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_product_is_that_of_the_restored_matrix(dtype: torch.dtype) -> None:
    weight = random_matrix()
    bias = torch.randn(33, generator=torch.Generator().manual_seed(1)).to(dtype)
    linear = Int8Linear.quantise(weight, bias, CPU)
    x = torch.randn((4, 70), generator=torch.Generator().manual_seed(2)).to(dtype)
    restored = linear.weight.double() * linear.scale.double()[:, None]
    expected = F.linear(x.double(), restored, bias.double())
    y = linear(x)
    assert y.dtype == dtype
    size = F.linear(x.double().abs(), restored.abs(), bias.double().abs())
    assert bool(((y.double() - expected).abs() <= 2 * torch.finfo(dtype).eps * size).all())


def test_a_tall_matrix_is_rounded_as_its_rows_are() -> None:
    tall = np.random.default_rng(6).standard_normal((2500, 3)).astype(np.float32)
    whole, last = Int8Linear.quantise(tall, None, CPU), Int8Linear.quantise(tall[-600:], None, CPU)
    assert torch.equal(whole.weight[-600:], last.weight) and torch.equal(whole.scale[-600:], last.scale)


def test_a_shared_weight_is_not_copied() -> None:
    first = Linear(torch.randn(3, 4))
    assert Linear(first.weight).weight is first.weight
