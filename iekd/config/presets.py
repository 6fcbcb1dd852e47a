"""Defaults for the fields of a run that were not given: by scale, then by data set."""

from typing import Any

from iekd.data import is_own

# For each: the networks; how long they train; how; and on which images.
PRESETS: dict[str, dict[str, Any]] = {
    # Seconds: tests and the live cells of the book.
    "smoke": dict(dataset="digits", teacher="resnet14x0.5", student="resnet8x0.25")
    | dict(epochs=12, teacher_epochs=25, ae_epochs=10, init_epochs=2)
    | dict(batch_size=64, lr=0.1, schedule="onecycle")
    | dict(train_images=400, validation_images=200, augment="none"),
    # A 2-core laptop: real images, about a minute per run (justified in the book's appendix).
    "class": dict(dataset="cifar10", teacher="resnet20", student="resnet8")
    | dict(epochs=15, teacher_epochs=30, ae_epochs=10, init_epochs=2, evaluate_every=3)
    | dict(batch_size=128, lr=0.1, schedule="onecycle")
    | dict(train_images=8000, validation_images=2000, image_size=16),
    # The paper's pair and images with a shorter training: a night on two cores that compute in
    # bfloat16 (AMX, or AVX-512 bf16).
    "desk": dict(dataset="cifar10", teacher="resnet56", student="resnet20", teachers=4)
    | dict(epochs=24, teacher_epochs=30, ae_epochs=10, init_epochs=3, evaluate_every=6)
    | dict(batch_size=128, lr=0.1, schedule="onecycle", precision="bf16")
    | dict(train_images=0, validation_images=5000),
    # The recipe of the authors' code (FACTS: networks and recipe, C), all images, last epoch
    # reported. It names no precision: TF32 is what PyTorch's convolutions use by default on GPUs
    # that have it.
    "paper": dict(dataset="cifar10", teacher="resnet56", student="resnet20")
    | dict(epochs=160, teacher_epochs=160, ae_epochs=30)
    | dict(batch_size=128, lr=0.1, schedule="steps", precision="tf32")
    | dict(train_images=0, validation_images=0),
}

# Those whose runs are evidence and are kept in the repository.
EVIDENCE = [name for name in PRESETS if name != "smoke"]

# What a data set changes by default. KD: the settings of the authors' code for each data set;
# CIFAR-100's are RunConfig's defaults, and Imagenette, which that code does not have, uses these
# too.
# Boxes: a pair of detectors, the official validation split, small batches. It takes all images to
# teach a detector, so only the epochs depend on the scale.
DETECTORS = dict(teacher="ssd_resnet10x0.25_3x3", student="ssd_resnet10x0.0625_3x3")
FEW_IMAGES = dict(train_images=0, batch_size=8, lr=0.02, teacher_lr=0.02, augment="standard")
DATASET_DEFAULTS: dict[str, dict[str, Any]] = {
    "cifar10": dict(kd_alpha=0.95, kd_temperature=20.0),
    "discs": DETECTORS | FEW_IMAGES | dict(validation_images=60, image_size=0),
    "bccd": DETECTORS | FEW_IMAGES | dict(validation_images=87, image_size=128),
    # PASCAL VOC 2007 and 2012: the scale of Overhaul Distillation's table; the pair is ours.
    "voc": dict(teacher="ssd_resnet34", student="ssd_resnet18", image_size=300, batch_size=32)
    | dict(train_images=0, validation_images=0, lr=0.001, teacher_lr=0.001),
}

# What a data set changes at one scale only. Imagenette: all images and pixels, and a pair for one
# core. ResNet-34 and 18 at these widths take twice as long as 18 and 10; with so few epochs, the
# narrow ResNet-18 also learned less than the narrow ResNet-10.
SCALE_DEFAULTS: dict[tuple[str, str], dict[str, Any]] = {
    ("class", "imagenette"): dict(teacher="resnet18x0.25_3x3", student="resnet10x0.125_3x3")
    | dict(train_images=0, validation_images=1000, image_size=0),
    # Discs: a live cell of a minute, with its teacher.
    ("smoke", "discs"): dict(teacher="ssd_resnet10x0.125_3x3", epochs=10, teacher_epochs=12)
    | dict(ae_epochs=4, evaluate_every=5),
    # Blood cells: 24 epochs of 205 images, half a minute.
    ("class", "bccd"): dict(epochs=24, teacher_epochs=24, ae_epochs=30, evaluate_every=8),
    # VOC: the epochs of 120,000 steps, the last of which are evaluated.
    ("paper", "voc"): dict(epochs=232, teacher_epochs=232, evaluate_every=29),
}
# ImageNet: the paper's pair, and the usual recipe for it; the paper's own is not known. The
# auto-encoder's epochs are those of the code of Factor Transfer. At 64 pixels: the stem for those.
IMAGENET: dict[str, Any] = dict(epochs=100, teacher_epochs=100, ae_epochs=5, teachers=1)
IMAGENET |= dict(batch_size=256, weight_decay=1e-4, schedule="30-60-90")
LARGE, SMALL = (dict(teacher=f"resnet34{stem}", student=f"resnet18{stem}") for stem in ("", "_3x3"))
SCALE_DEFAULTS["paper", "imagenet"] = IMAGENET | LARGE
SCALE_DEFAULTS["paper", "imagenet64"] = IMAGENET | SMALL


def usual(preset: str, dataset: str) -> dict[str, Any]:
    """The defaults of a preset for a data set. Of your own images, it takes all."""
    of_scale = SCALE_DEFAULTS.get((preset, dataset), {})
    if is_own(dataset):
        of_scale = {"train_images": 0, "validation_images": 0}
    named = {"preset": preset, "dataset": dataset}
    return PRESETS[preset] | named | DATASET_DEFAULTS.get(dataset, {}) | of_scale
