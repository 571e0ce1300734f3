"""8-bit ONNX by onnxruntime's own quantiser: int8 weights; activations are scaled anew for each batch.

This is its dynamic quantisation. The static one, calibrated on views of the few-shot images, lost 3.6 points of test
accuracy on CIFAR10's student of 10 shots (first 2,000 test images); the dynamic one lost 0.07 points on all test
images (docs/deployment.md).
"""

from __future__ import annotations

import logging
from pathlib import Path

from deployment.formats import KEY, needed, write_onnx


def quantize(float32: Path, path: Path) -> None:
    """Write the 8-bit form of an ONNX file, with the same header. Raises BadInput where onnxruntime is missing."""
    onnx = needed("onnx", path)
    model = onnx.load(float32)
    header = {entry.key: entry.value for entry in model.metadata_props}[KEY]
    del model.graph.value_info[:]  # onnxruntime 1.30 transposes weights and leaves their former shapes here
    logging.disable(logging.WARNING)  # it advises a preparation that changes nothing for plain convolutions
    try:
        needed("onnxruntime.quantization", path).quantize_dynamic(model, path)
    finally:
        logging.disable(logging.NOTSET)
    write_onnx(onnx.load(path), header, path)
