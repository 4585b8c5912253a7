"""The tables of the SURF paper (arXiv 2606.04921), to stand beside measurements on the very same data."""

from __future__ import annotations

from dataclasses import dataclass, field

SUPERVISED = ("Supervised Regression", "Supervised Flow", "BASIS")
"""Labels of the methods that need clean sources: shown, but not ranked with those that learn from mixtures alone."""


@dataclass(frozen=True)
class Published:
    """A table of the paper: its metrics, and their values by the label of the method."""

    source: str
    metrics: tuple[str, ...]
    rows: dict[str, tuple[float, ...]]
    deviations: dict[str, float] = field(default_factory=dict)
    """Of the first metric, where the paper gives them."""
    note: str = ""


IMAGE = ("psnr", "lpips", "ssim", "fid")
FUSS = ("1S", "2Si", "3Si", "4Si", "under", "equal", "over")
SPEECH = ("si_sdr", "estoi", "pesq", "dnsmos")

# By our labels: "Regression (ReMixIT)" is the "ReMixIT" of Tables 3 and 4.
_AUDIOSET: dict[str, tuple[float, ...]] = {
    "Supervised Flow": (38.79, 13.58, 12.46, 10.24, 0.031, 0.580, 0.389, 18.21, 0.904, 3.29, 2.58),
    "MixIT": (10.99, 9.20, 11.87, 9.75, 0.005, 0.339, 0.656, 14.18, 0.771, 2.79, 2.53),
    "Regression (ReMixIT)": (19.83, 9.91, 8.47, 8.62, 0.014, 0.387, 0.599, 14.29, 0.793, 2.85, 2.51),
    "Regression (Self-Remixing)": (19.75, 9.88, 8.58, 9.11, 0.035, 0.244, 0.721, 14.81, 0.784, 2.81, 2.56),
    "SURF (ReMixIT)": (32.67, 11.04, 10.38, 7.52, 0.166, 0.574, 0.260, 14.98, 0.840, 2.86, 2.55),
    "SURF (Self-Remixing)": (29.10, 11.36, 11.63, 8.80, 0.129, 0.559, 0.312, 15.23, 0.840, 2.93, 2.57),
}
_TRAINED = "The paper's models were trained on 731 h of AudioSet."

TABLES = {
    "mnist": Published(
        "Table 1, MNIST",
        IMAGE,
        {
            "Supervised Regression": (26.02, 0.007, 0.963, 25.44),
            "Supervised Flow": (37.44, 0.001, 0.992, 19.47),
            "BASIS": (29.67, 0.005, 0.919, 38.62),
            "MixIT": (21.90, 0.011, 0.929, 30.89),
            "Regression (ReMixIT)": (22.81, 0.011, 0.915, 30.55),
            "Regression (Self-Remixing)": (23.13, 0.010, 0.910, 28.14),
            "SURF (ReMixIT)": (37.26, 0.001, 0.992, 19.57),
            "SURF (Self-Remixing)": (37.03, 0.001, 0.991, 19.56),
        },
    ),
    "cifar10": Published(
        "Table 1, CIFAR10",
        IMAGE,
        {
            "Supervised Regression": (19.34, 0.059, 0.726, 22.18),
            "Supervised Flow": (20.38, 0.032, 0.777, 9.601),
            "BASIS": (13.37, 0.119, 0.429, 26.66),
            "MixIT": (16.77, 0.069, 0.707, 29.51),
            "Regression (ReMixIT)": (17.40, 0.078, 0.647, 28.44),
            "Regression (Self-Remixing)": (17.51, 0.082, 0.655, 29.12),
            "SURF (ReMixIT)": (19.73, 0.036, 0.756, 14.83),
            "SURF (Self-Remixing)": (19.49, 0.037, 0.751, 14.77),
        },
    ),
    "cifar10_samples": Published(
        "Table 2",
        ("is", "fid"),
        {
            "Average": (7.18, 28.02),
            "BASIS": (8.29, 22.12),
            "MixIT": (4.56, 31.27),
            "SURF (ReMixIT)": (8.20, 12.98),
            "SURF (Self-Remixing)": (8.25, 12.50),
        },
        {"Average": 0.08, "BASIS": 0.16, "MixIT": 0.05, "SURF (ReMixIT)": 0.08, "SURF (Self-Remixing)": 0.07},
    ),
    "audioset": Published("Table 3", FUSS + SPEECH, _AUDIOSET, note=_TRAINED),
    "fuss": Published("Table 3", FUSS, {label: row[:7] for label, row in _AUDIOSET.items()}, note=_TRAINED),
    "librispeech_fuss": Published(
        "Table 3", SPEECH, {label: row[7:] for label, row in _AUDIOSET.items()}, note=_TRAINED
    ),
    "libri2mix": Published(
        "Table 4",
        SPEECH,
        {
            "Supervised Flow": (17.89, 0.908, 3.45, 2.94),
            "MixIT": (12.39, 0.753, 2.52, 2.36),
            "Regression (ReMixIT)": (13.22, 0.827, 2.72, 2.76),
            "Regression (Self-Remixing)": (13.60, 0.830, 2.71, 2.78),
            "SURF (ReMixIT)": (16.54, 0.893, 3.30, 2.94),
            "SURF (Self-Remixing)": (16.28, 0.889, 3.28, 2.93),
        },
    ),
}

# Table 9, by the genuine set, the label of the method, what was changed, and its value.
TABLE_9 = ("psnr", "ssim", "lpips")
SCHEDULE = "1 to 0 in 200,000 steps"
ABLATIONS: dict[str, dict[str, dict[str, dict[str, tuple[float, ...]]]]] = {
    "cifar10": {
        "SURF (Self-Remixing)": {
            "EMA decay α": {
                "0": (16.55, 0.631, 0.077),
                "0.9": (18.55, 0.733, 0.054),
                "0.99": (19.01, 0.741, 0.041),
                "0.999": (19.49, 0.751, 0.037),
                "0.9999": (13.36, 0.372, 0.101),
            },
            "batch size B": {
                "1": (8.79, 0.071, 0.379),
                "4": (16.46, 0.629, 0.078),
                "16": (17.49, 0.681, 0.065),
                "64": (18.11, 0.730, 0.056),
                "256": (19.49, 0.751, 0.036),
            },
            "teacher's β": {
                "0.1": (8.15, 0.078, 0.380),
                "0.5": (18.46, 0.721, 0.051),
                "1": (17.30, 0.701, 0.060),
                SCHEDULE: (19.49, 0.751, 0.037),
            },
        },
        "SURF (ReMixIT)": {
            "EMA decay α": {
                "0": (16.63, 0.635, 0.075),
                "0.9": (18.62, 0.739, 0.051),
                "0.99": (18.99, 0.741, 0.043),
                "0.999": (19.73, 0.756, 0.036),
                "0.9999": (13.55, 0.401, 0.098),
            },
            "batch size B": {
                "1": (15.87, 0.596, 0.094),
                "4": (16.88, 0.657, 0.075),
                "16": (17.65, 0.697, 0.063),
                "64": (18.85, 0.712, 0.048),
                "256": (19.73, 0.756, 0.036),
            },
            "teacher's β": {
                "0.1": (8.48, 0.081, 0.372),
                "0.5": (18.41, 0.719, 0.053),
                "1": (18.08, 0.723, 0.055),
                SCHEDULE: (19.73, 0.756, 0.036),
            },
        },
    }
}
