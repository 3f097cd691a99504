"""What the models say in production, and what they are shown: is it still what they were validated on?"""

from __future__ import annotations

from collections.abc import Sequence

from workers.decoding.intensity import Appearance
from workers.messages import LABELS, Lane, ModelVersion, ScanResult
from workers.metrics import labels
from workers.metrics.definitions import Catalogue, Sample
from workers.metrics.drift import UPPER_BOUNDS, Drift, Reference, bin_of
from workers.progress import Outcome


class Quality:
    """Predictions and pictures of scans with a published result. Replayed history is left out: it is not of today."""

    def __init__(self, catalogue: Catalogue, drift: Drift) -> None:
        self.drift = drift
        self._models: Sequence[ModelVersion] = ()
        define = catalogue
        define.begin_section("What do the models say, and is it still what they were validated on?")
        predictions = define.counter(
            "mristream_predictions_total",
            "Scans that the classifier judged, by its likeliest class. Replayed history is left out, here and below.",
            labels.CLASS,
        )
        self._predictions = [predictions.labels(label) for label in LABELS]
        self._histograms = {
            "gate": define.histogram(
                "mristream_gate_probability_ratio",
                "The classifier's probability that the image is no brain MRI.",
                upper_bounds=UPPER_BOUNDS["gate"],
            ),
            "mask_confidence": define.histogram(
                "mristream_mask_confidence_ratio",
                "Highest tumour probability of any pixel of a segmented scan.",
                upper_bounds=UPPER_BOUNDS["mask_confidence"],
            ),
            "mask_area": define.histogram(
                "mristream_mask_area_ratio",
                "Share of a segmented scan's pixels that are tumour; the bound 0 counts empty masks.",
                upper_bounds=UPPER_BOUNDS["mask_area"],
            ),
            "brightness": define.histogram(
                "mristream_image_brightness_ratio",
                "Mean of the pixels that the models see, as share of white.",
                upper_bounds=UPPER_BOUNDS["brightness"],
            ),
            "contrast": define.histogram(
                "mristream_image_contrast_ratio",
                "Standard deviation of the pixels that the models see, as share of white.",
                upper_bounds=UPPER_BOUNDS["contrast"],
            ),
        }
        define.computed(
            "mristream_drift_psi",
            "Population stability index of the worker's last scans against the reference: below 0.1 no shift, from 0.25 a "
            "large one; missing until there are 500 scans.",
            labels.FEATURE,
            samples=self._indexes,
        )
        define.computed(
            "mristream_drift_scans",
            "Scans in the window that the index is computed of.",
            labels.FEATURE,
            samples=lambda: [((name,), float(sum(counts))) for name, counts in drift.counts().items()],
        )
        define.computed(
            "mristream_drift_reference_fits",
            "1 if the reference was made with the models in use, 0 if with others; missing until they are known.",
            samples=self._fits,
        )

    def models_in_use(self, versions: Sequence[ModelVersion]) -> None:
        """Say which models make results from now on."""
        self._models = versions

    def observe(self, outcome: Outcome) -> None:
        """Count a published scan."""
        if outcome.result.lane is Lane.REPLAY:
            return
        seen = features(outcome.result, outcome.appearance)
        for name, value in seen.items():
            self._histograms[name].observe(value)
        numbers = bins(outcome.result, seen)
        if "class" in numbers:
            self._predictions[numbers["class"]].inc()
        self.drift.add(numbers)

    def as_reference(self, about: str) -> Reference:
        """The last scans as what later ones are compared with."""
        models = {model.name: (model.sha256,) for model in self._models}
        bounds = self.drift.reference.upper_bounds
        return Reference(about=about, models=models, upper_bounds=bounds, counts=self.drift.counts())

    def reference_fits(self) -> bool | None:
        """Whether drift is measured against what these models said; None until it is known which they are."""
        return self.drift.reference.fits(self._models) if self._models else None

    def _indexes(self) -> list[Sample]:
        return [((name,), index) for name, index in self.drift.indexes().items()]

    def _fits(self) -> list[Sample]:
        fits = self.reference_fits()
        return [] if fits is None else [((), float(fits))]


def features(result: ScanResult, appearance: Appearance | None) -> dict[str, float]:
    """What is known of a scan, from 0 to 1 each, by the names of `drift.UPPER_BOUNDS`."""
    seen = dict[str, float]()
    if appearance is not None:
        seen["brightness"], seen["contrast"] = appearance
    if result.probabilities is not None:
        seen["gate"] = result.probabilities["not_brain_mri"]
    if result.mask is not None:
        seen["mask_area"] = result.mask.tumor_pixels / (result.mask.height * result.mask.width)
    if result.max_probability is not None:
        seen["mask_confidence"] = result.max_probability
    return seen


def bins(result: ScanResult, seen: dict[str, float]) -> dict[str, int]:
    """Number of the bin for each of `features`, and for `class` the number of the likeliest one in `LABELS`."""
    numbers = {name: bin_of(name, value) for name, value in seen.items()}
    if named := result.probabilities:
        numbers["class"] = LABELS.index(max(named, key=named.__getitem__))
    return numbers
