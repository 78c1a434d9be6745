"""The pass of a batch through a network, from layer to layer, so that the way to each is gone only once."""

from collections.abc import Iterable

import torch
from torch import Tensor, fx

from ldnq import graph
from ldnq.graph import Layer
from ldnq.store import Held, Store
from ldnq.wiring import Wiring


class Walk(fx.Interpreter):
    """The pass of one `batch` through the network of `wiring`, which stops at a layer and goes on from there later.

    Layers are visited in their order, and what has been passed must not change any more. The values that are still
    needed are kept, by `store` while the walk rests. A network that cannot be traced, and a layer that runs more than
    once, are passed from the start every time.
    """

    def __init__(self, wiring: Wiring, batch: Tensor | Held, store: Store | None = None) -> None:
        super().__init__(wiring.traced or fx.symbolic_trace(torch.nn.Identity()))
        self.extra_traceback = False
        self.args_iter = iter(())
        self.wiring, self.store = wiring, store or Store()
        self.held: Held | None = None
        self._batch = batch if isinstance(batch, Held) else self.store.hold({"batch": batch})
        self.nodes = list(self.graph.nodes)
        self.position = 0

    @property
    def batch(self) -> Tensor:
        """What the network is given."""
        return self._batch.values()["batch"]

    @torch.no_grad()
    def inputs(self, layer: Layer) -> list[Tensor]:
        """What each call of `layer` is given."""
        node = self.wiring.layers.get(layer.name)
        if node is None:
            return [x for x, _ in graph.run_to(self.wiring.module, layer.name, self.batch.clone(), layer.calls)]
        return [self._go(self.nodes.index(node))[node.all_input_nodes[0]]]

    @torch.no_grad()
    def outputs(self, layer: Layer) -> list[Tensor]:
        """What each call of `layer` returns."""
        node = self.wiring.layers.get(layer.name)
        if node is None:
            return [y for _, y in graph.run_to(self.wiring.module, layer.name, self.batch.clone(), layer.calls)]
        return [self._go(self.nodes.index(node) + 1)[node]]

    @torch.no_grad()
    def result(self) -> Tensor:
        """What the network returns."""
        if self.wiring.traced is None:
            return graph.forward(self.wiring.module, self.batch.clone())
        return self.value(self.nodes[-1].name)

    @torch.no_grad()
    def value(self, name: str) -> Tensor:
        """The value called `name`, which is still needed or lies ahead."""
        self._wake()
        position, node = next((i, node) for i, node in enumerate(self.nodes) if node.name == name)
        # How often each was changed in place: one that is now, is no place to start from once more.
        versions = [value._version for value in _tensors(self.env)]
        values = self._run(self.nodes[self.position : position + 1])
        if [value._version for value in _tensors(self.env)] != versions:
            self._leave({}, 0)
        return values[node]

    def rest(self) -> None:
        """Let the store have the values until the walk goes on."""
        self.held = self.held or self.store.hold(self.env)
        self.env = {}

    def _wake(self) -> None:
        if self.position == 0:
            self._leave({self.nodes[0]: self.batch.clone()}, 1)
        elif self.held and not self.env:
            self.env = self.held.values()

    def _go(self, position: int) -> dict[fx.Node, Tensor]:
        """The values needed from `position` on, the last one included."""
        self._wake()
        if position > self.position:
            values = self._run(self.nodes[self.position : position])
            last, ahead = self.nodes[position - 1], set(self.nodes[position:])
            needed = {node: value for node, value in values.items() if node is last or ahead & node.users.keys()}
            self._leave(needed, position)
        return self.env

    def _leave(self, values: dict[fx.Node, Tensor], position: int) -> None:
        """Stand at another `position`, with these values."""
        if self.held:
            self.held.free()
        self.env, self.position, self.held = values, position, None

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


def _tensors(values: dict[fx.Node, Tensor]) -> list[Tensor]:
    return [value for value in values.values() if isinstance(value, Tensor)]
