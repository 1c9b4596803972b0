"""What lies where in the folder of a pretrained checkpoint, beside diffusers' own files."""

from pathlib import Path

TRAINING_IMAGES = "training_images.txt"  # ids of the data set's images that it was taught
TRAINING = "training"  # folder of what an interrupted run continues from


def is_done(component: Path) -> bool:
    """Whether a component's weights have been written."""
    return any(component.glob("*.safetensors"))


def is_whole(out: Path) -> bool:
    """Whether a folder holds all that `pretrain` writes."""
    return (out / "model_index.json").is_file() and is_done(out / "unet") and not (out / TRAINING).exists()
