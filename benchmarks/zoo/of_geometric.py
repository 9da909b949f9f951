"""Architectures of torch_geometric: each convolution between two layers on one random graph, and some whole models."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from rows import Build, Subject, total
from torch import Tensor, nn

NODES, WIDTH, LINKS = 12, 8, 40


def graph() -> tuple[Tensor, Tensor]:
    """Give the features of nodes, and links from and to random ones: nodes × width, 2 × links."""
    return torch.randn(NODES, WIDTH), torch.randint(NODES, (2, LINKS))


def layers() -> Any:
    """Import the library's layers."""
    return import_module("torch_geometric.nn")


def small(width: int = WIDTH, out: int = WIDTH) -> nn.Module:
    """Two layers, as convolutions take them for what they do with a message."""
    return nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, out))


def conv(name: str, *arguments: Any, **options: Any) -> Build:
    """Two convolutions of a kind with dropout between them; arguments that are functions are called first."""

    def build() -> Subject:
        kind = getattr(layers(), name)
        stack = nn.ModuleList(kind(*(a() if callable(a) else a for a in arguments), **options) for _ in range(2))
        return with_graph(stack, lambda layer, x, links: layer(x, links))

    return build


def with_graph(stack: nn.ModuleList, call: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> Subject:
    """Classify the nodes after two convolutions: there is one graph, and no examples."""
    model = nn.ModuleDict({"convolutions": stack, "out": nn.LazyLinear(5), "drop": nn.Dropout(0.2)})
    x, links = graph()
    y = torch.randint(5, (NODES,))

    def loss() -> Tensor:
        h = torch.relu(call(stack[0], x, links))
        h = call(stack[1], model["drop"](h), links)
        return nn.functional.cross_entropy(model["out"](h), y)

    with torch.no_grad():
        loss()
    return Subject(model, loss)


def edged(name: str, *arguments: Any, dimension: int = 3, **options: Any) -> Build:
    """Two convolutions that look at features of the links: links × dimension."""

    def build() -> Subject:
        kind, features = getattr(layers(), name), torch.randn(LINKS, dimension)
        stack = nn.ModuleList(kind(*(a() if callable(a) else a for a in arguments), **options) for _ in range(2))
        return with_graph(stack, lambda layer, x, links: layer(x, links, features))

    return build


def pseudo(name: str, *arguments: Any, **options: Any) -> Build:
    """Two convolutions that look at where neighbours lie, each coordinate in [0, 1]."""

    def build() -> Subject:
        kind, places = getattr(layers(), name), torch.rand(LINKS, 2)
        stack = nn.ModuleList(kind(*arguments, **options) for _ in range(2))
        return with_graph(stack, lambda layer, x, links: layer(x, links, places))

    return build


def placed(name: str, *arguments: Any, **options: Any) -> Build:
    """Two convolutions over points in space."""

    def build() -> Subject:
        kind, places = getattr(layers(), name), torch.randn(NODES, 3)
        stack = nn.ModuleList(kind(*(a() if callable(a) else a for a in arguments), **options) for _ in range(2))
        return with_graph(stack, lambda layer, x, links: layer(x, places, links))

    return build


def typed(name: str, *arguments: Any, **options: Any) -> Build:
    """Two convolutions over links of three kinds."""

    def build() -> Subject:
        kind, kinds = getattr(layers(), name), torch.randint(3, (LINKS,))
        stack = nn.ModuleList(kind(*arguments, **options) for _ in range(2))
        return with_graph(stack, lambda layer, x, links: layer(x, links, kinds))

    return build


def again(name: str, *arguments: Any, **options: Any) -> Build:
    """Two convolutions that look back at the first features."""

    def build() -> Subject:
        kind, first = getattr(layers(), name), torch.randn(NODES, WIDTH)
        stack = nn.ModuleList(kind(*arguments, **options) for _ in range(2))
        return with_graph(stack, lambda layer, x, links: layer(x, first, links))

    return build


def model(name: str, *arguments: Any, **options: Any) -> Build:
    """A whole model of nodes."""

    def build() -> Subject:
        made, (x, links) = getattr(layers(), name)(*arguments, **options), graph()
        return Subject(made, lambda: total(made(x, links)))

    return build


def pooled(name: str, **options: Any) -> Build:
    """Two small graphs, each reduced to one vector by an aggregation."""

    def build() -> Subject:
        library, (x, links) = layers(), graph()
        which = torch.arange(NODES) // (NODES // 2)
        parts = {"first": library.GCNConv(WIDTH, WIDTH), "pool": getattr(library, name)(**options)}
        made = nn.ModuleDict({**parts, "out": nn.LazyLinear(5)})
        y = torch.randint(5, (2,))

        def loss() -> Tensor:
            found = made["pool"](torch.relu(made["first"](x, links)), which)
            return nn.functional.cross_entropy(made["out"](found), y)

        with torch.no_grad():
            loss()
        return Subject(made, loss)

    return build


def autoencoder(kind: str) -> Build:
    """Reconstruct the links from codes of the nodes."""

    def build() -> Subject:
        library, (x, links) = layers(), graph()
        encoder = library.GCNConv(WIDTH, WIDTH)
        made = library.GAE(encoder) if kind == "GAE" else library.VGAE(Twice(encoder, library.GCNConv(WIDTH, WIDTH)))

        def loss() -> Tensor:
            code = made.encode(x, links)
            return made.recon_loss(code, links) + (0 if kind == "GAE" else made.kl_loss() / NODES)

        return Subject(made, loss)

    return build


class Twice(nn.Module):
    """Two encoders of one input: means and logarithms of spreads."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor, links: Tensor) -> tuple[Tensor, Tensor]:
        return self.first(x, links), self.second(x, links)


def heterogeneous() -> Subject:
    """Nodes of two kinds, links of two kinds."""
    library, x = layers(), {"a": torch.randn(6, WIDTH), "b": torch.randn(6, WIDTH)}
    kinds = [("a", "to", "b"), ("b", "to", "a")]
    links = {kind: torch.randint(6, (2, 15)) for kind in kinds}
    made = library.HGTConv(WIDTH, WIDTH, (["a", "b"], kinds), heads=2)
    return Subject(made, lambda: total(made(x, links)))


HISTOGRAM = torch.tensor([0, 2, 4, 3, 2, 1])
PNA = {"aggregators": ["mean", "min", "max", "std"], "scalers": ["identity", "amplification"], "deg": HISTOGRAM}

ROWS: dict[str, Build] = {
    "GCN": conv("GCNConv", WIDTH, WIDTH),
    "Chebyshev": conv("ChebConv", WIDTH, WIDTH, 3),
    "GraphSAGE": conv("SAGEConv", WIDTH, WIDTH),
    "GraphSAGE, max": conv("SAGEConv", WIDTH, WIDTH, aggr="max"),
    "GraphSAGE, whole": model("GraphSAGE", WIDTH, WIDTH, 2, 5, dropout=0.1),
    "GraphConv": conv("GraphConv", WIDTH, WIDTH),
    "gated graph": conv("GatedGraphConv", WIDTH, 2),
    "residual gated graph": conv("ResGatedGraphConv", WIDTH, WIDTH),
    "GAT": conv("GATConv", WIDTH, WIDTH, heads=2, concat=False, dropout=0.1),
    "GATv2": conv("GATv2Conv", WIDTH, WIDTH, heads=2, concat=False, dropout=0.1),
    "transformer": conv("TransformerConv", WIDTH, WIDTH, heads=2, concat=False, dropout=0.1),
    "AGNN": conv("AGNNConv"),
    "TAG": conv("TAGConv", WIDTH, WIDTH),
    "GIN": conv("GINConv", small, train_eps=True),
    "GINE": edged("GINEConv", small, edge_dim=3),
    "ARMA": conv("ARMAConv", WIDTH, WIDTH, num_stacks=2, num_layers=2),
    "SGC": conv("SGConv", WIDTH, WIDTH, K=2),
    "APPNP": conv("APPNP", 3, 0.1),
    "MF": conv("MFConv", WIDTH, WIDTH),
    "R-GCN": typed("RGCNConv", WIDTH, WIDTH, 3),
    "R-GAT": typed("RGATConv", WIDTH, WIDTH, 3),
    "FiLM": conv("FiLMConv", WIDTH, WIDTH),
    "frequency-adaptive": again("FAConv", WIDTH),
    "GCNII": again("GCN2Conv", WIDTH, 0.1),
    "PNA": conv("PNAConv", WIDTH, WIDTH, **PNA),
    "EGC": conv("EGConv", WIDTH, WIDTH),
    "cluster": conv("ClusterGCNConv", WIDTH, WIDTH),
    "GENConv": conv("GENConv", WIDTH, WIDTH),
    "LEConv": conv("LEConv", WIDTH, WIDTH),
    "SuperGAT": conv("SuperGATConv", WIDTH, WIDTH, heads=2, concat=False),
    "EdgeConv": conv("EdgeConv", lambda: small(2 * WIDTH)),
    "NNConv": edged("NNConv", WIDTH, WIDTH, lambda: small(3, WIDTH * WIDTH)),
    "CGConv": edged("CGConv", WIDTH, 3),
    "GMM": pseudo("GMMConv", WIDTH, WIDTH, dim=2, kernel_size=3),
    "FeaSt": conv("FeaStConv", WIDTH, WIDTH, heads=2),
    "PointNet": placed("PointNetConv", lambda: small(WIDTH + 3)),
    "Point Transformer": placed("PointTransformerConv", WIDTH, WIDTH),
    "general": conv("GeneralConv", WIDTH, WIDTH),
    "Graph U-Net": model("GraphUNet", WIDTH, WIDTH, 5, 2),
    "DeepGCN": model("GCN", WIDTH, WIDTH, 4, 5, dropout=0.1, norm="batch_norm"),
    "JK-GIN": model("GIN", WIDTH, WIDTH, 3, 5, jk="lstm"),
    "GPS": conv("GPSConv", WIDTH, None, heads=2),
    "mixhop": conv("MixHopConv", WIDTH, WIDTH // 2, powers=[0, 1]),
    "Set2Set": pooled("Set2Set", in_channels=WIDTH, processing_steps=2),
    "sort pooling": pooled("SortAggregation", k=3),
    "softmax pooling": pooled("SoftmaxAggregation", learn=True),
    "median pooling": pooled("MedianAggregation"),
    "heterogeneous transformer": heterogeneous,
    "graph autoencoder": autoencoder("GAE"),
    "graph autoencoder, variational": autoencoder("VGAE"),
}
