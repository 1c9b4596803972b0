"""The methods as rows of settings: how pictures are made, and how a sample's weight comes about."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Generation:
    """How synthetic pictures are made. Methods that agree in it share a pool.

    Attributes:
      name: of the pool's folder and of the stages that make it.
      prompt: "template", the class in words; or "caption", that and what a captioner says of a shot.
      start: "noise"; or "shots", two of a class, mixed (see `generator.augmented_conditions`): as image embedding where
        the generator has an image encoder, and as the picture to start from where it has none.
      adaptation: what of the generator is fitted to the shots by the denoising loss: "none"; "lora"; or "difficulty", a
        LoRA and an encoder of the difficulty, which is then asked for.
    """

    name: str
    prompt: str = "template"
    start: str = "noise"
    adaptation: str = "none"

    @property
    def uses_shots(self) -> bool:
        """Whether the shots have a part in it."""
        return self != Generation(self.name)


@dataclasses.dataclass(frozen=True)
class Method:
    """One row.

    Attributes:
      title: for tables.
      generation: of the synthetic pictures that are added to the real ones; None: none are.
      weighting: what weighs them: "uniform", or one of `valuation.WEIGHTINGS`.
      mixing: key of `batch_mixing.MIXINGS`; "": the config's, as for all other rows.
    """

    title: str
    generation: Generation | None
    weighting: str = "uniform"
    mixing: str = ""


PLAIN = Generation("plain")

METHODS: dict[str, Method] = {
    "real": Method("real pictures only", None),
    "mixup": Method("real pictures only, Mixup", None, mixing="mixup"),
    "cutmix": Method("real pictures only, CutMix", None, mixing="cutmix"),
    "vanilla": Method("+ plain synthetic pictures", PLAIN),
    "captions": Method("+ synthetic pictures, captions", Generation("captions", prompt="caption")),
    "augcond": Method("+ synthetic pictures, augmented conditioning", Generation("augcond", start="shots")),
    "datadream": Method("+ synthetic pictures, DataDream", Generation("datadream", adaptation="lora")),
    "difficulty": Method(
        "+ synthetic pictures, difficulty", Generation("difficulty", prompt="caption", adaptation="difficulty")
    ),
    "saflex": Method("+ synthetic pictures, SAFLEX", PLAIN, weighting="saflex"),
    "utilgen": Method("+ synthetic pictures, UtilGen", PLAIN, weighting="weight_network"),
}
