"""The encodings that are compared, by name. To rate one of your own, add an entry to
`ENCODINGS`."""

from dataclasses import dataclass

from vggish import HOP
from voice_translator import Encoding


@dataclass(frozen=True)
class Condition:
    """An encoding, and how it is heard."""

    encoding: Encoding = Encoding()
    # Frames of the log-mel. None: the fewest that cover the sound, 112 for 1.05 s.
    frames: int | None = None
    hop: int = HOP  # Samples at 16 kHz from frame to frame.


BASELINE = "primary"  # The encoding with which every other one is compared.
ENCODINGS: dict[str, Condition] = {
    BASELINE: Condition(),
    "longer": Condition(Encoding(seconds=2.0)),
    # As many frames a column, and the network of the primary encoding.
    "longer_in_112_frames": Condition(Encoding(seconds=2.0), hop=305),
    "primary_in_208_frames": Condition(frames=208),  # The larger network alone.
    "tanh": Condition(Encoding(curve="tanh")),
    "middle": Condition(Encoding(pitch_position="middle")),
    "bottom": Condition(Encoding(pitch_position="bottom")),
    "linear": Condition(Encoding(curve="linear")),
    "mel": Condition(Encoding(curve="mel")),
    "500_to_5000_hz": Condition(Encoding(lowest_hz=500.0, highest_hz=5000.0)),
    "contrast_0": Condition(Encoding(contrast=0.0)),
    "8_by_8": Condition(Encoding(rows=8, columns=8)),
    "16_by_16": Condition(Encoding(rows=16, columns=16)),
    "32_by_32": Condition(Encoding(rows=32, columns=32)),
    "64_by_64": Condition(Encoding(rows=64, columns=64)),
    "shorter": Condition(Encoding(seconds=0.5)),
    "shorter_in_112_frames": Condition(Encoding(seconds=0.5), hop=69),
    "top_to_bottom": Condition(Encoding(scan="top_to_bottom")),
    "negative": Condition(Encoding(negative=True)),
    "noise_0_db": Condition(Encoding(noise_snr_db=0.0)),
    "speaker_300_to_3400_hz": Condition(Encoding(speaker_band_hz=(300.0, 3400.0))),
}
