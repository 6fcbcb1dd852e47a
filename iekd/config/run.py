"""One run, described completely: a frozen, flat, typed set of fields (`iekd.config.fields`).

Presets only fill in fields. The hash of a configuration is the identity of the run; its path is
where the record is stored. Fields that the method does not read are reset to their defaults, so
that each training has one identity.
"""

import functools
import hashlib
import json
import shlex
from typing import Any, Self

from pydantic import ValidationError, ValidationInfo, field_validator, model_validator

from iekd import data
from iekd.checkout import from_root
from iekd.config import known
from iekd.config.fields import RETIRED, Fields, choices
from iekd.config.presets import PRESETS, usual
from iekd.config.reads import TRAINED_TEACHER, fields_of, options_of, unread_by
from iekd.errors import ConfigError, did_you_mean
from iekd.method import registry

# Characters in a folder name: encrypted homes allow 143, and Windows 260 for a whole path.
LONGEST = 140
# The fields that are part of every path anyway.
NAMED = {"preset", "dataset", "teacher", "student", "method", "seed"}


class RunConfig(Fields):
    """Everything that determines one training run."""

    # ------------------------------------------------------------------ checks

    @model_validator(mode="before")
    @classmethod
    def _plain_values(cls, fields: Any) -> Any:
        """Refuse booleans, which pydantic would read as 0 and 1; drop retired fields."""
        if not isinstance(fields, dict):
            return fields
        for name, value in fields.items():
            if isinstance(value, bool):
                raise ValueError(f"{name}: {value} is not usable; no parameter is true or false")
        return {k: v for k, v in fields.items() if k not in RETIRED or v != RETIRED[k]}

    @field_validator("method", "inherit", "explore")
    @classmethod
    def _is_registered(cls, value: str, info: ValidationInfo) -> str:
        allowed = choices(str(info.field_name))
        if value not in allowed and not _is_finished(info):
            raise ValueError(f"choose one of {', '.join(allowed)}")
        return value

    @field_validator("dataset")
    @classmethod
    def _is_data_set(cls, value: str) -> str:
        if value not in data.NAMES and not data.is_own(value):
            raise ValueError("choose one of those known, or my-NAME for images of your own")
        return value

    @model_validator(mode="after")
    def _networks_can_be_built(self) -> Self:
        self._check_network("teacher", needed=self.has_teacher or self.is_mutual)
        self._check_network("student", needed=self.method != "factor-ae")
        return self

    def _check_network(self, role: str, needed: bool) -> None:
        from iekd import networks  # only here: it imports torch, which takes seconds

        name = getattr(self, role)
        if name != "none":
            networks.check_name(name)
        elif needed:
            raise ValueError(
                f"method '{self.method}' needs a {role}: name a network, for example resnet20"
            )

    @model_validator(mode="after")
    def _values_fit_together(self) -> Self:
        if 0 < self.image_size < 8:
            raise ValueError(
                f"image_size: {self.image_size} is not usable; the networks need 8 pixels, "
                "choose 0 (native) or from 8"
            )
        asked = self.method == "ie-ft" and self.explore_target == "inherit"
        if asked and self.explore != "none" and (self.inherit == "none" or self.split_ratio == 0):
            raise ValueError(
                "explore_target: 'inherit' is not usable without an inheritance half; "
                "choose 'teacher', or set inherit"
            )
        if "init_epochs" in fields_of(self.method) and self.init_epochs >= self.epochs:
            raise ValueError(
                f"init_epochs: {self.init_epochs} is not usable; the first stage is part of the "
                f"{self.epochs} epochs, choose 0 to {self.epochs - 1}"
            )
        return self

    @model_validator(mode="after")
    def _canonical(self, info: ValidationInfo) -> Self:
        """Reset fields that the method does not use, so that equal trainings have equal hashes."""
        own = self.__dict__  # the model is frozen
        for name in self.unread():
            own[name] = Fields.model_fields[name].default
        if self.is_given:
            own["epochs"] = 1
        preset = usual(self.preset, self.dataset)
        for name in self.ignored():
            own[name] = preset.get(name, Fields.model_fields[name].default)
        if self.dataset in data.NAMES and self.image_size == data.FACTS[self.dataset].side:
            own["image_size"] = 0
        if self.augment == "none":  # all views of an image are the image itself
            own["views"] = min(self.views, 1)
        if not _is_finished(info):
            own["options"] = known.methods()[self.method].complete(self.options)
        return self

    @model_validator(mode="after")
    def _boxes_are_found(self, info: ValidationInfo) -> Self:
        """Require detectors where a data set has boxes, only there, and a method for them."""
        from iekd import networks

        boxes = data.has_boxes(self.dataset)
        for role in ("teacher", "student"):
            name = getattr(self, role)
            if name != "none" and networks.finds_boxes(name) != boxes:
                kind = "needs a detector, for example ssd_" if boxes else "has no boxes: choose "
                raise ValueError(f"{role}: {name} is not usable; {self.dataset} {kind}resnet18")
        if not boxes or _is_finished(info):
            return self
        able = [name for name, row in known.methods().items() if row.detects]
        if self.method not in able:
            raise ValueError(
                f"method: {self.method} reads class scores or a pooled feature, which a detector "
                f"does not have; on {self.dataset} choose one of {', '.join(able)}"
            )
        if self.views:
            raise ValueError(f"views: {self.views} is not usable with boxes, choose 0")
        return self

    def unread(self) -> set[str]:
        """The fields that this run does not read, by its method or for lack of a measure.

        They are at their defaults, whatever was given. `refuse_unread` is for fields that a person
        named.
        """
        unread = unread_by(self.method)
        if self.method == "ie-ft":
            off = {side for side in ("inherit", "explore") if getattr(self, side) == "none"}
            unread |= {f"{side}_weight" for side in off}
            unread |= {"explore_target", "explore_encoder"} if "explore" in off else set()
        return unread

    def ignored(self) -> set[str]:
        """The fields that mean nothing with a teacher from a file: the preset's are kept."""
        return set(TRAINED_TEACHER) if self.teacher_file else set()

    # ------------------------------------------------------------------ making one

    @classmethod
    def create(cls, preset: str = "smoke", **fields: Any) -> Self:
        """A configuration from a preset and the fields that differ from it.

        Parameters of a reader's own method are fields too. Fields that the method does not read are
        reset to their defaults, so that arms with several methods can be made from one set of
        fields; `refuse_unread` refuses them. Raises a `ConfigError` that lists what is allowed for
        every unknown name and bad value.

        >>> RunConfig.create("class", method="ie-ft", explore="cka").variant
        'ie-ft-explore=cka'
        """
        if not isinstance(preset, str) or preset not in PRESETS:
            presets = ", ".join(PRESETS)
            raise ConfigError(f"preset: {preset!r} is not usable; choose one of {presets}")
        options = options_of(fields.get("method"))
        own = {name: value for name, value in fields.items() if name in options}
        fields = {name: value for name, value in fields.items() if name not in options}
        if unknown := [name for name in fields if name not in cls.model_fields]:
            raise ConfigError("\n".join(unknown_field(name) for name in unknown))
        if own:
            fields["options"] = {**fields.get("options", {}), **own}
        dataset = fields.get("dataset", PRESETS[preset]["dataset"])
        try:
            return cls(**{**usual(preset, str(dataset)), **fields})
        except ValidationError as error:
            raise ConfigError("\n".join(_explain(e) for e in error.errors())) from None

    def replace(self, **fields: Any) -> Self:
        """The same run with some fields changed (validated again).

        Fields that this run's method did not read come from the preset.
        """
        method = fields.get("method", self.method)
        # What the new method does not read may be a name that is not known here.
        leave = self.unread() | unread_by(method)
        if method != self.method:
            leave.add("options")
        return self.create(**{**self.model_dump(exclude=leave), **fields})

    # ------------------------------------------------------------------ identity

    def __hash__(self) -> int:
        return hash((self.preset, self.hash))

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits: SHA-256 of the fields that differ from the defaults.

        `preset` is not included.
        """
        identity = self.model_dump(exclude_defaults=True, exclude={"preset"})
        text = json.dumps(identity, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def is_given(self) -> bool:
        """Whether this is a teacher from a file: an "epoch" in which nothing is trained."""
        return self.weights_file != ""

    @property
    def has_teacher(self) -> bool:
        """Whether the method learns from a trained teacher."""
        return "teacher_epochs" in fields_of(self.method)

    @property
    def is_mutual(self) -> bool:
        """Whether two networks are trained together; each has its own record, see `partner`."""
        return "place" in fields_of(self.method)

    @property
    def pair(self) -> str:
        """'resnet56-resnet20', or the one network the run has."""
        return "-".join(name for name in (self.teacher, self.student) if name != "none")

    def changed(self) -> dict[str, Any]:
        """The fields in which this run differs from its preset, and the options of its method."""
        fields = self.model_dump(exclude={*NAMED, "options"})
        row = known.methods().get(self.method)
        if row:
            preset = _usual_run(self.preset, self.dataset, row)
        else:
            defaults = {name: field.default for name, field in Fields.model_fields.items()}
            preset = defaults | usual(self.preset, self.dataset)
        changed = {name: value for name, value in fields.items() if value != preset[name]}
        if not row:  # a record whose method is unknown here: unread fields are at their defaults
            changed = {name: v for name, v in changed.items() if v != defaults[name]}
        return {**changed, **self.options}

    @property
    def variant(self) -> str:
        """Method and what differs from the preset, as in the path: 'ie-ft-explore=cka'."""
        changes = [f"{name}={_text(value)}" for name, value in self.changed().items()]
        return "-".join([self.method, *changes])

    @property
    def path(self) -> str:
        """Path of the record below the records folder, without suffix.

        '<preset>/<dataset>/<pair>/<variant>/seed<k>'. A variant that is too long for a folder name
        is cut and ends in a digest of the whole.
        """
        folder = _folder(self.variant)
        return f"{self.preset}/{self.dataset}/{self.pair}/{folder}/seed{self.seed}"

    # ------------------------------------------------------------------ parents

    def teacher_run(self) -> Self:
        """The run that trains this run's teacher, or takes it from a file.

        It sees new views every epoch, so that runs with and without finite views share it.
        """
        how: dict[str, Any] = {"epochs": self.teacher_epochs, "lr": self.teacher_lr, "views": 0}
        seed = 0 if self.teacher_file else self.seed % self.teachers
        how |= {"weights_file": self.teacher_file, "seed": seed}
        return self.replace(method="supervised", student=self.teacher, **how)

    def autoencoder_run(self) -> Self:
        """The run that trains the factor auto-encoder on this run's teacher."""
        how = {"epochs": self.ae_epochs, "lr": self.ae_lr, "views": 0}
        return self.replace(method="factor-ae", seed=self.seed % self.teachers, **how)

    def partner(self) -> Self:
        """The other network of the same mutual training."""
        other = {"first": "second", "second": "first"}[self.place]
        return self.replace(student=self.teacher, teacher=self.student, place=other)

    def parents(self) -> dict[str, Self]:
        """The runs that must be finished before this one, by role.

        'teacher', 'autoencoder'; 'first', if its training makes this one's record too.
        """
        if self.is_mutual and self.place == "second":
            return {"first": self.partner()}
        parents = {}
        if self.has_teacher:
            parents["teacher"] = self.teacher_run()
        if "ae_epochs" in fields_of(self.method):
            parents["autoencoder"] = self.autoencoder_run()
        return parents

    def named(self) -> dict[str, str]:
        """The fields to pass, as strings, to reproduce this run; the preset supplies the rest."""
        preset = usual(self.preset, self.dataset) | {"dataset": PRESETS[self.preset]["dataset"]}
        fields: dict[str, Any] = {"preset": self.preset, "method": self.method}
        for name in ("dataset", "teacher", "student"):
            if getattr(self, name) not in ("none", preset[name]):
                fields[name] = getattr(self, name)
        fields |= {**self.changed(), "seed": self.seed}
        return {name: _text(value) for name, value in fields.items()}

    def command(self) -> str:
        """The shell command that repeats this run, with the reader's files that it needs."""
        files = known.files_of(self.method, self.inherit, self.explore)
        words = [f"--import {shlex.quote(from_root(file))}" for file in files]
        words += [f"--{name.replace('_', '-')} {value}" for name, value in self.named().items()]
        return " ".join(["iekd run", *words])


