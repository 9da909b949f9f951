# ---
# jupytext:
#   formats: py:percent
# kernelspec:
#   display_name: Python 3
#   name: python3
# ---

# %% [markdown]
# # 1. Backpropagation is a sum over paths
#
# This is the first of four notebooks. Each is a Python file: run it as it is, or open it as a notebook with
# jupytext.
#
# A function of several steps is drawn as a graph: a *vertex* for each number, an *edge* from each number to those
# that are computed from it. Here is o = sin(x²) + cos(x²) at x = 1.

# %%
from gradtrace.scalar import Graph, backpropagate, best_path, draw, path_table, steps

g = Graph()
g.inputs(x=1.0)
g.add("x²", "square", "x")
g.add("sin", "sin", "x²")
g.add("cos", "cos", "x²")
g.add("o", "+", "sin", "cos")
draw(g)

# %% [markdown]
# The number on an edge is its *weight*, the **local derivative**: by how much the number at its end changes when
# the one at its beginning does. A **path** is a way along edges, here from x to o, and its weight is the product
# of the weights on it. There are two paths:

# %%
table = path_table(g, "x", "o")
print(table)

# %% [markdown]
# **The derivative is the sum over all paths.** That is the whole chain rule. We compare it with PyTorch:

# %%
import torch

x = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
(torch.sin(x**2) + torch.cos(x**2)).backward()
assert abs(table.total - x.grad.item()) < 1e-12
table.total, x.grad.item()

# %% [markdown]
# ## Why it is fast
#
# Two paths can be listed. Now put n such diamonds behind each other: the paths double with each, the edges grow
# by four. *Backpropagation* never lists them. It goes from o back, and finds at each vertex g, the derivative of
# o by it: the sum, over the edges that leave the vertex, of weight · g at the edge's end. Here it is step by
# step:

# %%
print(steps(g, "o"))

# %%
deep = Graph()
deep.inputs(h0=1.0)
for n in range(1, 21):
    deep.add(f"a{n}", lambda h: 0.5 * h, f"h{n - 1}")
    deep.add(f"b{n}", lambda h: 0.4 * h, f"h{n - 1}")
    deep.add(f"h{n}", "+", f"a{n}", f"b{n}")
count = backpropagate(deep, "h20", "count")["h0"]
derivative = backpropagate(deep, "h20")["h0"]
assert count == 2**20
assert abs(derivative - 0.9**20) < 1e-12
edges = deep.scalars().number_of_edges()
print(f"{count:,.0f} paths, {edges} edges, derivative {derivative:.4f} = 0.9^20")

# %% [markdown]
# ## The strongest path
#
# The same pass with *max* for sum, and absolute values for weights, finds the path of largest weight. At each
# vertex it notes which edge won, a *backpointer*, and following those gives the path. It is Viterbi's algorithm.

# %%
print(steps(g, "o", "max"))
path = best_path(g, "x", "o")
assert path.vertices == ("x", "x²", "cos", "o")
draw(g, path=path, notes=backpropagate(g, "o"))

# %% [markdown]
# In orange the strongest path, in blue the gradient of each vertex. That is all the theory there is: what follows
# does this for the millions of numbers in a network, without drawing the graph.
#
# Next: [other questions that one pass answers](2_semirings.py). More graphs: [Graphs by hand](../scalar.md).
