"""Exported students: one file that needs no other, in three formats.

.pth         weights and header; loaded as a module of this repository
.pt2         a program of torch.export; PyTorch runs it without this repository
.onnx        for onnxruntime and many others
.int8.onnx   the same in 8 bits: a quarter of the size

All take raw images (B, 3, S, S) uint8, RGB, any B, and give logits (B, classes) with the temperature applied. Each
holds a header, which says in JSON from what it was made. A .pt2 file is unpickled by PyTorch when it is loaded: load
only one that you trust.

The 8 bits are onnxruntime's dynamic quantisation: int8 weights, and activations scaled anew for each batch. Its static
quantisation lost 3.6 points of test accuracy (docs/deployment.md).
"""

import importlib
import io
import json
import logging
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data.decoding import Pictures
from data.views import images_at_once
from deployment.folding import USUALLY_FOLDED, FoldedStudent
from deployment.plain import RawStudent
from grafting.students import empty_student
from models import checkpoints
from models.networks import NETWORKS, frozen
from utils import files
from utils.errors import BadInput

INT8 = ".int8.onnx"
ENDINGS = (".pth", ".pt2", INT8, ".onnx")
KIND = "an exported student; export it again with --export"
KEY = "fskd_student"  # under which a file holds its header
DIGEST = "fskd_sha256"  # under which an ONNX file holds the sha256 of the rest; the other formats have checksums
Network = Callable[[Tensor], Tensor]  # images (B, 3, S, S) uint8 -> logits (B, classes)
Images = Tensor | np.ndarray | Pictures  # (N, 3, S, S) uint8
Header = dict[str, Any]  # made in deployment/export.py


@torch.inference_mode()
def logits_of(network: Network, images: Images, device: torch.device, batch: int | None = None) -> Tensor:
    """The network's logits (N, classes), float32 on the CPU, for uint8 images (N, 3, S, S). batch: images at once."""
    batch = batch or images_at_once(250, images.shape[-1])
    parts = (torch.as_tensor(images[start : start + batch]) for start in range(0, len(images), batch))
    return torch.cat([network(part.to(device)).float().cpu() for part in parts])


def ending_of(path: Path) -> str:
    """One of ENDINGS. Raises BadInput for another one."""
    for ending in ENDINGS:
        if path.name.endswith(ending):
            return ending
    raise BadInput(f"{path}: ends in none of {', '.join(ENDINGS)}; choose one")


def needed(module: str, path: Path) -> ModuleType:
    """An optional module. Raises BadInput if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BadInput(f"{path}: needs {module}; pip install -r requirements-onnx.txt") from error


def write(network: nn.Module, header: Header, path: Path) -> None:
    """Write the format of the ending. The network is on the CPU."""
    ending, text = ending_of(path), json.dumps(header)
    if ending == ".pth":
        files.write_tensors(path, {KEY: text, "weights": checkpoints.on_cpu(network)})
        return
    size = header["image_size"]
    example = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names folders of this machine
    if ending == ".pt2":
        content = io.BytesIO()
        with warnings.catch_warnings():  # about the order in which weights are saved
            warnings.simplefilter("ignore")
            torch.export.save(program, content, extra_files={KEY: text})
        files.write_bytes(path, content.getvalue())
        return
    onnx = needed("onnx", path)
    found = torch.onnx.export(program, dynamo=True, verbose=False, input_names=["images"], output_names=["logits"])
    model = found.model_proto
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    if ending == INT8:
        del model.graph.value_info[:]  # onnxruntime 1.30 transposes weights and leaves their former shapes here
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)  # it advises a preparation that changes nothing for plain convolutions
        try:
            needed("onnxruntime.quantization", path).quantize_dynamic(model, path)
        finally:
            logging.disable(before)
        model = onnx.load(path)
    _put_onnx(model, text, path)


def replace_header(header: Header, path: Path) -> None:
    """Give an ONNX file, of whatever bits, this header."""
    _put_onnx(needed("onnx", path).load(path), json.dumps(header), path)


def _put_onnx(model: Any, text: str, path: Path) -> None:
    """Write an ONNX model with this header and the sha256 of both."""
    del model.metadata_props[:]
    needed("onnx", path).helper.set_model_props(model, {KEY: text, DIGEST: _digest(model, text)})
    files.write_bytes(path, model.SerializeToString())


def _digest(model: Any, header: str) -> str:
    """sha256 of an ONNX model without properties, and of the header."""
    return files.sha256(model.SerializeToString(deterministic=True) + header.encode())


def is_exported(path: Path) -> bool:
    """Whether to read a file as an exported student: every .pt2 and .onnx, and others that hold a header."""
    if path.suffix in (".pt2", ".onnx"):
        return True
    content = files.read_tensors(path, "a checkpoint")
    return isinstance(content, dict) and KEY in content


def read(path: Path) -> tuple[Network, Header]:
    """The network in an exported file of any format, on the CPU. Raises BadInput for any other file.

    From a .pth file, the network is a module.
    """
    readers = {".pth": _read_pth, ".pt2": _read_pt2, ".onnx": _read_onnx, INT8: _read_onnx}
    return readers[ending_of(path)](path)


def empty_network(header: Header) -> nn.Module | None:
    """The network that the header describes, without its values; None where only the file itself holds it."""
    if "widths" in header:
        folded = header.get("folded", USUALLY_FOLDED)
        return frozen(FoldedStudent(header["widths"], len(header["class_names"]), folded, header["image_size"]))
    if header["networks"] not in NETWORKS:
        return None
    networks = NETWORKS[header["networks"]].grafted_at(*header["grafted"])
    blocks = empty_student(networks, len(header["class_names"]), header["image_size"])
    return frozen(RawStudent(blocks))


def _header(text: str | bytes | None) -> Header:
    if text is None:
        raise ValueError("it has no header; --export makes one from a student")
    return json.loads(text)


def _read_pth(path: Path) -> tuple[Network, Header]:
    content = files.read_tensors(path, KIND)
    with files.reading(path, KIND):
        header = _header(content.get(KEY))
        network = empty_network(header)
        checkpoints.load(network, content["weights"], path)
    return network.to(memory_format=torch.channels_last), header


def _read_pt2(path: Path) -> tuple[Network, Header]:
    with files.reading(path, KIND):
        files.require_checksums(path)
        with zipfile.ZipFile(path) as archive:
            text = next((archive.read(name) for name in archive.namelist() if name.endswith(f"/{KEY}")), None)
        header = _header(text)  # before anything of a file that is none of ours is unpickled
        return torch.export.load(path).module().forward, header


def _read_onnx(path: Path) -> tuple[Network, Header]:
    onnx, onnxruntime = needed("onnx", path), needed("onnxruntime", path)
    incomplete = needed("google.protobuf.message", path).DecodeError
    with files.reading(path, KIND):
        content = path.read_bytes()
        try:
            model = onnx.load_model_from_string(content)
        except incomplete as error:
            raise ValueError("it is incomplete or not ONNX") from error
        properties = {entry.key: entry.value for entry in model.metadata_props}
        header = _header(properties.get(KEY))
        del model.metadata_props[:]
        if properties.get(DIGEST) != _digest(model, properties[KEY]):
            raise ValueError("its sha256 differs")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def network(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])

    return network, header
