"""What ``rmadapter calibrate`` keeps beside an adapter: a temperature, and scores for conformal sets."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

from rmadapter.config.typed import from_plain
from rmadapter.data.class_names import some
from rmadapter.errors import InputError, check_choice, check_range
from rmadapter.evaluation.conformal import SCORES, conformal_sets
from rmadapter.files import read_json, write_json

CALIBRATION = "calibration.json"
FORMAT = 1
COLDEST, HOTTEST = 0.05, 20.0


@dataclass(frozen=True)
class Mismatch:
    """Why a calibration does not hold: what is ``asked``, what it is ``of`` instead, and a ``remedy``."""

    asked: str
    of: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.asked}, and it is of {self.of}"


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How the probabilities of one adapter, among given classes at one strength, are to be read.

    Attributes:
        weights_sha256: of the adapter's weights.
        class_names, template, strength: what it was calibrated with, and holds for.
        data, data_hash, classes, whence, images: the images: of which data set and part of its classes, where from, and
            how many.
        temperature: what logits are divided by.
        before, after: ``nll`` and ``ece`` of these images without and with it.
        score: which of ``scores`` makes the sets.
        scores: by ``conformal.SCORES``, those of the true classes at temperature 1, ascending; the temperature was
            fitted on the same images, and sets that do not depend on it keep their coverage.
    """

    weights_sha256: str
    class_names: list[str]
    template: str
    strength: float
    data: str
    data_hash: str
    classes: str
    whence: str
    images: int
    temperature: float
    before: dict[str, float]
    after: dict[str, float]
    score: str
    scores: dict[str, list[float]]

    def __post_init__(self) -> None:
        check_choice("score", self.score, SCORES)
        check_range("temperature", self.temperature, 0, open_low=True)
        if set(self.scores) != set(SCORES) or any(len(found) != self.images for found in self.scores.values()):
            raise InputError(f"scores are not {self.images} numbers of each of {', '.join(SCORES)}")

    def save(self, folder: Path) -> None:
        """Write it into the adapter's ``folder``, atomically."""
        write_json(folder / CALIBRATION, {"format": FORMAT, **dataclasses.asdict(self)})

    @classmethod
    def load(cls, folder: Path) -> Calibration | None:
        """What is in the adapter's ``folder``; None where nothing is.

        Raises:
            InputError: a damaged file, or one of another format.
        """
        file = folder / CALIBRATION
        if not file.is_file():
            return None
        values = read_json(file, "calibration file")
        number = values.pop("format", None) if isinstance(values, dict) else None
        if number != FORMAT:
            raise InputError(f"calibration file {file} has format {number!r}; valid: {FORMAT}; calibrate again")
        try:
            return from_plain(cls, values, "calibration")
        except InputError as error:
            raise InputError(f"{file} is damaged: {error}") from error

    def difference(
        self, weights_sha256: str, class_names: Sequence[str], template: str, strength: float
    ) -> Mismatch | None:
        """Why it does not hold for these; None where it does. The order of the classes does not count."""
        if weights_sha256 != self.weights_sha256:
            return Mismatch("the adapter was trained again", "its earlier weights", "rmadapter calibrate again")
        if sorted(class_names) != sorted(self.class_names):
            return Mismatch(
                f"classes are {some(class_names)}", f"the classes {some(self.class_names)}", "those classes"
            )
        if template != self.template:
            return Mismatch(
                f"the prompt is {template!r}", f"the prompt {self.template!r}", f"--template {self.template!r}"
            )
        if strength != self.strength:
            asked, own = f"{strength:g}", f"{self.strength:g}"
            remedy = f"--strength {own}, or rmadapter calibrate --strength {asked}"
            return Mismatch(f"strength is {asked}", f"strength {own}", remedy)
        return None

    @property
    def identity(self) -> str:
        """SHA-256 of all that it says, so that one made with other images is another."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()

    def calibrated(self, probabilities: Tensor) -> Tensor:
        """Probabilities [n, classes] at the temperature, of the model's own."""
        return (probabilities.log() / self.temperature).softmax(-1)

    def sets(self, probabilities: Tensor, coverage: float) -> Tensor:
        """The sets of ``coverage`` of the model's own ``probabilities`` [n, classes], as bool [n, classes]."""
        return conformal_sets(self.score, probabilities, self.scores[self.score], coverage)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature of the least negative log-likelihood (Guo et al., ICML 2017) of ``logits`` [n, classes].

    It is sought from 0.05 to 20. Where every answer is right it is 1: a colder one is always likelier then, and on
    images to come, of which some are answered wrong, 0.05 would make every mistake a certain one.
    """
    values = logits.double()
    if bool((values.argmax(-1) == labels).all()):
        return 1.0

    def loss(log_temperature: float) -> float:
        return float(F.cross_entropy(values / math.exp(log_temperature), labels))

    bounds = (math.log(COLDEST), math.log(HOTTEST))
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-4}).x)


def calibration_for(
    folder: str | None,
    weights_sha256: str | None,
    class_names: Sequence[str],
    template: str,
    strength: float,
    sets: float | None,
) -> Calibration | None:
    """The calibration in an adapter's ``folder`` that holds for these answers; None for none.

    Args:
        folder, weights_sha256: of the adapter, None without one.
        class_names, template, strength: what is predicted with.
        sets: coverage of the sets that are wanted, or None.

    Raises:
        InputError: sets are wanted and there is no calibration that holds.
    """
    found = None if folder is None else Calibration.load(Path(folder))
    if found is None or weights_sha256 is None:
        if sets is not None:
            raise InputError(f"sets is {sets:g}, but there is no calibration; valid: after rmadapter calibrate")
        return None
    other = found.difference(weights_sha256, class_names, template, strength)
    if other is None:
        return found
    if sets is not None:
        raise InputError(
            f"{other.asked}, but the calibration in {folder} is of {other.of}; valid with --sets: {other.remedy}"
        )
    warnings.warn(f"the calibration in {folder} is not used: {other}", stacklevel=2)
    return None
