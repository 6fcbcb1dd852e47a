"""One run, described completely: every knob that can change a number is a field of `RunConfig`.

A configuration is frozen, flat and typed; presets only fill in fields. Its hash is the identity of the run, its path is where
the record lies. Fields that the chosen method does not read are put back to their defaults, so that one training has one identity.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from iekd.config.hints import did_you_mean
from iekd.config.presets import PRESETS, usual
from iekd.errors import ConfigError
from iekd.method import registry

Dataset = Literal["digits", "fashion-mnist", "cifar10", "cifar100", "imagenette"]
# Characters of a folder's name: encrypted homes take 143, and Windows 260 for a whole path.
LONGEST = 140
NATIVE_SIZE = {
    "digits": 8,
    "fashion-mnist": 28,
    "cifar10": 32,
    "cifar100": 32,
    "imagenette": 64,
}  # side of the images in pixels


class RunConfig(BaseModel):
    """Everything that determines one training run. Never change a default: defaults are left out of the hash, so that a field
    added later leaves the identity of older runs alone."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=False, validate_default=True, allow_inf_nan=False
    )

    preset: Literal["smoke", "class", "desk", "paper"] = Field(
        "smoke", description="where unset fields come from; names the folder, not in the hash"
    )
    dataset: Dataset = Field("digits", description="data set")
    teacher: str = Field(
        "none", description="teacher network, or 'none'; for DML and IE-DML the peer"
    )
    student: str = Field("none", description="student network, or 'none' for a factor auto-encoder")
    method: str = Field("supervised", description="how the student is trained")
    seed: int = Field(
        0, ge=0, lt=2**32, description="seed of initialisation, data order, augmentation and split"
    )

    # Data
    train_images: int = Field(
        0, ge=0, description="training images used, 0 = all that validation leaves"
    )
    validation_images: int = Field(
        0, ge=0, description="images held out of the training set, the same for every seed"
    )
    image_size: int = Field(
        0, ge=0, description="side in pixels after area down-sampling, from 8; 0 = native"
    )
    augment: Literal["none", "standard"] = Field(
        "standard", description="standard = random crop, and flip where the data set allows it"
    )

    views: int = Field(
        0,
        ge=0,
        description="augmented views per image, drawn once, for which the teacher computes once; 0 = new ones every epoch",
    )

    # Optimisation; the parents are trained with the same batch size, schedule, momentum, weight decay and precision
    epochs: int = Field(160, ge=1, description="epochs of this run")
    batch_size: int = Field(128, ge=1, description="images a step; the last, smaller batch is kept")
    lr: float = Field(0.1, gt=0, description="peak learning rate")
    schedule: Literal["steps", "onecycle"] = Field(
        "steps",
        description="steps = x0.1 at 50 % and 75 % of the epochs; onecycle = linear up over a fifth, linear down to 0",
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="Nesterov momentum")
    weight_decay: float = Field(5e-4, ge=0, description="L2 weight decay on every parameter")
    precision: Literal["fp32", "tf32", "bf16"] = Field(
        "fp32",
        description="of convolutions and products: tf32 on a GPU (fp32 on a CPU), bf16 in the networks while training; all else in fp32",
    )
    evaluate_every: int = Field(
        1, ge=1, description="epochs between two evaluations (the last epoch is always evaluated)"
    )

    # Parents
    teacher_epochs: int = Field(160, ge=1, description="epochs of the teacher's own run")
    teacher_lr: float = Field(0.1, gt=0, description="peak learning rate of the teacher's own run")
    teachers: int = Field(
        5,
        ge=1,
        description="number of different teachers: the run with seed k learns from teacher k mod teachers",
    )
    ae_epochs: int = Field(30, ge=1, description="epochs of the factor auto-encoder")
    ae_lr: float = Field(0.1, gt=0, description="peak learning rate of the factor auto-encoder")
    factor_ratio: float = Field(
        0.5, gt=0, le=1, description="channels of the factor / channels of the teacher's feature"
    )
    reconstruction: Literal["l2", "l1"] = Field(
        "l2", description="reconstruction loss of the auto-encoder"
    )
    decoder: Literal["transposed", "conv"] = Field(
        "transposed", description="decoder of the auto-encoder"
    )

    # Methods; the reduction of every factor measure is the mean over batch and dimensions
    kd_alpha: float = Field(
        0.9,
        ge=0,
        le=1,
        description="KD: weight of the soft targets; the cross-entropy gets the rest",
    )
    kd_temperature: float = Field(4.0, gt=0, description="KD: temperature")
    ft_weight: float = Field(
        500.0, ge=0, description="FT: weight of the mean L1 between normalised factors"
    )
    inherit: str = Field(
        "l1", description="IE: measure that pulls the inheritance half to the teacher's factor"
    )
    explore: str = Field(
        "l1", description="IE: measure that pushes the exploration half away from it"
    )
    inherit_weight: float = Field(50.0, ge=0, description="IE: lambda_inh")
    explore_weight: float = Field(50.0, ge=0, description="IE: lambda_exp")
    split: Literal["random", "halves"] = Field(
        "random",
        description="IE: one random permutation of the channels per seed, or first part / second part",
    )
    split_ratio: float = Field(
        0.5, ge=0, le=1, description="IE: part of the channels that inherits"
    )
    explore_target: Literal["teacher", "inherit", "shuffled"] = Field(
        "teacher",
        description="IE: exploration goes away from the factor of: the teacher, the inheritance half, or another image's teacher",
    )
    explore_encoder: Literal["trained", "frozen"] = Field(
        "trained",
        description="IE: the encoder of the exploration half learns, or stays at its random weights",
    )
    at_weight: float = Field(
        1000.0,
        ge=0,
        description="AT, IE-AT: weight of the mean squared difference of normalised attention maps",
    )
    od_weight: float = Field(
        1e-3, ge=0, description="OD, IE-OD: weight of the partial L2, summed over a sample"
    )
    tfkd_weight: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Tf-KD: weight of the virtual teacher; the cross-entropy gets the rest",
    )
    tfkd_temperature: float = Field(20.0, gt=0, description="Tf-KD: temperature")
    fitnet_weight: float = Field(
        100.0, ge=0, description="FitNet: weight of the mean squared error of the hint"
    )
    ab_weight: float = Field(
        3e-3,
        ge=0,
        description="AB: weight of the squared hinge at activation boundaries, summed over a sample",
    )
    init_epochs: int = Field(
        20,
        ge=0,
        description="FitNet, AB: epochs of the first stage, the initialisation; they are part of `epochs`",
    )
    sp_weight: float = Field(
        3000.0,
        ge=0,
        description="SP: weight of the mean squared difference of the similarities in a batch",
    )
    cc_weight: float = Field(
        100.0,
        ge=0,
        description="CC: weight of the mean squared difference of the correlations in a batch",
    )
    vid_weight: float = Field(
        1.0,
        ge=0,
        description="VID: weight of the mean negative log density of the teacher's features",
    )
    rkd_weight: float = Field(
        25.0,
        ge=0,
        description="RKD: weight of the mean Huber loss of distances; that of angles gets twice as much",
    )
    pkt_weight: float = Field(
        30000.0, ge=0, description="PKT: weight of the mean divergence of a pair of images"
    )
    nst_weight: float = Field(
        50.0, ge=0, description="NST: weight of the mean squared discrepancy of the channels' maps"
    )
    crd_weight: float = Field(
        0.8, ge=0, description="CRD: weight of the two contrastive losses, mean over the batch"
    )
    place: Literal["first", "second"] = Field(
        "first",
        description="DML, IE-DML: which of the two networks trained together is the student",
    )
    dml_weight: float = Field(
        1.0, ge=0, description="DML: weight of the divergence from the peer's probabilities"
    )
    turns: Literal["batch", "epoch"] = Field(
        "batch",
        description="IE-DML: all four updates in every batch, or one of them an epoch, in turn",
    )

    options: dict[str, int | float | str] = Field(
        {}, description="parameters of a method that a reader registered (iekd.method)"
    )

    @field_validator("method", "inherit", "explore")
    @classmethod
    def _is_registered(cls, value: str, info: ValidationInfo) -> str:
        """A finished run may name what only its author's files register."""
        if value not in (known := registry.choices(info.field_name)) and not _is_finished(info):
            raise ValueError(f"choose one of {', '.join(known)}")
        return value

    @model_validator(mode="before")
    @classmethod
    def _no_truth_values(cls, fields: Any) -> Any:
        for name, value in fields.items() if isinstance(fields, dict) else ():
            if isinstance(value, bool):  # pydantic would take True for 1
                raise ValueError(f"{name}: {value} is not usable; no parameter is true or false")
        return fields

    @model_validator(mode="after")
    def _networks_can_be_built(self) -> RunConfig:
        from iekd import networks

        if 0 < self.image_size < 8:
            raise ValueError(
                f"image_size: {self.image_size} is not usable; the networks need 8 pixels, choose 0 (native) or from 8"
            )
        for role in ("teacher", "student"):
            name, needed = (
                getattr(self, role),
                role == "student" or self.has_teacher or self.is_mutual,
            )
            if name == "none":
                if needed and not (role == "student" and self.method == "factor-ae"):
                    raise ValueError(
                        f"method '{self.method}' needs a {role}: name a network, for example resnet20"
                    )
            else:
                networks.check_name(name)
        return self

    @model_validator(mode="after")
    def _target_exists(self) -> RunConfig:
        asked = (
            self.method == "ie-ft" and self.explore_target == "inherit" and self.explore != "none"
        )
        if asked and (self.inherit == "none" or self.split_ratio == 0):
            raise ValueError(
                "explore_target: 'inherit' is not usable without an inheritance half; choose 'teacher', or set inherit"
            )
        return self

    @model_validator(mode="after")
    def _first_stage_fits(self) -> RunConfig:
        if "init_epochs" in fields_of(self.method) and self.init_epochs >= self.epochs:
            raise ValueError(
                f"init_epochs: {self.init_epochs} is not usable; the first stage is part of the {self.epochs} epochs, "
                f"choose 0 to {self.epochs - 1}"
            )
        return self

    @model_validator(mode="after")
    def _options_are_declared(self, info: ValidationInfo) -> RunConfig:
        if not _is_finished(info):
            self.__dict__["options"] = registered(self.method).complete(self.options)
        return self

    @model_validator(mode="after")
    def _canonical(self) -> RunConfig:
        """Reset fields that the method does not read, so that equal trainings have equal hashes."""
        for name in self.unread():
            self.__dict__[name] = type(self).model_fields[name].default
        if self.image_size == NATIVE_SIZE[self.dataset]:
            self.__dict__["image_size"] = 0
        if self.augment == "none":  # all views of an image are the image
            self.__dict__["views"] = min(self.views, 1)
        return self

    def unread(self) -> set[str]:
        """The fields that this run does not read, for its method or for a half without a measure.

        They stand at their defaults, whatever they were given. `refuse_unread` is for the fields that a person named.
        """
        unread = _unread_by(self.method)
        if self.method == "ie-ft":
            unread |= {
                f"{side}_weight" for side in ("inherit", "explore") if getattr(self, side) == "none"
            }
            unread |= {"explore_target", "explore_encoder"} if self.explore == "none" else set()
        return unread

    # ------------------------------------------------------------------ making one

    @classmethod
    def create(cls, preset: str = "smoke", **fields: Any) -> RunConfig:
        """A configuration from a preset and the fields that differ from it.

        Raises `ConfigError` that lists what is allowed for every unknown name and bad value.
        """
        if not isinstance(preset, str) or preset not in PRESETS:
            raise ConfigError(
                f"preset: {preset!r} is not usable; choose one of {', '.join(PRESETS)}"
            )
        own = option_names(fields.get("method"))
        options = {name: fields.pop(name) for name in list(fields) if name in own}
        if options:
            fields["options"] = {**fields.get("options", {}), **options}
        unknown = [name for name in fields if name not in cls.model_fields]
        if unknown:
            raise ConfigError("\n".join(unknown_field(name) for name in unknown))
        dataset = fields.get("dataset", PRESETS[preset]["dataset"])
        try:
            return cls(**{**usual(preset, str(dataset)), **fields})
        except ValidationError as error:
            raise ConfigError("\n".join(_explain(e) for e in error.errors())) from None

    def replace(self, **fields: Any) -> RunConfig:
        """The same run with some fields changed (validated again). What this run's method did not read comes from the preset."""
        kept = self.model_dump(exclude=self.unread())
        if fields.get("method", self.method) != self.method:
            kept.pop("options", None)
        return RunConfig.create(**{**kept, **fields})

    # ------------------------------------------------------------------ identity

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits that identify the run: SHA-256 of the fields that differ from the defaults, without `preset`."""
        identity = self.model_dump(exclude_defaults=True, exclude={"preset"})
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def has_teacher(self) -> bool:
        """Whether the method learns from a trained teacher."""
        return "teacher_epochs" in fields_of(self.method)

    @property
    def is_mutual(self) -> bool:
        """Whether two networks are trained together; each has a record of its own, see `partner`."""
        return "place" in fields_of(self.method)

    @property
    def pair(self) -> str:
        """'resnet56-resnet20', or the one network the run has."""
        return "-".join(n for n in (self.teacher, self.student) if n != "none")

    def changed(self) -> dict[str, Any]:
        """The fields in which this run differs from its preset, apart from those that every path names."""
        preset = _usual_run(self.preset, self.dataset, registry.methods().get(self.method))
        named = {"preset", "dataset", "teacher", "student", "method", "seed"}
        fields = self.model_dump(exclude={*named, "options"})
        if self.method not in registry.methods():  # the record of a method whose code is not here
            preset = {
                k: v if fields[k] != type(self).model_fields[k].default else fields[k]
                for k, v in preset.items()
                if k in fields
            }
        return {k: v for k, v in fields.items() if v != preset[k]} | self.options

    @property
    def variant(self) -> str:
        """Method and what differs from the preset, as in the path: 'ie-ft-explore=cka'."""
        return "-".join([self.method, *(f"{k}={_text(v)}" for k, v in self.changed().items())])

    @property
    def path(self) -> str:
        """Path of the record below the records folder, without suffix: '<preset>/<dataset>/<pair>/<variant>/seed<k>'. A variant that is
        too long for the name of a folder is cut, and ends in a digest of the whole."""
        return f"{self.preset}/{self.dataset}/{self.pair}/{_folder(self.variant)}/seed{self.seed}"

    # ------------------------------------------------------------------ parents

    def teacher_run(self) -> RunConfig:
        """The run that trains this run's teacher: on new views every epoch, so that runs with and without finite views share it."""
        return self.replace(
            method="supervised",
            student=self.teacher,
            epochs=self.teacher_epochs,
            lr=self.teacher_lr,
            seed=self.seed % self.teachers,
            views=0,
        )

    def autoencoder_run(self) -> RunConfig:
        """The run that trains the factor auto-encoder on this run's teacher."""
        return self.replace(
            method="factor-ae",
            epochs=self.ae_epochs,
            lr=self.ae_lr,
            seed=self.seed % self.teachers,
            views=0,
        )

    def partner(self) -> RunConfig:
        """The other network of the same mutual training."""
        return self.replace(
            student=self.teacher,
            teacher=self.student,
            place={"first": "second", "second": "first"}[self.place],
        )

    def parents(self) -> dict[str, RunConfig]:
        """The runs that must be finished before this one, by role: 'teacher', 'autoencoder'; 'first', if its training makes this one's
        record too."""
        if self.is_mutual and self.place == "second":
            return {"first": self.partner()}
        if not self.has_teacher:
            return {}
        needs_factor = "ae_epochs" in fields_of(self.method)
        return {
            "teacher": self.teacher_run(),
            **({"autoencoder": self.autoencoder_run()} if needs_factor else {}),
        }

    def named(self) -> dict[str, str]:
        """The fields that make this run again, as text: what a command line or papermill must name, the preset fills in the rest."""
        preset = usual(self.preset, self.dataset) | {"dataset": PRESETS[self.preset]["dataset"]}
        named = {
            k: getattr(self, k)
            for k in ("dataset", "teacher", "student")
            if getattr(self, k) not in ("none", preset[k])
        }
        fields = {
            "preset": self.preset,
            "method": self.method,
            **named,
            **self.changed(),
            "seed": self.seed,
        }
        return {name: _text(value) for name, value in fields.items()}

    def command(self) -> str:
        """The shell command that makes this run again."""
        return "iekd run " + " ".join(
            f"--{name.replace('_', '-')} {value}" for name, value in self.named().items()
        )


