"""The bilevel update: one pure function that teaches the classifier, the weighting and the generator's adapter."""

from utilgen_jax.bilevel.nan_check import check_finite
from utilgen_jax.bilevel.state import BilevelMetrics, BilevelState, init_bilevel
from utilgen_jax.bilevel.update import Update, make_bilevel_update

__all__ = ["BilevelMetrics", "BilevelState", "Update", "check_finite", "init_bilevel", "make_bilevel_update"]
