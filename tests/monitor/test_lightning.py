"""Lightning's own training, with and without the callback; its loggers; and a training that was killed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from monitor.training import Checkpointed, Recurrent
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("lightning", reason="needs gradtrace[lightning]")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lightning.pytorch as pl

    from gradtrace.monitor.lightning import TraceCallback

pytestmark = pytest.mark.filterwarnings("ignore")  # of the library, as it pleases

STEPS = 60


NETS = {
    "norm and dropout": lambda: (nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3)),
    "lstm": lambda: (nn.Unflatten(1, (4, 2)), Recurrent(nn.LSTM, 2)),
    "checkpointing": lambda: (nn.Linear(8, 8), Checkpointed(), nn.Linear(8, 3)),
}


class Digits(pl.LightningModule):
    def __init__(
        self, optimizer: str = "adam", manual: bool = False, skip: int | None = None,
        net: str = "norm and dropout", compiled: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.net = nn.Sequential(*NETS[net]())
        if compiled:
            torch._dynamo.reset()
            self.net.compile(backend="eager")
        self.optimizer, self.skip, self.automatic_optimization = optimizer, skip, not manual
        self.seen: list[Tensor] = []

    def training_step(self, batch: Any, number: int) -> Tensor | None:
        x, y = batch
        if number == self.skip:
            return None
        loss = nn.functional.cross_entropy(self.net(x), y)
        self.seen.append(loss.detach())
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.seen += [p.grad.clone() for p in self.parameters() if p.grad is not None]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        kinds = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
        return kinds[self.optimizer](self.parameters(), lr=0.01)


def loader() -> DataLoader:
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(48, 8, generator=generator), torch.randint(3, (48,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=6)


def trained(folder: Path, every: int | None, *, checkpoint: str | None = None, more=(), model=None, **options):
    pl.seed_everything(1, verbose=False)
    module = Digits(**(model or {}))
    callbacks = [*more, *([TraceCallback(every=every, of="net*")] if every is not None else [])]
    given = {"max_steps": STEPS, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    given |= {"enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": str(folder)}
    trainer = pl.Trainer(callbacks=callbacks, **given | options)
    trainer.fit(module, loader(), ckpt_path=checkpoint)
    weights = [t.detach().clone() for t in module.state_dict().values()]
    return [*module.seen, *weights, torch.get_rng_state()], trainer


def monitor_of(trainer: pl.Trainer):
    return next(c for c in trainer.callbacks if isinstance(c, TraceCallback)).monitor


@pytest.mark.parametrize(
    ("how", "options"),
    [
        ("adam", {}),
        *[(net, {"model": {"net": net, "optimizer": o}}) for net in ("lstm", "checkpointing") for o in ("adam", "sgd")],
        *[("compiled", {"model": {"compiled": True, "optimizer": o}}) for o in ("adam", "sgd")],
        ("sgd", {"model": {"optimizer": "sgd"}}),
        ("accumulation, sgd", {"accumulate_grad_batches": 2, "model": {"optimizer": "sgd"}}),
        ("bf16, sgd", {"precision": "bf16-mixed", "model": {"optimizer": "sgd"}}),
        ("accumulation", {"accumulate_grad_batches": 2}),
        ("bf16", {"precision": "bf16-mixed"}),
        ("manual", {"model": {"manual": True}}),
        ("clipping", {"gradient_clip_val": 0.5}),
    ],
)
def test_training_is_the_same_to_the_last_bit(how, options, tmp_path):
    plain, _ = trained(tmp_path / "plain", None, **options)
    watched, trainer = trained(tmp_path / "watched", 20, **options)
    monitor = monitor_of(trainer)
    assert not monitor.failures
    assert [t["step"] for t in monitor.history().traces] == [0, 20, 40]
    assert {r["examples"] for t in monitor.history().traces for r in t["influence"]} == {6}
    assert len(plain) == len(watched)
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True)), how
    assert (tmp_path / "watched" / "gradtrace" / "report.html").exists()


def test_a_batch_that_is_skipped_is_left_alone(tmp_path):
    _, trainer = trained(tmp_path, 1, model={"skip": 0}, max_steps=3)
    assert not monitor_of(trainer).failures
    assert not torch.utils._python_dispatch._get_current_dispatch_mode_stack()
    assert [t["step"] for t in monitor_of(trainer).history().traces] == [1, 2]


def test_numbers_reach_the_loggers(tmp_path):
    pytest.importorskip("tensorboard", reason="needs gradtrace[tensorboard]")
    from lightning.pytorch.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, trainer = trained(tmp_path, 20, logger=TensorBoardLogger(str(tmp_path / "logs")))
    (file,) = tmp_path.rglob("events*")
    events = EventAccumulator(str(file.parent))
    events.Reload()
    told = {e.step: e.value for e in events.Scalars("gradtrace/net.2/share")}
    rows = {
        t["step"]: r["share"] for t in monitor_of(trainer).history().traces for r in t["influence"]
        if r["component"] == "net.2"
    }  # fmt: skip
    assert told == pytest.approx(rows)


class Killed(Exception):
    pass


def test_a_killed_training_goes_on_to_the_same_history(tmp_path):
    class Kill(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 35:
                raise Killed

    def keep(folder: Path):
        return pl.callbacks.ModelCheckpoint(str(folder / "kept"), every_n_train_steps=15, save_top_k=-1)

    saving = {"enable_checkpointing": True}
    _, straight = trained(tmp_path / "whole", 10, more=[keep(tmp_path / "whole")], **saving)
    with pytest.raises(Killed):
        trained(tmp_path / "cut", 10, more=[keep(tmp_path / "cut"), Kill()], **saving)
    (last,) = (tmp_path / "cut" / "kept").glob("*step=30.ckpt")
    _, resumed = trained(tmp_path / "cut", 10, checkpoint=str(last), **saving)
    assert [t["step"] for t in monitor_of(resumed).history().traces] == [0, 10, 20, 30, 40, 50]
    before, after = (
        [(t["step"], t["graph"], len(t["influence"])) for t in monitor_of(trainer).history().traces]
        for trainer in (straight, resumed)
    )
    assert before == after
    early = [[t for t in monitor_of(trainer).history().traces if t["step"] < 30] for trainer in (straight, resumed)]
    assert [t["loss"] for t in early[0]] == [t["loss"] for t in early[1]]
    seconds = [t["seconds"]["training"] for t in monitor_of(resumed).history().traces]
    assert seconds == sorted(seconds)
