"""torchvision's own weights of a teacher, for the 1,000 classes of ImageNet."""

from http.client import HTTPException
from pathlib import Path

import torch
from torch.hub import load_state_dict_from_url
from torchvision.models import WeightsEnum, get_model_weights

from models.networks import Networks
from utils.errors import BadInput


def weights_of(networks: Networks) -> WeightsEnum:
    """The weights that torchvision offers first (ImageNet1K, version 1, where the paper's networks are meant)."""
    if networks.pretrained is None:
        raise BadInput(f"--teacher torchvision: is for ResNets; torchvision has no weights of {networks.name}")
    return get_model_weights(networks.pretrained).IMAGENET1K_V1


def file_of(networks: Networks) -> Path:
    """Where torchvision keeps the file."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(weights_of(networks).url).name


def fetch(networks: Networks, path: Path) -> None:
    """Download the weights, unless the file is there. Raises BadInput that says which file to put where."""
    if path.exists():
        return
    url = weights_of(networks).url
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        load_state_dict_from_url(url, model_dir=str(path.parent), map_location="cpu", check_hash=True)
    except (OSError, HTTPException, RuntimeError) as error:  # the last: its hash differs
        raise BadInput(f"{path}: missing, and {url} cannot be downloaded ({error}); put that file there") from error
