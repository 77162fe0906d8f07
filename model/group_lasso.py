"""Structured sparsity learning by group lasso (Wen et al., NIPS 2016)."""

from __future__ import annotations

import torch
from torch import Tensor

THRESHOLD = 1e-5  # groups with a smaller norm are removed


def group_norms(weight: Tensor, dim: int) -> Tensor:
    """L2 norm of the weights of every unit along `dim`: 0 filters and output neurons, 1 channels and inputs."""
    return torch.linalg.vector_norm(weight, dim=[d for d in range(weight.ndim) if d != dim])
