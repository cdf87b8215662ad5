"""Brings an ONNX model into one canonical form, so that equal models are equal bytes.

tf2onnx names and orders nodes by process-wide counters: no two conversions of a model give the same file. Here the nodes
stand in depth-first order from the outputs, values are numbered in that order, initialisers follow their first use, and
names of nodes, notes and unused values fall away. Inputs and outputs keep their names. Needs onnx alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

import onnx

PRODUCER = "toprope"
BATCH = "batch"


def canonical(model: Any) -> Any:
    """Return an equal `onnx.ModelProto` in canonical form; the given one is left as it is."""
    result = onnx.ModelProto(ir_version=model.ir_version, producer_name=PRODUCER)
    result.graph.CopyFrom(_Graph(model.graph, {}, count(), top=True).rewrite())
    used = {"", *_domains(result.graph)}
    for opset in sorted(model.opset_import, key=lambda item: item.domain):
        if opset.domain in used:
            result.opset_import.add().CopyFrom(opset)
    return result


class _Graph:
    """One graph on its way: the main one, or the body of an If or Loop, which also sees the names around it."""

    def __init__(self, graph: Any, outer: Mapping[str, str], numbers: Iterator[int], *, top: bool) -> None:
        self.graph = graph
        self.names = dict(outer)
        self.numbers = numbers
        self.top = top
        self.makers = {output: node for node in graph.node for output in node.output if output}
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.kept = {value.name for value in graph.output} if top else set()
        self.nodes: list[Any] = []
        self.used: list[str] = []

    def rewrite(self) -> Any:
        inputs = [value for value in self.graph.input if value.name not in self.constants]
        for value in inputs:
            self.names[value.name] = value.name if self.top else self._number()
        for value in self.graph.output:
            self._reach(value.name)
        result = onnx.GraphProto(name="graph")
        result.node.extend(self._node(node) for node in self.nodes)
        for name in self.used:
            tensor = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(self.constants[name]), self.names[name])
            result.initializer.append(tensor)
        result.input.extend(self._value(value) for value in inputs)
        result.output.extend(self._value(value) for value in self.graph.output)
        return result

    def _number(self) -> str:
        return f"v{next(self.numbers)}"

    def _reach(self, name: str) -> None:
        """Put the maker of a value, and before it the makers of all that it needs, at the end of the order."""
        nothing: Iterator[str] = iter(())
        stack = [(name, nothing, False)]
        entered: set[int] = set()
        while stack:
            value, needed, opened = stack.pop()
            node = self.makers.get(value)
            if not opened:
                if not value or value in self.names:
                    continue
                if value in self.constants:
                    self.names[value] = value if value in self.kept else self._number()
                    self.used.append(value)
                    continue
                if node is None or id(node) in entered:
                    continue
                entered.add(id(node))
                needed = iter((*node.input, *_captured(node)))
            following = next(needed, None)
            if following is not None:
                stack += [(value, needed, True), (following, nothing, False)]
            elif node is not None:
                self._place(node)

    def _place(self, node: Any) -> None:
        self.nodes.append(node)
        for output in node.output:
            if output and output not in self.names:
                self.names[output] = output if output in self.kept else self._number()

    def _node(self, node: Any) -> Any:
        result = onnx.NodeProto(op_type=node.op_type, domain=node.domain)
        result.input.extend(self.names[name] if name else "" for name in node.input)
        result.output.extend(self.names[name] if name else "" for name in node.output)
        for attribute in sorted(node.attribute, key=lambda item: item.name):
            copy = result.attribute.add()
            copy.CopyFrom(attribute)
            copy.ClearField("doc_string")
            if attribute.type == onnx.AttributeProto.GRAPH:
                copy.g.CopyFrom(_Graph(attribute.g, self.names, self.numbers, top=False).rewrite())
        return result

    def _value(self, value: Any) -> Any:
        result = onnx.ValueInfoProto()
        result.CopyFrom(value)
        result.ClearField("doc_string")
        result.name = self.names[value.name]
        for axis, size in enumerate(result.type.tensor_type.shape.dim):
            if size.dim_param:
                size.dim_param = BATCH if axis == 0 else f"size{axis}"
        return result


def _bodies(node: Any) -> Iterator[Any]:
    for attribute in sorted(node.attribute, key=lambda item: item.name):
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g


def _captured(node: Any) -> Iterator[str]:
    """Yield the names that a node's bodies take from the graph around it."""
    for body in _bodies(node):
        own = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
        own |= {output for inner in body.node for output in inner.output}
        for inner in body.node:
            yield from (name for name in (*inner.input, *_captured(inner)) if name and name not in own)
        yield from (value.name for value in body.output if value.name not in own)


def _domains(graph: Any) -> Iterator[str]:
    for node in graph.node:
        yield node.domain
        for body in _bodies(node):
            yield from _domains(body)
