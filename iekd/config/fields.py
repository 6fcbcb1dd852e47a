"""Every knob that can change a number is a field of a run.

Never change a default: defaults are left out of the hash, so that adding a field does not change
the identity of older runs. The order of the fields is that of the changes in a record's path.
"""

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from iekd import data
from iekd.config import known

Seed = Annotated[int, Field(ge=0, lt=2**32)]
Count = Annotated[int, Field(ge=0)]
FromOne = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Part = Annotated[float, Field(gt=0, le=1)]
FileName = Annotated[str, Field(pattern=r"^(\w[\w.+-]*)?$")]
Momentum = Annotated[float, Field(ge=0, lt=1)]

# Retired fields, each with the value that means "never there". Older records have them.
RETIRED: dict[str, Any] = {}


class Fields(BaseModel):
    """The fields of `RunConfig`: their types, ranges, defaults and meaning."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    preset: Literal["smoke", "class", "desk", "paper"] = "smoke"
    """where unset fields come from; names the folder, not in the hash"""
    dataset: str = "digits"
    """data set; or my-NAME, a folder of images of your own (IEKD_DATA)"""
    teacher: str = "none"
    """teacher network, or 'none'; for DML and IE-DML the peer"""
    student: str = "none"
    """student network, or 'none' for a factor auto-encoder"""
    method: str = "supervised"
    """how the student is trained"""
    seed: Seed = 0
    """seed of initialisation, data order, augmentation and split"""

    # Data
    train_images: Count = 0
    """training images used, 0 = all that validation leaves"""
    validation_images: Count = 0
    """images held out of the training set, the same for every seed"""
    image_size: Count = 0
    """side in pixels after area down-sampling, from 8; 0 = native"""
    augment: Literal["none", "standard"] = "standard"
    """standard = random crop, and flip where the data set allows it"""
    views: Count = 0
    """augmented views per image, drawn once, for which the teacher computes once; 0 = new ones
    every epoch"""

    # Optimisation; the parents share batch size, schedule, momentum, weight decay and precision
    epochs: FromOne = 160
    """epochs of this run"""
    batch_size: FromOne = 128
    """images per step; the last, smaller batch is kept"""
    lr: Positive = 0.1
    """peak learning rate"""
    schedule: Literal["steps", "onecycle", "30-60-90"] = "steps"
    """steps = x0.1 at 50 % and 75 % of the epochs; onecycle = linear up over a fifth, then
    linear down to 0; 30-60-90 = x0.1 at 30, 60 and 90 % of the epochs"""
    momentum: Momentum = 0.9
    """Nesterov momentum"""
    weight_decay: Weight = 5e-4
    """L2 weight decay on every parameter"""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """of convolutions and products: tf32 on a GPU (fp32 on a CPU), bf16 in the networks while
    training; all else in fp32"""
    evaluate_every: FromOne = 1
    """epochs between two evaluations (the last epoch is always evaluated)"""

    # Parents
    teacher_epochs: FromOne = 160
    """epochs of the teacher's own run"""
    teacher_lr: Positive = 0.1
    """peak learning rate of the teacher's own run"""
    teachers: FromOne = 5
    """number of different teachers: the run with seed k learns from teacher k mod teachers"""
    teacher_file: FileName = ""
    """your own teacher, used as it is: NAME of teachers/NAME.pth or .safetensors
    (IEKD_DATA); empty = trained here"""
    weights_file: FileName = ""
    """a student alone that is such a teacher itself"""
    ae_epochs: FromOne = 30
    """epochs of the factor auto-encoder"""
    ae_lr: Positive = 0.1
    """peak learning rate of the factor auto-encoder"""
    factor_ratio: Part = 0.5
    """channels of the factor / channels of the teacher's feature"""
    reconstruction: Literal["l2", "l1"] = "l2"
    """reconstruction loss of the auto-encoder"""
    decoder: Literal["transposed", "conv"] = "transposed"
    """decoder of the auto-encoder"""

    # Methods; the reduction of every factor measure is the mean over batch and dimensions
    kd_alpha: Share = 0.9
    """KD: weight of the soft targets; the cross-entropy gets the rest"""
    kd_temperature: Positive = 4.0
    """KD: temperature"""
    ft_weight: Weight = 500.0
    """FT: weight of the mean L1 between normalised factors"""
    inherit: str = "l1"
    """IE: measure that pulls the inheritance half to the teacher's factor"""
    explore: str = "l1"
    """IE: measure that pushes the exploration half away from it"""
    inherit_weight: Weight = 50.0
    """IE: lambda_inh"""
    explore_weight: Weight = 50.0
    """IE: lambda_exp"""
    split: Literal["random", "halves"] = "random"
    """IE: one random permutation of the channels per seed, or first part / second part"""
    split_ratio: Share = 0.5
    """IE: fraction of the channels that inherit"""
    explore_target: Literal["teacher", "inherit", "shuffled"] = "teacher"
    """IE: whose factor exploration is pushed away from: the teacher's, the inheritance half's, or
    the teacher's for another image"""
    explore_encoder: Literal["trained", "frozen"] = "trained"
    """IE: the encoder of the exploration half learns, or stays at its random weights"""
    at_weight: Weight = 1000.0
    """AT, IE-AT: weight of the mean squared difference of normalised attention maps"""
    od_weight: Weight = 1e-3
    """OD, IE-OD: weight of the partial L2, summed over a sample"""
    tfkd_weight: Share = 0.1
    """Tf-KD: weight of the virtual teacher; the cross-entropy gets the rest"""
    tfkd_temperature: Positive = 20.0
    """Tf-KD: temperature"""
    fitnet_weight: Weight = 100.0
    """FitNet: weight of the mean squared error of the hint"""
    ab_weight: Weight = 3e-3
    """AB: weight of the squared hinge at activation boundaries, summed over a sample"""
    init_epochs: Count = 20
    """FitNet, AB: epochs of the first stage, the initialisation; they are part of `epochs`"""
    sp_weight: Weight = 3000.0
    """SP: weight of the mean squared difference of the similarities in a batch"""
    cc_weight: Weight = 100.0
    """CC: weight of the mean squared difference of the correlations in a batch"""
    vid_weight: Weight = 1.0
    """VID: weight of the mean negative log density of the teacher's features"""
    rkd_weight: Weight = 25.0
    """RKD: weight of the mean Huber loss of distances; that of angles gets twice as much"""
    pkt_weight: Weight = 30000.0
    """PKT: weight of the mean divergence of a pair of images"""
    nst_weight: Weight = 50.0
    """NST: weight of the mean squared discrepancy of the channels' maps"""
    crd_weight: Weight = 0.8
    """CRD: weight of the two contrastive losses, mean over the batch"""
    place: Literal["first", "second"] = "first"
    """DML, IE-DML: which of the two networks trained together is the student"""
    dml_weight: Weight = 1.0
    """DML: weight of the divergence from the peer's probabilities"""
    turns: Literal["batch", "epoch"] = "batch"
    """IE-DML: all four updates in every batch, or one of them per epoch, in turn"""
    options: dict[str, int | float | str] = {}
    """parameters of a method that a reader registered (iekd.method)"""


for _field in Fields.model_fields.values():
    _field.description = " ".join(str(_field.description).split())


def choices(name: str) -> tuple[Any, ...]:
    """The values that a field can have, if they can be listed."""
    if name in ("method", "inherit", "explore"):
        return known.choices(name)
    if name == "dataset":
        return data.NAMES
    return get_args(Fields.model_fields[name].annotation)
