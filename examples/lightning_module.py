"""Lightning: apply_ in the module, one callback in the trainer."""

import tempfile

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import mixout
from mixout.integrations.lightning import MixoutCallback
from mixout.schedule import LinearRamp


class Regression(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))  # load pretrained weights here
        mixout.apply_(self.model, mixout.Mixout(0.7))

    def training_step(self, batch: tuple[Tensor, Tensor], _number: int) -> Tensor:
        x, y = batch
        loss = (self.model(x).squeeze(1) - y).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.0)


if __name__ == "__main__":
    lightning.seed_everything(0)
    x = torch.randn(64, 8)
    data = DataLoader(TensorDataset(x, x.sum(dim=1)), batch_size=16, shuffle=True)
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            max_epochs=3, default_root_dir=folder, logger=False, log_every_n_steps=1, accelerator="cpu",
            enable_progress_bar=False, enable_model_summary=False,
            callbacks=[MixoutCallback(schedule=LinearRamp(0.0, 0.7, 8))],
        )  # fmt: skip
        module = Regression()
        trainer.fit(module, data)  # ckpt_path=...: goes on bit for bit, and refuses another anchor
    print({name: round(float(value), 3) for name, value in trainer.callback_metrics.items()})
    mixout.remove_(module)
