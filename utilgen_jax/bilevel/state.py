"""The state of the bilevel update, and what an update tells."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from utilgen_jax.bilevel.nan_check import no_steps, tensor_groups
from utilgen_jax.types import Params


@struct.dataclass
class BilevelState:
    """Both levels, from `init_bilevel`.

    Attributes:
        step: inner steps done, int32.
        params: the classifier's θ.
        optimizer_state: of its optimiser.
        outer: {'weighting': ψ, 'adapter': φ}; either may be missing.
        outer_optimizer_state: of the optimiser of `outer`.
        ema_params: exponential moving average of θ, or None.
        ema_decay: of that average; static.
        first_nonfinite: by tensor group, the first step at which it was not finite or -1; see `check_finite`.
        validation_gradient: exponential moving average of the gradient of the validation loss, from zero; or None.
        validation_decay: of that average; static.
    """

    step: jax.Array
    params: Params
    optimizer_state: optax.OptState
    outer: dict[str, Params]
    outer_optimizer_state: optax.OptState
    ema_params: Params | None
    first_nonfinite: dict[str, jax.Array]
    ema_decay: float = struct.field(pytree_node=False, default=0.0)
    validation_gradient: Params | None = None
    validation_decay: float = struct.field(pytree_node=False, default=0.0)


@struct.dataclass
class BilevelMetrics:
    """What one update saw, before it. The batch is the examples and after them the generated ones.

    Attributes:
        train_loss: scalar, the weighted loss of the batch; of several inner steps, of the first one's.
        validation_loss: scalar, after the inner steps (of a weighting that needs influence and learns nothing: after
            the plain step that it looks ahead); None without validation.
        penalty: scalar, of the regularizer; None where there is none.
        losses: float32 [B], with the labels as they came.
        weights: float32 [B], relative, see `weightings.relative_weights`; 1 for examples that are not weighed.
        targets: float32 [B, K], the labels that the weighting gave; of several inner steps, in the first one.
        utilities: float32 [B], Σ_k y_ik Π_ik = -B ∂L_val/∂w_i: positive where more of the example lowers the validation
            loss. It is what all objectives of the generator maximise; None without validation. Of an averaged gradient
            of the validation loss they have the average's size, which is small at first.
        first_nonfinite: as in the state, but of this update too.
    """

    train_loss: jax.Array
    validation_loss: jax.Array | None
    penalty: jax.Array | None
    losses: jax.Array
    weights: jax.Array
    targets: jax.Array
    utilities: jax.Array | None
    first_nonfinite: dict[str, jax.Array]

    @property
    def scalars(self) -> dict[str, jax.Array]:
        """Validation loss and penalty by name, where there are any."""
        found = {"validation_loss": self.validation_loss, "penalty": self.penalty}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def told(self) -> dict[str, Any]:
        """What a training tells of the step: "loss", "first_nonfinite" and the scalars."""
        return {"loss": self.train_loss, "first_nonfinite": self.first_nonfinite, **self.scalars}


def init_bilevel(
    params: Params,
    optimizer: optax.GradientTransformation,
    outer: dict[str, Params],
    outer_optimizer: optax.GradientTransformation,
    ema_decay: float = 0.0,
    validation_decay: float = 0.0,
) -> BilevelState:
    """The state before the first update.

    Args:
        params: of the classifier.
        optimizer: its.
        outer: {'weighting': `weighting.init(key)`, 'adapter': ...}; what is not there is not learnt.
        outer_optimizer: of `outer` as a whole.
        ema_decay: of a moving average of the parameters, which starts at their copy; 0: none is kept.
        validation_decay: of a moving average of the gradient of the validation loss, on which influence is then taken;
            0: on each step's own. One step's is mostly noise (measured: valuation/README.md).
    """
    return BilevelState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        optimizer_state=optimizer.init(params),
        outer=outer,
        outer_optimizer_state=outer_optimizer.init(outer),
        ema_params=jax.tree.map(jnp.copy, params) if ema_decay else None,
        first_nonfinite=no_steps(watched(params, outer)),
        ema_decay=ema_decay,
        validation_gradient=jax.tree.map(jnp.zeros_like, params) if validation_decay else None,
        validation_decay=validation_decay,
    )


def watched(
    params: Params,
    outer: dict[str, Params],
    *,
    inputs: Any = 0.0,
    losses: Any = 0.0,
    weights: Any = 0.0,
    validation_loss: Any = 0.0,
    gradient: Any = 0.0,
) -> dict[str, list[jax.Array]]:
    """The tensor groups that are watched for NaN and infinity; what a step does not compute is left out."""
    seen = {
        "generated inputs": inputs,
        "losses": losses,
        "weights": weights,
        "validation loss": validation_loss,
        "outer gradient": gradient,
    }
    return {name: jax.tree.leaves(tree) for name, tree in seen.items()} | tensor_groups({"params": params, **outer})
