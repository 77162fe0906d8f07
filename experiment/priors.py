"""The prior of an image network, from the flags of its script."""

from __future__ import annotations

from argparse import Namespace

from torch import nn

from sampler import SSGLPrior
from sampler.schedules import RobbinsMonro, adaptation


def network_prior(
    args: Namespace, net: nn.Module, observations: float, *, plain: bool, delay: float = 0, delta: float = 0.5
) -> SSGLPrior:
    """SSGL on the sparse layers, N(0, 1/(wdecay N)) on the rest; plain: the latter on all.

    Args:
        args: flags of the script; -a and -b are the number of sparse weights where they are None.
        net: the network; it names `sparse_layers`.  observations: N.
        delay: added to -da.  delta: initial inclusion rate.
    """
    params = dict(net.named_parameters())
    sparse = [params[name] for name in net.sparse_layers]
    weights, precision = sum(w.numel() for w in sparse), args.wdecay * observations
    # plain is the SSGL form with kappa0 = 0, kappa1 = precision, sigma = 1, and omega = 0
    return SSGLPrior(
        sparse,
        v0=args.v0,
        v1=args.v1,
        a=args.a or weights,
        b=args.b or weights,
        nu=args.nu,
        lamda=args.lamda,
        omega=adaptation("sghmc" if plain else args.c, RobbinsMonro(args.dc, args.da + delay, args.dalpha)),
        sigma=1.0 if plain else args.sd,
        kappa0=0.0 if plain else args.wdecay,
        kappa1=precision if plain else args.wdecay,
        delta=delta,
        fix_scale=bool(args.fix_scale),
        gaussian=[p for name, p in params.items() if name not in net.sparse_layers],
        precision=precision,
    )
