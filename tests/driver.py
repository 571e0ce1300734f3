"""train_fskd.py, where --dataset Folder is the small data set with a short schedule.

    python tests/driver.py ARGUMENTS

KILL_RANK: the rank that kills itself, before torchrun restarts it; KILL_AFTER: after so many epochs.
"""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from small import pixel, pixels, short_recipe, small_dataset

import train_fskd
from experiments import figure, job, pictures, training
from grafting import distillation, recipes

recipes.RECIPES["Folder"] = short_recipe()
job.open_dataset = lambda name, path, **_: small_dataset()
training.CHECKPOINT_SECONDS = -1.0
figure.draw, pictures.confusion_picture = pixel, pixels

if os.environ.get("KILL_RANK") == os.environ.get("RANK") and os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0":
    train, epochs = distillation.train, iter(range(int(os.environ["KILL_AFTER"])))

    def train_until_killed(*arguments):
        if next(epochs, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return train(*arguments)

    distillation.train = train_until_killed

if __name__ == "__main__":
    sys.exit(train_fskd.main(["--dataset", "Folder", *sys.argv[1:]]))
