"""The pass of a batch through a network, from layer to layer, so that the way to each is gone only once."""

from collections.abc import Iterable

import torch
from torch import Tensor, fx

from ldnq import graph
from ldnq.graph import Layer
from ldnq.wiring import Wiring


class Walk(fx.Interpreter):
    """The pass of one `batch` through the network of `wiring`, which stops at a layer and goes on from there later.

    Layers are visited in their order, and what has been passed must not change any more. Keeps the values that are
    still needed; where those are of more than `limit` bytes it goes on from an earlier stop instead. A network that
    cannot be traced, and a layer that runs more than once, are passed from the start every time.
    """

    def __init__(self, wiring: Wiring, batch: Tensor, limit: float = float("inf")) -> None:
        super().__init__(wiring.traced or fx.symbolic_trace(torch.nn.Identity()))
        self.extra_traceback = False
        self.args_iter = iter(())
        self.wiring, self.batch, self.limit = wiring, batch, limit
        self.nodes = list(self.graph.nodes)
        self.position = 0
        self._restart()

    @torch.no_grad()
    def inputs(self, layer: Layer) -> list[Tensor]:
        """What each call of `layer` is given."""
        node = self.wiring.layers.get(layer.name)
        if node is None:
            return [x for x, _ in graph.run_to(self.wiring.module, layer.name, self.batch, layer.calls)]
        return [self._go(self.nodes.index(node))[node.all_input_nodes[0]]]

    @torch.no_grad()
    def outputs(self, layer: Layer) -> list[Tensor]:
        """What each call of `layer` returns."""
        node = self.wiring.layers.get(layer.name)
        if node is None:
            return [y for _, y in graph.run_to(self.wiring.module, layer.name, self.batch, layer.calls)]
        return [self._go(self.nodes.index(node) + 1)[node]]

    @torch.no_grad()
    def result(self) -> Tensor:
        """What the network returns."""
        if self.wiring.traced is None:
            return graph.forward(self.wiring.module, self.batch)
        return self.value(self.nodes[-1].name)

    @torch.no_grad()
    def value(self, name: str) -> Tensor:
        """The value called `name`, which is still needed or lies ahead."""
        position, node = next((i, node) for i, node in enumerate(self.nodes) if node.name == name)
        versions = self._versions()
        values = self._run(self.nodes[self.position : position + 1])
        if self._versions() != versions:
            self._restart()
        return values[node]

    def _go(self, position: int) -> dict[fx.Node, Tensor]:
        """The values needed from `position` on, the last one included; kept if they are small enough."""
        versions = self._versions()
        values = self._run(self.nodes[self.position : position])
        last, ahead = self.nodes[position - 1], set(self.nodes[position:])
        values = {node: value for node, value in values.items() if node is last or ahead & node.users.keys()}
        if sum(value.numel() * value.element_size() for value in _tensors(values)) <= self.limit:
            self.env, self.position = values, position
        elif self._versions() != versions:
            self._restart()
        return values

    def _run(self, nodes: Iterable[fx.Node]) -> dict[fx.Node, Tensor]:
        """The values kept, and those of `nodes`, as far as others still need them."""
        kept = self.env
        self.env = dict(kept)
        try:
            for node in nodes:
                self.env[node] = self.run_node(node)
                for done in self.user_to_last_uses.get(node, ()):
                    self.env.pop(done, None)
            return self.env
        finally:
            self.env = kept

    def _restart(self) -> None:
        self.position = 1
        self.env = {self.nodes[0]: self.batch.clone()}

    def _versions(self) -> list[int]:
        """How often each value kept was changed in place: one that was, is no place to start from once more."""
        return [value._version for value in _tensors(self.env)]


def _tensors(values: dict[fx.Node, Tensor]) -> list[Tensor]:
    return [value for value in values.values() if isinstance(value, Tensor)]
