"""The methods as rows of settings: how images are made, and how a sample's weight comes about."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Generation:
    """How synthetic images are made. Methods that agree in it share a pool.

    Attributes:
        name: of the pool's folder and of the stages that make it.
        prompt: "template", the class in words; "caption", that and what a captioner says of a shot; or "token", the
            template with a word that was learnt from the class's shots in the class's place (textual inversion); or
            "phrases", the template and what is drawn for each image of the config's groups of phrases.
        start: "noise"; or "shots", two of a class, mixed (see `generator.augmented_conditions`): as image embedding
            where the generator has an image encoder, and as the image to start from where it has none.
        adaptation: what of the generator is fitted to the shots by the denoising loss: "none"; "lora"; or "difficulty",
            a LoRA and an encoder of the difficulty, which is then asked for.
        refines: another way, whose images are valued first; with its prompts and its adaptation. None: nothing before.
        levels: how their worth shapes these ones, in this order: "model", rounds of Diffusion-DPO; "prompt", each
            image's own by gradient ascent; "noise", each image's own by inversion; "phrases" and "lora", an adapter
            over phrases and one over the UNet, trained by the bilevel update; "utility" or "uncertainty", the part of
            the images that is the most useful, or of which several classifiers are the least sure. See `refinement`.
        oversampling: whether there are more images than a pool should have, for a choice among them.
    """

    name: str
    prompt: str = "template"
    start: str = "noise"
    adaptation: str = "none"
    refines: Generation | None = None
    levels: tuple[str, ...] = ()
    oversampling: bool = False

    @property
    def uses_shots(self) -> bool:
        """Whether the shots have a part in it."""
        words_alone = self.prompt in ("template", "phrases") and self.start == "noise" and self.adaptation == "none"
        return not words_alone or self.refines is not None


@dataclasses.dataclass(frozen=True)
class Method:
    """One row.

    Attributes:
        title: for tables.
        generation: of the synthetic images that are added to the real ones; None: none are.
        weighting: what weighs them: "uniform", or one of `valuation.WEIGHTINGS`.
        labels: of the synthetic images: "given", with which they came or which the weighting makes; or "ensemble",
            what several classifiers say of them.
        augmentation: "randaugment"; "": the config's, as for all other rows.
        mixing: key of `batch_mixing.MIXINGS`; "": likewise.
        only_in_ablations: whether a comparison leaves the row out unless it is asked for.
    """

    title: str
    generation: Generation | None
    weighting: str = "uniform"
    labels: str = "given"
    augmentation: str = ""
    mixing: str = ""
    only_in_ablations: bool = False


PLAIN = Generation("plain")

# UtilGen: words learnt from the shots; then what the generator prefers; then each image's own prompt and noise.
_TOKENS = Generation("tokens", prompt="token")
_PREFERRED = Generation("utilgen_model", prompt="token", refines=_TOKENS, levels=("model",))
_UTILGEN = Generation("utilgen", prompt="token", refines=_PREFERRED, levels=("prompt", "noise"))
_OWN_PROMPTS = Generation("utilgen_prompt", prompt="token", refines=_TOKENS, levels=("prompt",))
_OWN_NOISES = Generation("utilgen_noise", prompt="token", refines=_TOKENS, levels=("noise",))

# joint: prompts of drawn phrases, and labels by ensemble. What was tried beside and did not pay (README): of twice as
# many images those that teach the most, and adapters over phrases and UNet by the bilevel update.
_PHRASES = Generation("phrases", prompt="phrases")
_OVERSAMPLING = Generation("oversampling", prompt="phrases", oversampling=True)
_UNCERTAIN = Generation("joint_uncertain", prompt="phrases", refines=_OVERSAMPLING, levels=("uncertainty",))
_USEFUL = Generation("joint_useful", prompt="phrases", refines=_OVERSAMPLING, levels=("utility",))
_ADAPTER = Generation("joint_adapter", prompt="phrases", refines=_PHRASES, levels=("phrases",))
_LORA = Generation("joint_lora", prompt="phrases", refines=_PHRASES, levels=("phrases", "lora"))

# Rows that show what a part of another row is worth.
_PARTS: dict[str, Method] = {
    "utilgen_none": Method("+ UtilGen, learnt words alone", _TOKENS, weighting="weight_network"),
    "utilgen_model": Method("+ UtilGen, model level alone", _PREFERRED, weighting="weight_network"),
    "utilgen_prompt": Method("+ UtilGen, prompts alone", _OWN_PROMPTS, weighting="weight_network"),
    "utilgen_noise": Method("+ UtilGen, noise alone", _OWN_NOISES, weighting="weight_network"),
    "vanilla_ensemble": Method("+ plain synthetic images, ensemble", PLAIN, labels="ensemble"),
    "joint_phrases": Method("+ joint, phrases alone", _PHRASES),
    **{
        name: Method(f"+ joint, {title}", generation, weighting, "ensemble")
        for name, title, generation, weighting in (
            ("joint_uncertain", "the least sure half of twice as many", _UNCERTAIN, "uniform"),
            ("joint_useful", "the most useful half of twice as many", _USEFUL, "uniform"),
            ("joint_adapter", "an adapter over phrases", _ADAPTER, "uniform"),
            ("joint_lora", "adapters over phrases and UNet", _LORA, "uniform"),
            ("joint_weights", "weights", _PHRASES, "joint"),
        )
    },
}

METHODS: dict[str, Method] = {
    "real": Method("real images only", None),
    "randaugment": Method("real images only, RandAugment", None, augmentation="randaugment"),
    "mixup": Method("real images only, Mixup", None, mixing="mixup"),
    "cutmix": Method("real images only, CutMix", None, mixing="cutmix"),
    "vanilla": Method("+ plain synthetic images", PLAIN),
    "captions": Method("+ synthetic images, captions", Generation("captions", prompt="caption")),
    "augcond": Method("+ synthetic images, augmented conditioning", Generation("augcond", start="shots")),
    "datadream": Method("+ synthetic images, DataDream", Generation("datadream", adaptation="lora")),
    "difficulty": Method(
        "+ synthetic images, difficulty", Generation("difficulty", prompt="caption", adaptation="difficulty")
    ),
    "saflex": Method("+ synthetic images, SAFLEX", PLAIN, weighting="saflex"),
    "utilgen": Method("+ synthetic images, UtilGen", _UTILGEN, weighting="weight_network"),
    "joint": Method("+ synthetic images, joint", _PHRASES, labels="ensemble"),
    **{name: dataclasses.replace(method, only_in_ablations=True) for name, method in _PARTS.items()},
}

# Rows that are published systems, which the others are held against.
PUBLISHED = ("captions", "augcond", "datadream", "difficulty", "saflex", "utilgen")

# name -> rows that show, side by side, what each part of a method is worth
ABLATIONS: dict[str, tuple[str, ...]] = {
    "utilgen": ("vanilla", "utilgen_none", "utilgen_model", "utilgen_prompt", "utilgen_noise", "utilgen"),
    "joint": (
        "vanilla",
        "vanilla_ensemble",
        "saflex",
        "joint_phrases",
        "joint",
        "joint_uncertain",
        "joint_useful",
        "joint_adapter",
        "joint_lora",
        "joint_weights",
    ),
}
