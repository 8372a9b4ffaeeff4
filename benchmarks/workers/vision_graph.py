"""SigLIP-B/16 at 512 x 512 with random weights, for each engine that benchmarks/vision.py asks.

A vision transformer of 12 layers over 32 x 32 patches and one product after it: weights as a dict
of arrays, the same computation as an ONNX graph and in torch. Needs onnx or torch only where that
form is asked for.
"""

from __future__ import annotations

from typing import Any

import numpy as np

SIDE, PATCH, HIDDEN, HEADS, INNER, LAYERS = 32, 16, 768, 12, 3072, 12
EPS = 1e-6
TOKENS, PATCH_DIM = SIDE * SIDE, 3 * PATCH * PATCH


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Canonical names (csrc/model/README.md) -> float32. Queries and keys are large enough for
    attention to choose."""
    rng = np.random.default_rng(seed)

    def matrix(rows: int, cols: int, gain: float = 1.0) -> np.ndarray:
        return (rng.standard_normal((rows, cols)) * (gain / cols**0.5)).astype(np.float32)

    def vector(size: int, center: float, spread: float) -> np.ndarray:
        return (center + spread * rng.standard_normal(size)).astype(np.float32)

    out = {"patch": matrix(HIDDEN, PATCH_DIM), "patch_bias": vector(HIDDEN, 0, 0.1)}
    out["positions"] = matrix(TOKENS, HIDDEN, HIDDEN**0.5 * 0.5)
    for i in range(LAYERS):
        at = f"layers.{i}."
        for norm in ("attn_norm", "mlp_norm"):
            out[at + norm] = vector(HIDDEN, 1, 0.2)
            out[f"{at}{norm}_bias"] = vector(HIDDEN, 0, 0.1)
        for name in "qkvo":
            out[at + name] = matrix(HIDDEN, HIDDEN, 1.5 if name in "qk" else 1.0)
            out[f"{at}{name}_bias"] = vector(HIDDEN, 0, 0.1)
        out |= {f"{at}up": matrix(INNER, HIDDEN), f"{at}up_bias": vector(INNER, 0, 0.1)}
        out |= {f"{at}down": matrix(HIDDEN, INNER), f"{at}down_bias": vector(HIDDEN, 0, 0.1)}
    out |= {"head.norm": vector(HIDDEN, 1, 0.2), "head.norm_bias": vector(HIDDEN, 0, 0.1)}
    return out | {"head.0": matrix(HIDDEN, HIDDEN)}


def patches(seed: int = 0) -> np.ndarray:
    """float32 [1024, 768] in -1 … 1: neighbouring pixels alike, as an image's are."""
    rng = np.random.default_rng(1000 + seed)
    coarse = rng.standard_normal((3, 33, 33))
    fine = np.kron(coarse, np.ones((1, 16, 16)))[:, :512, :512]
    fine = fine + 0.2 * rng.standard_normal(fine.shape)
    image = np.clip(fine / 2, -1, 1).astype(np.float32)
    cut = image.reshape(3, SIDE, PATCH, SIDE, PATCH).transpose(1, 3, 0, 2, 4)
    return np.ascontiguousarray(cut.reshape(TOKENS, PATCH_DIM))


def onnx_model(w: dict[str, np.ndarray]) -> Any:
    """The graph: input ``patches`` [1024, 768], output ``rows`` [1024, 768]; opset 20."""
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[Any] = []
    constants: list[Any] = []

    def constant(name: str, value: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind}_{len(nodes)}"
        nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def linear(x: str, name: str, bias: bool = True) -> str:
        y = node("MatMul", x, constant(f"{name}.w", w[name].T))
        return node("Add", y, constant(f"{name}.b", w[f"{name}_bias"])) if bias else y

    def norm(x: str, name: str) -> str:
        scale, bias = constant(name, w[name]), constant(f"{name}_bias", w[f"{name}_bias"])
        return node("LayerNormalization", x, scale, bias, axis=-1, epsilon=EPS)

    split = constant("split", np.array([TOKENS, HEADS, HIDDEN // HEADS]))
    joined = constant("joined", np.array([TOKENS, HIDDEN]))
    scale = constant("scale", np.array((HIDDEN // HEADS) ** -0.5, np.float32))

    def heads(x: str, order: list[int]) -> str:
        return node("Transpose", node("Reshape", x, split), perm=order)

    x = node("Add", linear("patches", "patch"), constant("positions", w["positions"]))
    for i in range(LAYERS):
        at = f"layers.{i}."
        y = norm(x, f"{at}attn_norm")
        q = node("Mul", heads(linear(y, f"{at}q"), [1, 0, 2]), scale)
        k, v = heads(linear(y, f"{at}k"), [1, 2, 0]), heads(linear(y, f"{at}v"), [1, 0, 2])
        p = node("Softmax", node("MatMul", q, k), axis=-1)
        o = node("Reshape", node("Transpose", node("MatMul", p, v), perm=[1, 0, 2]), joined)
        x = node("Add", x, linear(o, f"{at}o"))
        y = node("Gelu", linear(norm(x, f"{at}mlp_norm"), f"{at}up"), approximate="tanh")
        x = node("Add", x, linear(y, f"{at}down"))
    out = linear(norm(x, "head.norm"), "head.0", bias=False)
    nodes.append(helper.make_node("Identity", [out], ["rows"]))
    graph = helper.make_graph(
        nodes,
        "siglip",
        [helper.make_tensor_value_info("patches", TensorProto.FLOAT, [TOKENS, PATCH_DIM])],
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, [TOKENS, HIDDEN])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def torch_forward(w: dict[str, np.ndarray]) -> Any:
    """A function of patches [1024, 768] as a tensor; attention is torch's own."""
    import torch
    from torch.nn import functional as f

    t = {name: torch.from_numpy(value) for name, value in w.items()}

    def norm(x: Any, name: str) -> Any:
        return f.layer_norm(x, (HIDDEN,), t[name], t[f"{name}_bias"], EPS)

    def linear(x: Any, name: str) -> Any:
        return f.linear(x, t[name], t.get(f"{name}_bias"))

    def heads(x: Any) -> Any:
        return x.view(1, TOKENS, HEADS, -1).transpose(1, 2)

    def forward(x: Any) -> Any:
        x = linear(x, "patch") + t["positions"]
        for i in range(LAYERS):
            at = f"layers.{i}."
            y = norm(x, f"{at}attn_norm")
            q, k, v = (heads(linear(y, at + name)) for name in "qkv")
            o = f.scaled_dot_product_attention(q, k, v)
            x = x + linear(o.transpose(1, 2).reshape(TOKENS, HIDDEN), f"{at}o")
            y = f.gelu(linear(norm(x, f"{at}mlp_norm"), f"{at}up"), approximate="tanh")
            x = x + linear(y, f"{at}down")
        return linear(norm(x, "head.norm"), "head.0")

    return forward