@functools.cache
def _usual_run(preset: str, dataset: str, row: registry.Method | None) -> dict[str, Any]:
    """All fields of a run that names nothing but these."""
    method = {"method": row.name} if row else {}
    return RunConfig(**{**usual(preset, dataset), **method}).model_dump()


def _folder(variant: str) -> str:
    """A variant as the name of a folder: the same for all its seeds."""
    if len(variant) <= LONGEST:
        return variant
    digest = hashlib.sha256(variant.encode()).hexdigest()[:12]
    return f"{variant[: LONGEST - len(digest) - 1]}-{digest}"


def registered(method: str) -> registry.Method:
    """The row of a method. Raises `ConfigError` for one that is not known here."""
    if method not in (known := registry.methods()):
        raise ConfigError(
            f"method: {method!r} is not known here; import the file that registers it (IEKD_IMPORT)"
        )
    return known[method]


def fields_of(method: str) -> tuple[str, ...]:
    """The fields that a method reads, and others do not; none for a method whose code is not here."""
    return registry.methods()[method].fields if method in registry.methods() else ()


def option_names(method: Any) -> set[str]:
    """The parameters of a reader's own method."""
    return set(registry.methods()[method].options) if method in registry.methods() else set()


@functools.cache
def _some_read() -> frozenset[str]:
    """The fields that some methods of this library read, and others do not."""
    ours = [row for row in registry.methods().values() if registry.is_ours(row.kind)]
    return frozenset(name for row in ours for name in row.fields)


