"""Train scikit-learn's digits with AdaScale in Lightning's Trainer at 8 times the base batch size.

The learning rate, the schedule and the length of the run were chosen for the base batch size.

    python examples/lightning_adascale.py
    python examples/lightning_adascale.py 2      # the Trainer starts 2 processes
"""

import sys

import torch
from lightning.pytorch import LightningModule, Trainer
from sklearn import datasets
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, TensorDataset

import largebatch as lb
from largebatch.integrations.lightning import LargeBatch

BASE_BATCH_SIZE, BASE_STEPS, SCALE = 32, 900, 8


class Digits(LightningModule):
    """Define the model, the loss and the optimizer for the base batch size, without changes."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        right = self.net(batch[0]).argmax(1) == batch[1]
        self.log("accuracy", right.float().mean(), sync_dist=True)

    def configure_optimizers(self):  # type: ignore[no-untyped-def]
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        scheduler = CosineAnnealingLR(optimizer, T_max=BASE_STEPS)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def main() -> None:
    torch.manual_seed(0)
    bunch = datasets.load_digits()
    x, y = torch.from_numpy(bunch.data).float() / 16.0, torch.from_numpy(bunch.target)
    test = torch.arange(len(x)) % 5 == 0
    images = TensorDataset(x[~test], y[~test])
    processes = int(sys.argv[1]) if len(sys.argv) > 1 else 1

    scaled = LargeBatch(
        lb.AdaScale(),
        base_batch_size=BASE_BATCH_SIZE,
        base_steps=BASE_STEPS,  # training ends after this number of base steps
        schedulers_in_base_steps=True,
    )
    trainer = Trainer(
        max_epochs=-1,
        devices=processes,
        accumulate_grad_batches=SCALE // processes,
        gradient_clip_val=5.0,
        callbacks=[scaled],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(images, batch_size=BASE_BATCH_SIZE, shuffle=True)
    trainer.fit(Digits(), loader, DataLoader(TensorDataset(x[test], y[test]), batch_size=360))
    if trainer.is_global_zero:
        control = scaled.control
        print(
            f"{control.optimizer_steps} steps of {SCALE * BASE_BATCH_SIZE} samples count as "
            f"{control.base_steps:.0f} steps of {BASE_BATCH_SIZE} samples; "
            f"accuracy {trainer.callback_metrics['accuracy']:.3f}"
        )


if __name__ == "__main__":
    main()
