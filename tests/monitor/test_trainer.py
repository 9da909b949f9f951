"""The Trainer's own training, with and without the callback; its reporters; and a training that was killed."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers", reason="needs gradtrace[transformers]")
pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate: gradtrace[transformers]")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, set_seed

    from gradtrace.monitor.trainer import TraceCallback

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries, as they please

STEPS = 60


def data() -> list[dict]:
    """Sequences of different lengths, padded: attention has a mask."""
    generator = torch.Generator().manual_seed(3)
    rows = []
    for number in range(40):
        length = 3 + number % 5
        ids = torch.randint(1, 30, (8,), generator=generator)
        ids[length:] = 0
        rows.append({"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": torch.tensor(number % 2)})
    return rows


def bert(dropout: float) -> BertForSequenceClassification:
    set_seed(1)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
            max_position_embeddings=8, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
        )
    )  # fmt: skip


class Recurrent(nn.Module):
    """Embedding, LSTM, batch norm and dropout, as the Trainer wants a model: labels in, a loss out."""

    def __init__(self) -> None:
        super().__init__()
        set_seed(1)
        self.embedding, self.lstm = nn.Embedding(30, 8), nn.LSTM(8, 12, 2, batch_first=True, dropout=0.1)
        self.query, self.norm, self.out = nn.Linear(12, 12), nn.BatchNorm1d(12), nn.Linear(12, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        h = self.lstm(self.embedding(input_ids) * attention_mask.unsqueeze(-1))[0].mean(1)
        scores = self.out(nn.functional.dropout(self.norm(self.query(h)), 0.2, self.training))
        return nn.functional.cross_entropy(scores, labels), scores


class Weighted(Trainer):
    """A loss that the model's output does not say, and outputs beside it."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = torch.nn.functional.cross_entropy(outputs.logits, labels, label_smoothing=0.1)
        return (loss, outputs) if return_outputs else loss


def trained(folder: Path, every: int | None, trainer=Trainer, dropout=0.1, resume=False, model=None, **arguments):
    """Train; give every gradient's norm, the weights, the random state, and the trainer."""
    given = {
        "output_dir": str(folder), "max_steps": STEPS, "per_device_train_batch_size": 4, "report_to": [], "seed": 7,
        "logging_steps": 1, "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "learning_rate": 1e-3,
    }  # fmt: skip
    torch._dynamo.reset()
    made = trainer(
        model=model() if model else bert(dropout), args=TrainingArguments(**given | arguments), train_dataset=data()
    )
    if every is not None:
        made.add_callback(TraceCallback(made, every=every, of="*query*"))
    made.train(resume_from_checkpoint=True if resume else None)
    log = [row for row in made.state.log_history if "grad_norm" in row]
    numbers = [torch.tensor([row["loss"], row["grad_norm"], row["learning_rate"]]) for row in log]
    weights = [t.detach().clone() for t in made.model.state_dict().values()]
    return [*numbers, *weights, torch.get_rng_state()], made


def callback_of(trainer: Trainer) -> TraceCallback:
    return next(c for c in trainer.callback_handler.callbacks if isinstance(c, TraceCallback))


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("how", "options"),
    [
        ("plain", {}),
        ("no dropout: fused attention", {"dropout": 0.0}),
        ("accumulation", {"gradient_accumulation_steps": 3}),
        ("bf16", {"bf16": True}),
        ("checkpointing", {"gradient_checkpointing": True}),
        ("its own loss", {"trainer": Weighted}),
        ("lstm and batch norm", {"model": Recurrent}),
        ("compiled", {"torch_compile": True, "torch_compile_backend": "eager"}),
    ],
)
@pytest.mark.parametrize("optim", ["adamw_torch", pytest.param("sgd", marks=pytest.mark.full)])
def test_training_is_the_same_to_the_last_bit(how, options, optim, tmp_path):
    options = options | {"optim": optim}
    plain, _ = trained(tmp_path / "plain", None, **options)
    watched, trainer = trained(tmp_path / "watched", 20, **options)
    monitor = callback_of(trainer).monitor
    assert monitor is not None
    assert not monitor.failures
    assert [t["step"] for t in monitor.history().traces] == [0, 20, 40]
    assert {r["examples"] for t in monitor.history().traces for r in t["influence"]} == {4}
    assert same(plain, watched), how
    assert trainer.compute_loss.__func__ is type(trainer).compute_loss


def test_the_loss_is_the_trainers_own(tmp_path):
    _, trainer = trained(tmp_path, 20)
    traces = callback_of(trainer).monitor.history().traces
    logged = {row["step"]: row["loss"] for row in trainer.state.log_history if "loss" in row}
    assert [t["loss"] for t in traces] == pytest.approx([logged[t["step"] + 1] for t in traces], abs=1e-4)


def test_numbers_reach_the_trainers_reporters_and_its_folder(tmp_path):
    pytest.importorskip("tensorboard", reason="needs gradtrace[tensorboard]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, trainer = trained(tmp_path, 20, report_to=["tensorboard"])
    (name,) = {k for row in trainer.state.log_history for k in row if k.endswith("encoder.layer.0/share")} or {None}
    told = {row["step"]: row[name] for row in trainer.state.log_history if name in row}
    assert list(told) == [1, 21, 41]
    (file,) = tmp_path.rglob("events*")
    events = EventAccumulator(str(file.parent))
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.endswith(name)]
    assert {e.step: e.value for e in events.Scalars(tags[0])} == pytest.approx(told)
    assert (tmp_path / "gradtrace" / "report.html").exists()


class Killed(Exception):
    pass


def test_a_killed_training_goes_on_to_the_same_history(tmp_path):
    class Kill(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 35:
                raise Killed

    def fatal(*args, **kwargs):
        made = Trainer(*args, **kwargs)
        made.add_callback(Kill())
        return made

    save = {"save_strategy": "steps", "save_steps": 15}
    whole, straight = trained(tmp_path / "whole", 10, **save)
    with pytest.raises(Killed):
        trained(tmp_path / "cut", 10, trainer=fatal, **save)
    again, resumed = trained(tmp_path / "cut", 10, resume=True, **save)

    def lines(trainer: Trainer) -> list[dict]:
        history = callback_of(trainer).monitor.history()
        return [{k: v for k, v in t.items() if k != "seconds"} for t in history.traces]

    assert [t["step"] for t in lines(resumed)] == [0, 10, 20, 30, 40, 50]
    assert lines(resumed) == lines(straight)
    weights = len(whole) - STEPS - 1
    assert same(whole[-1 - weights : -1], again[-1 - weights : -1])


def test_a_new_training_in_the_same_folder_begins_a_new_history(tmp_path):
    trained(tmp_path, 20)
    _, trainer = trained(tmp_path, 30)
    assert [t["step"] for t in callback_of(trainer).monitor.history().traces] == [0, 30]
