"""Weight sources by name: the one place that knows them all."""

from __future__ import annotations

from pathlib import Path

from mnvision.backbones.pretrained.files import SUFFIXES, read_file
from mnvision.backbones.pretrained.keras import read_keras
from mnvision.backbones.pretrained.tfslim import read_tfslim
from mnvision.backbones.pretrained.timm import read_timm
from mnvision.backbones.pretrained.weights import PretrainedWeights
from mnvision.errors import UserError

NAMED_SOURCES = {"timm/": read_timm, "keras/": read_keras, "tfslim/": read_tfslim}


def read_weights(source: str, cache_dir: Path | None = None) -> PretrainedWeights:
    """Weights by name or from a file, not yet loaded into anything.

    Args:
        source: One of ``timm/<model>.<tag>``, ``keras/<alpha>_<resolution>[_no_top]``,
            ``tfslim/<alpha>_<resolution>[_quant]``, or the path of a .safetensors, .pth, .pt, .ckpt, .h5 or
            .tflite file. A file of that name goes before a named source.
        cache_dir: Where downloads are kept; by default ``$MNVISION_CACHE``, else ``~/.cache/mnvision`` (for
            timm Hugging Face's own cache).

    Raises:
        UserError: In one line: what is wrong, or which file to get and where to put it.
    """
    if not isinstance(source, str) or not source:
        raise UserError(f"pretrained={source!r}: {_offer()}")
    path = Path(source).expanduser()
    if not path.is_file():
        for prefix, read in NAMED_SOURCES.items():
            if source.startswith(prefix):
                return read(source, cache_dir)
    if not path.exists() and path.suffix.lower() not in SUFFIXES:
        raise UserError(f"pretrained={source}: neither a file nor a known name; {_offer()}")
    return read_file(path, source)


def _offer() -> str:
    return (
        "give timm/MODEL.TAG, keras/ALPHA_RESOLUTION, tfslim/ALPHA_RESOLUTION or a file ending in "
        f"{', '.join(SUFFIXES)}"
    )
