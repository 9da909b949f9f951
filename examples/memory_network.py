"""A memory network: the answer's gradient goes to the fact that it rests on, once the network has learned to look.

Six facts, "someone is somewhere", are stored as keys and values; a question addresses the keys by content, as a
Neural Turing machine reads its tape, and the answer is read from the values. What the trace shows, example by example:
before training the strongest paths to the facts are spread over them, and after it they lead to the one fact that
answers the question. Attention says the same here, but says nothing of the other way in: through the addresses, which
is how looking is learned, and of which less is left once the network looks rightly.

    python examples/memory_network.py [PICTURE]
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

import gradtrace
from gradtrace import AbsSum, Max, Through

FACTS, PEOPLE, PLACES, SIZE = 6, 8, 5, 12


def draw_stories(count: int, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw people, one to a fact, their places, who is asked for (as the number of the fact), and where that is."""
    people = torch.stack([torch.randperm(PEOPLE, generator=random)[:FACTS] for _ in range(count)])
    places = torch.randint(PLACES, (count, FACTS), generator=random)
    asked = torch.randint(FACTS, (count,), generator=random)
    return people, places, asked, places[torch.arange(count), asked]


class MemoryNetwork(nn.Module):
    """One hop: address the keys by the question, read the values, answer."""

    def __init__(self) -> None:
        super().__init__()
        self.person, self.question = nn.Embedding(PEOPLE, SIZE), nn.Embedding(PEOPLE, SIZE)
        self.place, self.answer = nn.Embedding(PLACES, SIZE), nn.Linear(SIZE, PLACES)

    def forward(self, facts: Tensor, who: Tensor) -> tuple[Tensor, Tensor]:
        """Give scores of all places, and the addresses; facts are embedded: stories × facts × size."""
        with gradtrace.component("address"):
            address = torch.softmax((facts * self.question(who)[:, None]).sum(-1), 1)
        return self.answer((address[..., None] * facts).sum(1)), address

    def embed(self, people: Tensor, places: Tensor) -> Tensor:
        """Embed facts: who and where are added."""
        return self.person(people) + self.place(places)


def ask(model: MemoryNetwork, stories: tuple[Tensor, Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
    """Trace the loss of each story to its facts."""
    people, places, asked, where = stories
    facts = model.embed(people, places).detach().requires_grad_()
    with gradtrace.record(names={"facts": facts}) as tape:
        scores, address = model(facts, people[torch.arange(len(people)), asked])
        loss = nn.functional.cross_entropy(scores, where, reduction="sum")
    (size,), (split,) = tape.grad(loss, "facts", [Max, Through(("address",), AbsSum)])
    by_fact = size.amax(2)  # stories × facts
    return {
        "by_fact": by_fact,
        "strongest": by_fact.argmax(1),
        "attended": address.argmax(1),
        "addressed": split[0, 0].sum() / split.sum(),
        "right": (scores.argmax(1) == where).double().mean(),
    }


def main(picture: str | None = None) -> None:
    """Train, and trace before and after."""
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(0)
    model, held_out = MemoryNetwork(), draw_stories(64, random)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    asked, shares, traced = held_out[2], [], []
    for step in range(401):
        if step in (0, 100, 400):
            traced.append(ask(model, held_out))
            right, share = traced[-1]["right"], traced[-1]["addressed"]
            shares.append((traced[-1]["strongest"] == asked).double().mean().item())
            print(f"step {step:3}: {right:4.0%} right; the strongest path leads to the fact asked for in", end=" ")
            print(f"{shares[-1]:4.0%}; {share:.0%} of what paths carry goes through the addresses")
        people, places, number, where = draw_stories(64, random)
        scores, _ = model(model.embed(people, places), people[torch.arange(64), number])
        loss = nn.functional.cross_entropy(scores, where)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = traced[-1]
    assert found["right"] > 0.95
    assert shares[-1] > 0.9 > 0.5 > shares[0]
    assert (found["attended"] == asked).all()
    if picture:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 2.6), layout="constrained")
        axes = figure.add_subplot()
        axes.imshow((found["by_fact"] / found["by_fact"].amax(1, keepdim=True))[:24].T.numpy(), cmap="Blues")
        axes.plot(range(24), asked[:24], "o", mfc="none", color="#d95f02", label="the fact asked for")
        axes.set(xlabel="story", ylabel="fact", title="The strongest path to each fact, after training")
        axes.legend(fontsize=8, loc="upper right")
        figure.savefig(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
