"""The methods as rows of settings: what is generated, and how a sample's weight comes about."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Method:
    """One row.

    Attributes:
      title: for tables.
      synthetic: whether synthetic pictures are added to the real ones.
      weighting: what weighs them: "uniform" or "weight_network" (see `valuation`).
    """

    title: str
    synthetic: bool
    weighting: str


METHODS: dict[str, Method] = {
    "real": Method("real pictures only", synthetic=False, weighting="uniform"),
    "vanilla": Method("+ plain synthetic pictures", synthetic=True, weighting="uniform"),
    "utilgen": Method("+ synthetic pictures, UtilGen", synthetic=True, weighting="weight_network"),
}
