"""The programs of single methods: steps of LoRA, tokens, preferences, classifier; an image's own prompt and noise."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from utilgen_jax.classifier.dataset import ClassifierInput
from utilgen_jax.classifier.train import learning_step, make_init_optimizer
from utilgen_jax.experiment.per_image import FoldModels, PerImageProgram, refine_batch
from utilgen_jax.experiment.pools import predict_generated
from utilgen_jax.generator.adapter import Adapter
from utilgen_jax.generator.clip_towers import ImageTower
from utilgen_jax.generator.config import PerImageConfig
from utilgen_jax.generator.feedback import Feedback
from utilgen_jax.generator.finetune.config import DpoConfig, LoraConfig, TextualInversionConfig
from utilgen_jax.generator.finetune.denoising import DenoisingSet, adapter_loss, init_train_state, make_train_step
from utilgen_jax.generator.finetune.dpo import DpoPairs, dpo_step, make_dpo_optimizer
from utilgen_jax.generator.finetune.textual_inversion import token_loss
from utilgen_jax.generator.inputs import SampleInputs
from utilgen_jax.generator.sampling import sample
from utilgen_jax.generator.stable_diffusion import StableDiffusion, expected_params
from utilgen_jax.methods.datadream import DataDreamConfig
from utilgen_jax.methods.deliberate_practice import DeliberatePracticeConfig
from utilgen_jax.methods.difficulty import DifficultyConfig
from utilgen_jax.methods.utilgen import WEIGHTING
from utilgen_jax.models.clip_vision import CLIPVisionModelWithProjection
from utilgen_jax.models.difficulty import DifficultyEncoder
from utilgen_jax.models.lora import init_lora
from utilgen_jax.plan.compiling import Call
from utilgen_jax.plan.programs import NUM_CLASSES, PlannedRun, Program, key_shape
from utilgen_jax.types import Params
from utilgen_jax.valuation.cross_fit import make_weighting

# OpenAI's ViT-L/14, the CLIP of `per_image.clip` in the configs of photographs.
_CLIP = CLIPVisionModelWithProjection(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    patch_size=14,
    projection_dim=768,
)


def _lora(kind: type[LoraConfig], run: PlannedRun, params: Mapping[str, Any]) -> Call:
    """A step on the denoising loss, of the section's sizes."""
    config, optimizer = run.config.section(kind), optax.adamw(1e-4)
    number = config.batch_size
    with_difficulty = issubclass(kind, DifficultyConfig)

    def init(key: jax.Array) -> Any:
        loras: dict[str, Any] = {
            f"{name}_lora": init_lora(params[name], key, rank=config.text_encoder_rank).factors
            for name in (run.architecture.text_encoders if config.text_encoder_rank else ())
        }
        adapter = Adapter(
            unet_lora=init_lora(params["unet"], key, rank=config.rank).factors,
            **loras,
            difficulty_encoder=DifficultyEncoder(NUM_CLASSES, run.architecture.text_width).init(
                key, jnp.zeros(1, jnp.int32), jnp.zeros(1)
            )["params"]
            if with_difficulty
            else None,
        )
        return init_train_state(adapter, optimizer)

    state = run.replicated(jax.eval_shape(init, key_shape()))
    batch = DenoisingSet(
        run.latents(number),
        run.batch(dtype=jnp.int32, number=number),
        run.batch(number=number) if with_difficulty else None,
        run.image_labels(number),
    )
    prompts = _token_ids(run) if config.text_encoder_rank else _class_embeds(run)
    sd = StableDiffusion(run.architecture, dict(params))
    key = run.replicated(key_shape())
    return Call(make_train_step(adapter_loss, optimizer), (state, sd, prompts, batch, key))


