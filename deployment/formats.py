"""Exported students: one file that needs no other, in three formats.

.pth         weights and header; loaded as a module of this repository
.pt2         a program of torch.export; PyTorch runs it without this repository
.onnx        for onnxruntime and many others
.int8.onnx   the same in 8 bits (deployment/quantization.py): a quarter of the size

All take raw images (B, 3, 32, 32) uint8, RGB, any B, and give logits (B, classes) with the temperature applied. The
header is in each of them. A .pt2 file is unpickled by PyTorch when it is loaded: load only one that you trust.
"""

from __future__ import annotations

import importlib
import io
import json
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from data.views import CIFAR_SIZE
from deployment.folding import FoldedStudent, Widths
from models import checkpoints
from models.networks import frozen
from utils import files
from utils.errors import BadInput

INT8 = ".int8.onnx"
ENDINGS = (".pth", ".pt2", INT8, ".onnx")
KIND = "an exported student; export it again with --export"
KEY = "fskd_student"  # under which a file holds its header
DIGEST = "fskd_sha256"  # under which an ONNX file holds the sha256 of the rest; the other formats have checksums
EXAMPLE = torch.zeros(2, 3, CIFAR_SIZE, CIFAR_SIZE, dtype=torch.uint8)
Network = Callable[[Tensor], Tensor]  # images (B, 3, 32, 32) uint8 -> logits (B, classes)


@dataclass(frozen=True)
class Header:
    """What an exported file says about itself.

    widths: output channels of every convolution, block by block. accuracy: of the student with adapters on the test
    set, in percent. The hashes are sha256 of the teacher's weights, the student's file and the few-shot images' bytes.
    """

    dataset: str
    widths: Widths
    class_names: tuple[str, ...]
    normalization: dict[str, list[float]]
    image_size: int
    teacher_sha256: str
    student_sha256: str
    subset_sha256: str
    temperature: float
    accuracy: float

    @property
    def text(self) -> str:
        return json.dumps(asdict(self))

    def empty_network(self) -> FoldedStudent:
        """The network without values, to count with."""
        with torch.device("meta"):
            return frozen(FoldedStudent(self.widths, len(self.class_names)))


def header_from(text: str) -> Header:
    """Raises ValueError, TypeError or KeyError for a text that is not a header's."""
    fields = json.loads(text)
    fields["widths"] = tuple(tuple(map(int, block)) for block in fields["widths"])
    fields["class_names"] = tuple(map(str, fields["class_names"]))
    header = Header(**fields)
    if len(header.widths) != 5 or not all(header.widths) or min(map(min, header.widths)) < 1 or not header.class_names:
        raise ValueError("its header describes no network")
    if header.image_size != CIFAR_SIZE:
        raise ValueError("its header describes other images than fskd writes")
    return header


def ending_of(path: Path) -> str:
    """One of ENDINGS. Raises BadInput for another one."""
    for ending in ENDINGS:
        if path.name.endswith(ending) and path.name != ending:
            return ending
    raise BadInput(f"{path}: ends in none of {', '.join(ENDINGS)}; choose one")


def needed(module: str, path: Path) -> ModuleType:
    """An optional module. Raises BadInput if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BadInput(f"{path}: needs {module}; pip install -r requirements-onnx.txt") from error


def write(network: FoldedStudent, header: Header, path: Path) -> None:
    """Write the format of the ending, except .int8.onnx. The network is on the CPU."""
    if ending_of(path) == ".pth":
        files.write_tensors(path, {KEY: header.text, "weights": checkpoints.on_cpu(network)})
        return
    program = torch.export.export(network, (EXAMPLE,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names folders of this machine
    if ending_of(path) == ".pt2":
        content = io.BytesIO()
        with warnings.catch_warnings():  # about the order in which weights are saved
            warnings.simplefilter("ignore")
            torch.export.save(program, content, extra_files={KEY: header.text})
        files.write_bytes(path, content.getvalue())
    else:
        needed("onnxscript", path)
        model = torch.onnx.export(
            program, dynamo=True, input_names=["images"], output_names=["logits"], verbose=False
        ).model_proto
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
        write_onnx(model, header.text, path)


def write_onnx(model: Any, header: str, path: Path) -> None:
    """Write an ONNX model with the header and the sha256 of both."""
    del model.metadata_props[:]
    needed("onnx", path).helper.set_model_props(model, {KEY: header, DIGEST: digest(model, header)})
    files.write_bytes(path, model.SerializeToString())


def digest(model: Any, header: str) -> str:
    """sha256 of an ONNX model without properties, and of the header."""
    return files.sha256(model.SerializeToString(deterministic=True) + header.encode())


def read(path: Path) -> tuple[Network, Header]:
    """The network in an exported file of any format, on the CPU. Raises BadInput for any other file.

    From a .pth file, the network is a FoldedStudent.
    """
    readers = {".pth": _read_pth, ".pt2": _read_pt2, ".onnx": _read_onnx, INT8: _read_onnx}
    return readers[ending_of(path)](path)


def is_exported(path: Path) -> bool:
    """Whether to read a file as an exported student: every .pt2 and .onnx, and a .pth that holds its header."""
    if not path.name.endswith((".pth", ".pt2", ".onnx")):
        return False
    return ending_of(path) != ".pth" or _holds_header(files.read_tensors(path, "a checkpoint"))


def _holds_header(content: Any) -> bool:
    return isinstance(content, dict) and KEY in content


def _read_pth(path: Path) -> tuple[Network, Header]:
    content = files.read_tensors(path, KIND)
    with files.reading(path, KIND):
        if not _holds_header(content):
            raise ValueError("it has no header; --export makes one from a student")
        header = header_from(content[KEY])
        state = dict(content["weights"])
        network = header.empty_network()
        checkpoints.require_fitting(network.state_dict(), state, path)
    network.load_state_dict(state, assign=True)
    return frozen(network).to(memory_format=torch.channels_last), header


def _read_pt2(path: Path) -> tuple[Network, Header]:
    with files.reading(path, KIND):
        files.require_checksums(path)
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(f"/{KEY}")]
            if not names:
                raise ValueError("it has no header")
            header = header_from(archive.read(names[0]).decode())
        program = torch.export.load(path)
    return program.module().forward, header


def _read_onnx(path: Path) -> tuple[Network, Header]:
    onnx, onnxruntime = needed("onnx", path), needed("onnxruntime", path)
    protobuf = needed("google.protobuf.message", path)
    with files.reading(path, KIND):
        content = path.read_bytes()
        try:
            model = onnx.load_model_from_string(content)
            properties = {entry.key: entry.value for entry in model.metadata_props}
            if KEY not in properties:
                raise ValueError("it has no header")
            del model.metadata_props[:]
            if properties.get(DIGEST) != digest(model, properties[KEY]):
                raise ValueError("its sha256 differs")
            onnx.checker.check_model(model)
        except (protobuf.DecodeError, onnx.checker.ValidationError) as error:
            raise ValueError("it is incomplete or not ONNX") from error
        header = header_from(properties[KEY])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def network(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])

    return network, header
