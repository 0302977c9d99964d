"""The sixteen models that the paper's authors released with TF-slim, float and quantised.

Source: table "Pre-trained Models" of ``research/slim/nets/mobilenet_v1.md`` in tensorflow/models; every
archive holds a .tflite file beside checkpoints. The address and the two checksums are those of TensorFlow's
own ``workspace.bzl`` (``tflite_mobilenet_float``, ``tflite_mobilenet_quant``); no others were found
published, so the other archives are checked for their length and signature, and in the end tensor by tensor
for their shapes.
"""

from __future__ import annotations

import re
import tarfile
import zlib
from pathlib import Path

from mnvision.backbones.pretrained.download import cache_folder, fetch, write_whole
from mnvision.backbones.pretrained.tflite import read_tflite
from mnvision.backbones.pretrained.weights import PretrainedWeights
from mnvision.errors import UserError

BASE_URL = "https://storage.googleapis.com/download.tensorflow.org/models/mobilenet_v1_2018_08_02/"
SHA256 = {
    "mobilenet_v1_1.0_224.tgz": "2fadeabb9968ec6833bee903900dda6e61b3947200535874ce2fe42a8493abc0",
    "mobilenet_v1_1.0_224_quant.tgz": "d32432d28673a936b2d6281ab0600c71cf7226dfe4cdcef3012555f691744166",
}
GZIP_SIGNATURE = b"\x1f\x8b"
# The largest of the released .tflite files has 17 MB; nothing near this limit is one of them.
MAX_MEMBER_BYTES = 64 * 2**20
ALPHA_TEXTS = {1.0: "1.0", 0.75: "0.75", 0.5: "0.5", 0.25: "0.25"}
RESOLUTIONS = (224, 192, 160, 128)


def read_tfslim(source: str, cache_dir: Path | None = None) -> PretrainedWeights:
    """``tfslim/<alpha>_<resolution>`` or ``..._quant``: one of the sixteen released models, downloaded once.

    1001 classes, "background" first. An archive or .tflite file put into the cache folder by hand is used as
    it is.

    Raises:
        UserError: Not one of the sixteen, no connection (the line says which file to put where), a damaged
            file.
    """
    match = re.fullmatch(r"tfslim/([\d.]+)_(\d+)(_quant)?", source)
    alpha, resolution = (float(match[1]), int(match[2])) if match and match[1].count(".") < 2 else (0.0, 0)
    if match is None or alpha not in ALPHA_TEXTS or resolution not in RESOLUTIONS:
        raise UserError(
            f"{source}: no such weights; TF-slim has tfslim/ALPHA_RESOLUTION with ALPHA 1.0, 0.75, 0.5 or "
            "0.25 and RESOLUTION 224, 192, 160 or 128, each also with _quant behind"
        )
    name = f"mobilenet_v1_{ALPHA_TEXTS[alpha]}_{resolution}{match[3] or ''}"
    folder = cache_folder("tfslim", cache_dir)
    path = folder / f"{name}.tflite"
    if not path.is_file():
        archive = folder / f"{name}.tgz"
        fetch(f"{BASE_URL}{archive.name}", archive, GZIP_SIGNATURE, SHA256.get(archive.name))
        write_whole(path, _tflite_in(archive))
    return read_tflite(path, source)


def _tflite_in(archive: Path) -> bytes:
    """The one .tflite file of a downloaded archive; no path of the archive is ever written to."""
    try:
        with tarfile.open(archive, "r:gz") as tar:
            members = [entry for entry in tar if entry.isfile() and entry.name.endswith(".tflite")]
            if len(members) == 1 and members[0].size <= MAX_MEMBER_BYTES:
                file = tar.extractfile(members[0])
                content = file.read() if file is not None else b""
                if content:
                    return content
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise UserError(f"{archive}: damaged archive ({error}): delete it and run again") from error
    raise UserError(f"{archive}: expected one .tflite file in it, found {len(members)}: delete it and run again")