def _textual_inversion(run: PlannedRun, params: Mapping[str, Any]) -> Call:
    config, optimizer = run.config.section(TextualInversionConfig), optax.adamw(1e-4)
    # The tokens take the place of the vocabulary's last words, which costs what further ones do.
    tokens = min(NUM_CLASSES, run.architecture.text_encoder.vocab_size // 2)
    embeds = jax.ShapeDtypeStruct((tokens, run.architecture.text_width), jnp.float32)
    state = run.replicated(jax.eval_shape(lambda embeds: init_train_state(embeds, optimizer), embeds))
    number = config.batch_size
    batch = DenoisingSet(
        run.latents(number), run.batch(dtype=jnp.int32, number=number), class_labels=run.image_labels(number)
    )
    sd = StableDiffusion(run.architecture, dict(params))
    arguments = (state, sd, _token_ids(run), batch, run.replicated(key_shape()))
    return Call(make_train_step(token_loss, optimizer), arguments)


def _dpo(run: PlannedRun, params: Mapping[str, Any]) -> Call:
    """As many images as a step has in its pairs; a pool of more lies in memory and changes nothing else."""
    config, number = run.config.section(DpoConfig), 2 * run.config.section(DpoConfig).batch_size

    def init(key: jax.Array) -> Any:
        adapter = Adapter(unet_lora=init_lora(params["unet"], key, rank=config.rank).factors)
        return init_train_state(adapter, make_dpo_optimizer(config))

    def places(size: int) -> Any:
        return jax.ShapeDtypeStruct((size,), jnp.int32)

    state = run.replicated(jax.eval_shape(init, key_shape()))
    pairs = DpoPairs(
        latents=run.latents(number),
        labels=places(number),
        prompt_embeds=_class_embeds(run),
        prompts=places(number),
        winners=places(config.batch_size),
        losers=places(config.batch_size),
    )
    sd = StableDiffusion(run.architecture, dict(params))
    arguments = (config, state, state.trained, sd, run.replicated(pairs), run.replicated(key_shape()))
    return Call(dpo_step, arguments)


def _classifier(run: PlannedRun, params: Mapping[str, Any]) -> Call:
    config, image = run.config.classifier, _image_shape(run)
    number, optimizer = config.batch_size, make_init_optimizer(config.optimizer)
    weights = jax.eval_shape(partial(_init_classifier, run), key_shape())
    state = run.replicated((weights, jax.eval_shape(optimizer, weights)))
    batch = run.batch(*image, number=number), run.batch(NUM_CLASSES, number=number)
    counts = run.replicated(jax.ShapeDtypeStruct((NUM_CLASSES,), jnp.float32))
    return Call(learning_step, (run.classifier, config, *state, *batch, counts, 0.1))


def _per_image(run: PlannedRun, params: Mapping[str, Any]) -> Call:
    config, folds = run.config.section(PerImageConfig), run.config.valuation.weighting_folds
    weighting = make_weighting(WEIGHTING, run.config.valuation, NUM_CLASSES)
    sees = _classifier_input(run)
    program = PerImageProgram(
        noise=True,
        config=config,
        sampling=run.sampling,
        valuation=run.config.valuation,
        weighting=WEIGHTING,
        classifier_input=sees,
        label_smoothing=run.config.classifier.label_smoothing,
    )

    def init(key: jax.Array) -> dict[str, Any]:
        classifiers = jax.vmap(partial(_init_classifier, run))(jax.random.split(key, folds))
        return {"classifier": classifiers, "weighting": weighting.init(key)}

    models = run.replicated(FoldModels(run.classifier, jax.eval_shape(init, key_shape())))
    tower, anchors = None, None
    if config.clip_weight:
        encoder = (not config.clip and run.architecture.image_encoder) or _CLIP.clone(dtype=run.dtype)
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, run.dtype), expected_params(encoder))
        tower, anchors = ImageTower(encoder, run.replicated(shapes)), run.batch(encoder.projection_dim)
    inputs = SampleInputs(
        condition=run.condition(),
        latents=run.latents(),
        labels=run.batch(dtype=jnp.int32),
        rows=run.batch(dtype=jnp.int32),
        keys=run.batch(dtype=key_shape().dtype),
        clip_anchors=anchors,
    )
    sd = StableDiffusion(run.architecture, dict(params))
    return Call(refine_batch, (program, sd, models, tower, Adapter(), inputs))


def _guided_sample(run: PlannedRun, params: Mapping[str, Any]) -> Call:
    """Led by a classifier; a gradient goes through the decoder in each step."""
    weights = run.replicated(jax.eval_shape(partial(_init_classifier, run), key_shape()))
    predict = Partial(predict_generated, run.classifier, _classifier_input(run), weights)
    practice = run.config.section(DeliberatePracticeConfig)
    feedback = Feedback(predict, practice.scale, practice.micro_batch_size)
    condition = run.condition().replace(feedback=feedback)  # type: ignore[attr-defined]
    sd = StableDiffusion(run.architecture, dict(params))
    return Call(sample, (sd, condition, run.latents(), run.sampling), {"keys": run.batch(dtype=key_shape().dtype)})


def _classifier_input(run: PlannedRun) -> ClassifierInput:
    return ClassifierInput(NUM_CLASSES, run.config.data.image_size, run.config.data.channels)


def _image_shape(run: PlannedRun) -> tuple[int, int, int]:
    return run.config.data.image_size, run.config.data.image_size, run.config.data.channels


def _init_classifier(run: PlannedRun, key: jax.Array) -> Params:
    return run.classifier.module.init(key, jnp.zeros((1, *_image_shape(run))))["params"]


def _class_embeds(run: PlannedRun) -> Any:
    """Text states of each class's prompt."""
    return run.replicated(run.text_states(NUM_CLASSES))


def _token_ids(run: PlannedRun) -> Any:
    number = len(run.architecture.text_encoders)
    length = run.architecture.text_encoder.max_position_embeddings
    shape = (NUM_CLASSES, length) if number == 1 else (NUM_CLASSES, number, length)
    return run.replicated(jax.ShapeDtypeStruct(shape, jnp.int32))


_TRAINED = ("unet", "text_encoder", "text_encoder_2")
TRAININGS: Mapping[str, Program] = {
    "lora": Program(
        "a step of DataDream's LoRA, config.lora", partial(_lora, DataDreamConfig), _TRAINED, True, "lora.batch_size"
    ),
    "difficulty": Program(
        "a step of LoRA and difficulty encoder, config.difficulty",
        partial(_lora, DifficultyConfig),
        _TRAINED,
        True,
        "difficulty.batch_size",
    ),
    "textual_inversion": Program(
        "a step of the class tokens, config.textual_inversion",
        _textual_inversion,
        _TRAINED,
        True,
        "textual_inversion.batch_size",
    ),
    "dpo": Program(
        "a step of Diffusion-DPO, config.dpo", _dpo, ("unet",), True, "dpo.batch_size", "dpo.micro_batch_size"
    ),
    "per_image": Program(
        "prompt ascent and golden noise of a batch, config.per_image",
        _per_image,
        ("unet", "vae"),
        has_gradient=True,
        micro_batch="per_image.micro_batch_size",
    ),
    "classifier": Program(
        "a step of the classifier, config.classifier", _classifier, (), batch="classifier.batch_size"
    ),
    "guided_sample": Program(
        "the sampler led by the classifier, config.deliberate_practice",
        _guided_sample,
        ("unet", "vae"),
        has_gradient=True,
        micro_batch="deliberate_practice.micro_batch_size",
    ),
}
