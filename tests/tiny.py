"""Settings with which every method runs in seconds, given a quick checkpoint."""

from pathlib import Path

from utilgen_jax.methods import METHODS

DIGITS = f"{Path(__file__).parents[1] / 'configs' / 'digits.py'}"
TINY = (
    ("baselines", ""),
    ("data.max_classes", "2"),
    ("data.max_test", "20"),
    ("generator.image_size", "16"),
    ("generator.steps", "2"),
    ("pool.images_per_class", "4"),
    ("lora.steps", "2"),
    ("difficulty.steps", "2"),
    ("difficulty.batch_size", "16"),
    ("textual_inversion.steps", "2"),
    ("dpo.rounds", "1"),
    ("dpo.steps", "2"),
    ("per_image.steps", "1"),
    ("per_image.sampler_steps", "1"),
    ("deliberate_practice.rounds", "2"),  # each compiles, for pools smaller than a batch
    ("joint.plain_steps", "2"),
    ("joint.steps", "4"),
    ("joint.num_generated", "2"),
    ("joint.sampler_steps", "1"),
    ("joint.gate_images", "2"),
    ("joint.gate_steps", "2"),
    ("ensemble.members", "1"),
    ("classifier.name", "mlp"),  # quicker to compile
    ("classifier.steps", "5"),
    ("classifier.width", "8"),
    ("valuation.plain_steps", "2"),
    ("valuation.steps", "3"),
    # All is exaggerated, so that a difference in what goes in shows in the images' 8 bits.
    ("generator.guidance_scale", "50"),
    ("lora.learning_rate", "0.1"),
    ("difficulty.learning_rate", "0.1"),
    ("difficulty.prior_fraction", "0.5"),
    ("textual_inversion.learning_rate", "1"),
    ("dpo.learning_rate", "0.1"),
    ("per_image.learning_rate", "1"),
    ("joint.attribute_learning_rate", "10"),
    ("joint.lora_learning_rate", "0.1"),
    ("classifier.learning_rate", "0.05"),
)
# Methods for ablations are parts of these, but for joint's further ones.
JOINT_METHODS = ["joint_without_gate", "joint_without_labels"]
NAMES = [name for name, method in METHODS.items() if not method.only_in_ablations] + JOINT_METHODS