def _unread_by(method: str) -> set[str]:
    """The fields that no run of a method reads."""
    if method not in registry.methods():  # they stood at their defaults when its record was written
        return set()
    own = fields_of(method)
    unread = set(_some_read() - set(own))
    unread |= (
        set() if "teacher_epochs" in own or "place" in own else {"teacher"}
    )  # trained before, or a peer
    return unread | ({"student"} if method == "factor-ae" else set())


def refuse_unread(names: Iterable[str], configs: Sequence[RunConfig]) -> None:
    """Raise `ConfigError` for every named field that none of these runs reads: whoever named it believes that it changes something."""
    unread = set.intersection(*(config.unread() for config in configs))
    methods = list(dict.fromkeys(config.method for config in configs))
    if idle := [name for name in names if name in unread]:
        raise ConfigError("\n".join(f"{name}: {_why_unread(name, methods)}" for name in idle))


def _why_unread(name: str, methods: list[str]) -> str:
    readers = [method for method in registry.methods() if name not in _unread_by(method)]
    if set(methods) & set(readers):
        return f"{' and '.join(methods)} does not read it where the measure of that half is none"
    return f"{', '.join(methods)} {'does' if len(methods) == 1 else 'do'} not read it; methods that do: {', '.join(readers)}"


def _text(value: Any) -> str:
    """A value as in paths and commands: read back, it is the same value."""
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return str(value)


def unknown_field(name: str) -> str:
    """The message for a parameter that does not exist: what it may have been, and where all of them are. There are too many to list: the
    cause would scroll off the screen."""
    return f"{name}: no such parameter{did_you_mean(name, RunConfig.model_fields)}; `iekd run --help` lists all of them"


def _explain(error: dict[str, Any]) -> str:
    """One line for one of pydantic's errors, with what is allowed."""
    name = ".".join(str(part) for part in error["loc"])
    if name not in RunConfig.model_fields:
        return str(error.get("ctx", {}).get("error", error["msg"]))
    choices = choices_of(name)
    allowed = f"choose one of {', '.join(map(str, choices))}" if choices else error["msg"]
    return f"{name}: {error['input']!r} is not usable; {allowed}"


def choices_of(name: str) -> tuple[Any, ...]:
    """The values that a field can have, if they can be listed."""
    if name in ("method", "inherit", "explore"):
        return registry.choices(name)
    return get_args(RunConfig.model_fields[name].annotation)


def _is_finished(info: ValidationInfo) -> bool:
    """Whether this is the configuration of a record: it may name what only its author's files register."""
    return bool(info.context and info.context.get("finished"))
