"""Small configurations, with random weights, of architectures that people run: models, inputs and losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Subject:
    """A model, the tensors it is given, and its loss of them.

    Attributes:
        inputs: the first one's first dimension enumerates the examples.
        sliced: whether a row of every input is an example that can be run by itself.
    """

    model: nn.Module
    inputs: tuple[Tensor, ...]
    of: Callable[..., Tensor]
    sliced: bool = True

    @property
    def examples(self) -> Tensor:
        return self.inputs[0]

    def loss(self) -> Tensor:
        return self.of(*self.inputs)

    def alone(self, example: int) -> Tensor:
        """Give the loss of one example, run by itself."""
        return self.of(*(t[example : example + 1] for t in self.inputs))

    def to(self, dtype: torch.dtype) -> Subject:
        """Move the model, in place, and the inputs to another precision."""
        self.model.to(dtype)
        return replace(self, inputs=tuple(t.to(dtype) if t.is_floating_point() else t for t in self.inputs))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.pool = nn.Conv2d(1, 4, 3, padding=1), nn.MaxPool2d(2)
        self.middle = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU())
        self.up, self.out = nn.ConvTranspose2d(4, 4, 2, stride=2), nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = torch.relu(self.down(x))
        return self.out(torch.cat([skip, self.up(self.middle(self.pool(skip)))], 1))


class GraphNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, source: Tensor, target: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        messages = h[source] / (1 + torch.bincount(target, minlength=len(x)))[target].unsqueeze(1)
        h = h + torch.zeros_like(h).scatter_add(0, target.unsqueeze(1).expand_as(messages), messages)
        return self.second(torch.zeros_like(h).index_add(0, target, h[source]))


class NeuralODE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.field = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(8):  # midpoint rule
            x = x + 0.1 * self.field(x + 0.05 * self.field(x))
        return x


class Translator(nn.Module):
    """An LSTM encoder, and an LSTM decoder that attends to it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.encoder, self.decoder = nn.LSTM(8, 8, batch_first=True), nn.LSTMCell(16, 8)
        self.output = nn.Linear(16, 50)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        states, (h, c) = self.encoder(self.embedding(x))
        h, c, out = h[0], c[0], []
        for t in range(y.shape[1]):
            weights = torch.softmax((states @ h.unsqueeze(-1)).squeeze(-1), 1)
            context = (weights.unsqueeze(1) @ states).squeeze(1)
            h, c = self.decoder(torch.cat([self.embedding(y[:, t]), context], 1), (h, c))
            out.append(self.output(torch.cat([h, context], 1)))
        return torch.stack(out, 1)


class Tied(nn.Module):
    """One layer used four times, and an output that is the transposed embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.layer = nn.Embedding(20, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x)
        for _ in range(4):
            h = h + torch.tanh(self.layer(h))
        return h @ self.embedding.weight.t()


def _words() -> Tensor:
    return torch.randint(3, 50, (2, 7))


def _hugging_face(name: str, **options: object) -> Callable[[], Subject]:
    """Build a causal or sequence-to-sequence language model of `transformers` on random words."""

    def build() -> Subject:
        import transformers

        config = getattr(transformers, f"{name}Config")(vocab_size=50, **options)
        names = (f"{name}LMHeadModel", f"{name}ForCausalLM", f"{name}ForMaskedLM", f"{name}ForConditionalGeneration")
        kind = next(getattr(transformers, n) for n in names if hasattr(transformers, n))
        model, words = kind(config).double().eval(), _words()
        return Subject(model, (words,), lambda w: model(input_ids=w, labels=w).loss)

    return build


def _bert() -> Subject:
    import transformers

    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=50, max_position_embeddings=16, **small)
    model, words = transformers.BertForMaskedLM(config).double().eval(), _words()
    return Subject(model, (words,), lambda w: model(input_ids=w, labels=w).loss)


def _vit() -> Subject:
    import transformers

    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = transformers.ViTForImageClassification(transformers.ViTConfig(image_size=8, patch_size=4, **small)).double()
    images, classes = torch.randn(2, 3, 8, 8).double(), torch.tensor([0, 1])
    return Subject(model, (images, classes), lambda x, y: model(pixel_values=x, labels=y).loss)


def _resnet(training: bool) -> Callable[[], Subject]:
    def build() -> Subject:
        import transformers

        config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
        model = transformers.ResNetForImageClassification(config).double().train(training)
        images, classes = torch.randn(3, 3, 32, 32).double(), torch.tensor([0, 1, 1])
        return Subject(model, (images, classes), lambda x, y: model(pixel_values=x, labels=y).loss)

    return build


def _whisper() -> Subject:
    import transformers

    small = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 1), ("ffn_dim", 16))}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_mel_bins": 8, "d_model": 16}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "vocab_size": 50}
    lengths = {"max_source_positions": 10, "max_target_positions": 10}
    model = transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(**small, **heads, **tokens, **lengths)
    ).double()
    sound, words = torch.randn(2, 8, 20).double(), _words()
    return Subject(model.eval(), (sound, words), lambda x, y: model(input_features=x, labels=y).loss)


def _plain(
    model: Callable[[], nn.Module], *inputs: Tensor, loss: Callable[..., Tensor], sliced: bool = True
) -> Callable[[], Subject]:
    def build() -> Subject:
        made = model().double()
        return Subject(made, inputs, lambda *given: loss(made(*given), *given), sliced)

    return build


def _square(y: Tensor, *_: Tensor) -> Tensor:
    return y.square().sum()


def _word_loss(y: Tensor, x: Tensor, *_: Tensor) -> Tensor:
    return functional.cross_entropy(y.flatten(0, 1), x.flatten())


GENERATOR = torch.Generator().manual_seed(5)
IMAGES = torch.randn(2, 1, 8, 8, generator=GENERATOR).double()
POINTS = torch.randn(5, 4, generator=GENERATOR).double()
LINKS = torch.randint(0, 5, (2, 12), generator=GENERATOR)
STATES = torch.randn(3, 3, generator=GENERATOR).double()
WORDS = torch.randint(0, 20, (2, 5), generator=GENERATOR)

ZOO: dict[str, Callable[[], Subject]] = {
    "GPT-2": _hugging_face("GPT2", n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0),
    "BERT": _bert,
    "Llama": _hugging_face(
        "Llama", hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    ),
    "T5": _hugging_face("T5", d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0),
    "Mamba": _hugging_face("Mamba", hidden_size=16, state_size=4, num_hidden_layers=2),
    "Mixtral": _hugging_face(
        "Mixtral",
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        experts_implementation="eager",  # the grouped product has no float64
    ),
    "ViT": _vit,
    "ResNet, training": _resnet(True),
    "ResNet, evaluation": _resnet(False),
    "Whisper": _whisper,
    "U-Net": _plain(UNet, IMAGES, loss=lambda y, x: (y - x).square().mean()),
    "graph network": _plain(GraphNetwork, POINTS, LINKS[0], LINKS[1], loss=_square, sliced=False),
    "neural ODE": _plain(NeuralODE, STATES, loss=_square),
    "LSTM with attention": _plain(Translator, WORDS, WORDS, loss=_word_loss),
    "tied and reused": _plain(Tied, WORDS, loss=_word_loss),
}


def build(name: str) -> Subject:
    """Build a subject in float64 with its own seed; dropout, where there is any, is off."""
    torch.manual_seed(3)
    subject = ZOO[name]()
    for module in subject.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return subject