# ---------------------------------------------------------------------- texts


@functools.cache
def _usual_run(preset: str, dataset: str, row: registry.Method) -> dict[str, Any]:
    """All fields of a run for which only these are given."""
    return RunConfig(**{**usual(preset, dataset), "method": row.name}).model_dump()


def _folder(variant: str) -> str:
    """A variant as a folder name, the same for all its seeds."""
    if len(variant) <= LONGEST:
        return variant
    digest = hashlib.sha256(variant.encode()).hexdigest()[:12]
    return f"{variant[: LONGEST - len(digest) - 1]}-{digest}"


def _text(value: Any) -> str:
    """A value as written in paths and commands; read back, it is the same value."""
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return str(value)


def unknown_field(name: str) -> str:
    """The message for a parameter that does not exist: what it may have been.

    There are too many fields to list: the cause would scroll off the screen.
    """
    hint = did_you_mean(name, RunConfig.model_fields)
    return f"{name}: no such parameter{hint}; `iekd run --help` lists all of them"


def _explain(error: Any) -> str:
    """One line for one of pydantic's errors, with what is allowed."""
    name = ".".join(map(str, error["loc"]))
    if name not in RunConfig.model_fields:
        return str(error.get("ctx", {}).get("error", error["msg"]))
    listed = choices(name)
    allowed = f"choose one of {', '.join(map(str, listed))}" if listed else error["msg"]
    return f"{name}: {error['input']!r} is not usable; {allowed}"


def _is_finished(info: ValidationInfo) -> bool:
    """Whether this is the configuration of a record: it may name what only its author registers."""
    return bool(info.context and info.context.get("finished"))
