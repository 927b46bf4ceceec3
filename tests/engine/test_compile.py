"""An attached model under ``torch.compile``: its ops are single nodes of one graph, and serve what is tuned."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tunebook as tb
from tunebook.engine.models import load
from tunebook.records import Tactic

TRANSPOSED = Tactic.parse("torch_transposed")


def test_an_attached_model_compiles_into_one_graph_and_keeps_its_weights_released() -> None:
    model = load("tiny-moe").model
    ids = torch.randint(0, 1000, (2, 7), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), tb.attach(model, ("linear", "experts")) as attachment:
        linears = [binding for binding in attachment.bindings.values() if binding.spec.name == "linear"]
        for binding in linears:
            binding.release(TRANSPOSED)
        expected = model(ids, use_cache=False).logits
        attachment.for_compile()
        graphs: list[Any] = []

        def backend(graph: Any, inputs: object) -> Any:
            graphs.append(graph)
            return graph.forward

        compiled: Any = torch.compile(model, fullgraph=True, backend=backend)
        torch.testing.assert_close(compiled(ids, use_cache=False).logits, expected)
        assert all(binding.released for binding in linears)
        (graph,) = graphs
        called = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
        assert sum("tunebook.linear" in name for name in called) == len(linears)
        assert sum("tunebook.experts" in name for name in called) == 3
        attachment.for_compile(False)
        torch.testing.assert_close(model(ids, use_cache=False).logits, expected)
    with pytest.raises(RuntimeError, match="not attached any more"):
        torch.ops.tunebook.linear(torch.zeros(1, 128), 10**6, 4)
