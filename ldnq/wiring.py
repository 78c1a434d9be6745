"""How a network's layers are joined, as torch.fx sees it: which batch norm follows a layer, what is added to it."""

import logging
import operator
from collections import Counter

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

log = logging.getLogger(__name__)

SUMS = {operator.add, operator.iadd, torch.add, "add", "add_"}


class Wiring:
    """The traced forward pass of `module`, with the module's own parameters; knows nothing where tracing fails.

    `layers` are the calls of modules that are called once, by their names.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.traced: fx.GraphModule | None = None
        try:
            self.traced = fx.symbolic_trace(module)
        except Exception as error:  # whatever a forward pass does with a proxy for its input
            message = " ".join(str(error).split())[:100]
            log.info("torch.fx cannot follow the network, every layer is taken by itself: %s", message)
        nodes = list(self.traced.graph.nodes) if self.traced else []
        calls = Counter(node.target for node in nodes if node.op == "call_module")
        self.layers = {node.target: node for node in nodes if node.op == "call_module" and calls[node.target] == 1}

    def batch_norm_after(self, layer: str) -> str | None:
        """The batch norm that takes the output of `layer`, and of nothing else, as its input."""
        user = self._only_user(self.layers.get(layer))
        if user is None or self.layers.get(user.target) is not user:
            return None
        norm = self.traced.get_submodule(user.target)
        return user.target if isinstance(norm, _BatchNorm) and norm.affine and norm.track_running_stats else None

    def batch_norm_before(self, layer: str) -> str | None:
        """The batch norm that the inputs of `layer` come out of."""
        node = self.layers.get(layer)
        source = node.all_input_nodes[0] if node is not None and node.all_input_nodes else None
        if source is None or source.op != "call_module":
            return None
        return source.target if isinstance(self.traced.get_submodule(source.target), _BatchNorm) else None

    def addend(self, layer: str) -> str | None:
        """The value that is added to the output of `layer`, or of its batch norm: the other branch of a residual
        block."""
        norm = self.batch_norm_after(layer)
        node = self.layers.get(norm or layer)
        user = self._only_user(node)
        if user is None or not _is_sum(user) or user.kwargs or len(user.args) != 2:
            return None
        others = [argument for argument in user.args if isinstance(argument, fx.Node) and argument is not node]
        return others[0].name if others else None

    def blocks(self) -> list[str]:
        """The smallest modules that add one branch to another, in the order in which they run: residual blocks."""
        sums = [node for node in self.traced.graph.nodes if _is_sum(node)] if self.traced else []
        stacks = [list(node.meta.get("nn_module_stack", ())) for node in sums]
        return list(dict.fromkeys(stack[-1] for stack in stacks if stack))

    @staticmethod
    def _only_user(node: fx.Node | None) -> fx.Node | None:
        return next(iter(node.users)) if node is not None and len(node.users) == 1 else None


def _is_sum(node: fx.Node) -> bool:
    # A module may be called "add" and do something else.
    return node.op in ("call_function", "call_method") and node.target in SUMS
