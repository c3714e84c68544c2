"""Numbers of any size: vectors kept as (mantissa, exponent), value = mantissa * 2**exponent.

A gradient that vanishes at 1e-170 or explodes at 1e60 is a finding, and float32 can hold neither. Scaling by powers of two is exact, so
an adjoint carried this way equals the plain one bit for bit wherever the plain one neither under- nor overflows.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_BITS = {torch.float32: (torch.int32, 23, 127), torch.float64: (torch.int64, 52, 1023)}
LOG10_2 = math.log10(2)


@dataclass
class Scaled:
    """value[..., :] = mantissa[..., :] * 2**exponent[...]; exponent is int32, one for each vector."""

    mantissa: Tensor
    exponent: Tensor


def power_of_two(k: Tensor, dtype: torch.dtype) -> Tensor:
    """2**k exactly, from the bits, for integers k within the normal range of `dtype` (torch.exp2 and ldexp may round or overflow)."""
    integer, shift, bias = _BITS[dtype]
    return ((k.to(integer) + bias) << shift).view(dtype)


def ldexp_(x: Tensor, k: Tensor) -> Tensor:
    """x[..., :] *= 2**k[...], rounding once at most: under- and overflow of the result alone, never on the way."""
    bias = _BITS[x.dtype][2]
    last = k.clamp(1 - bias, bias)
    rest = k - last
    if rest.is_cuda or rest.any():  # a GPU is not asked, since that would be waiting for it
        # comes first: what it makes subnormal the last factor makes 0, so only that one rounds
        x *= power_of_two(rest.clamp(1 - bias, bias), x.dtype).unsqueeze(-1)
    x *= power_of_two(last, x.dtype).unsqueeze(-1)
    return x


def normalise_(x: Scaled) -> Scaled:
    """Moves each vector's scale into its exponent: its largest entry ends in [1, 4), zeros and non-finite entries stay what they are.

    One shift moves by 2**126 (float64: 2**1022) at most, so a subnormal vector needs two calls. The exponent is read off the bits: few
    operations, since this runs once a time step.
    """
    integer, shift, bias = _BITS[x.mantissa.dtype]
    amax = x.mantissa.abs().amax(-1)
    k = (amax.view(integer) >> shift).sub_(bias).clamp_(1 - bias, bias - 1)
    x.mantissa *= ((bias - k) << shift).view(amax.dtype).unsqueeze(-1)
    x.exponent += k
    return x


def scaled(x: Tensor) -> Scaled:
    """A normalised copy of the vectors x[..., :]."""
    return normalise_(normalise_(Scaled(x.clone(), torch.zeros(x.shape[:-1], dtype=torch.int32, device=x.device))))


def add_(x: Scaled, y: Scaled) -> Scaled:
    """x += y for normalised x, y. The smaller is shifted to the larger's exponent; a zero vector has no say in it."""
    tiny = torch.iinfo(torch.int32).min // 2
    ex = torch.where((x.mantissa != 0).any(-1), x.exponent, tiny)
    ey = torch.where((y.mantissa != 0).any(-1), y.exponent, tiny)
    exponent = torch.maximum(ex, ey)
    ldexp_(x.mantissa, x.exponent - exponent).add_(ldexp_(y.mantissa.clone(), y.exponent - exponent))
    x.exponent.copy_(torch.where(exponent == tiny, 0, exponent))
    return normalise_(x)


def value(x: Scaled) -> Tensor:
    """The plain floats, with whatever they under- or overflow to."""
    return ldexp_(x.mantissa.clone(), x.exponent)


def aligned(x: Scaled) -> tuple[Tensor, Tensor]:
    """The vectors (..., batch, units) in float64, with one exponent (...) for the batch, its largest: what is far smaller may become 0."""
    zero = torch.iinfo(torch.int32).min // 2
    exponent = torch.where((x.mantissa != 0).any(-1), x.exponent, zero)
    largest = exponent.amax(-1, keepdim=True)
    return ldexp_(x.mantissa.to(torch.float64, copy=True), x.exponent - largest), largest.squeeze(-1)


def log10_rms_norm(x: Scaled) -> Tensor:
    """log10 of the root mean square over the batch of the vectors' Euclidean norms, in float64.

    x: (..., batch, units) -> (...). Exact zeros give -inf; nothing finite under- or overflows.
    """
    if x.mantissa.dtype == torch.float64:  # where squares need not fit: delta may be 1e-200 of dE/dh in saturation
        x = normalise_(Scaled(x.mantissa.clone(), x.exponent.clone()))
    log2_norm = torch.log2(torch.linalg.vector_norm(x.mantissa, dim=-1, dtype=torch.float64)) + x.exponent
    largest = log2_norm.amax(-1, keepdim=True)
    anchor = torch.where(torch.isinf(largest), 0, largest)
    mean_square = torch.exp2(2 * (log2_norm - anchor)).mean(-1)
    return LOG10_2 * (anchor.squeeze(-1) + 0.5 * torch.log2(mean_square))
