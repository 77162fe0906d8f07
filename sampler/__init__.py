"""Stochastic-gradient MCMC with adaptive spike-and-slab priors.

Nothing in this package knows a model or a data set: samplers take parameters and gradients, priors
take the tensors they are placed on.
"""

from .group_spike_slab import GroupSpikeSlab
from .magnitude_pruning import MagnitudePruner, Mask
from .noise import ChainNoise, FlatNoise
from .preconditioned import PreconditionedSGHMC
from .sgmcmc import SGHMC, SGLD, Langevin
from .spike_slab import SSGLPrior

__all__ = [
    "SGHMC",
    "SGLD",
    "ChainNoise",
    "FlatNoise",
    "GroupSpikeSlab",
    "Langevin",
    "MagnitudePruner",
    "Mask",
    "PreconditionedSGHMC",
    "SSGLPrior",
]
