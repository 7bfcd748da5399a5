"""RMS norm and rotary embedding of PaddleNLP's Llama with backward passes written by hand.

Paddle's eager kernels for elementwise operations run on one thread, and PaddleNLP writes both with
many of them: `pow`, slices and their gradients took a third of a LoRA step of SmolLM2-135M on two
cores. Each is a linear map or close to one, so that its backward pass is as short as the forward.
Used on the CPU alone: cards have fused kernels.
"""

from __future__ import annotations

from typing import Any

from appliance.training.runtime import paddle

Tensor = Any  # paddle.Tensor; paddle ships no types that mypy could follow


class RmsNorm(paddle.autograd.PyLayer):  # type: ignore[misc]
    """y = w · x / sqrt(mean(x²) + ε) over the last axis of float32 [..., D] (arXiv:1910.07467)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """Keep the normed input and 1 / sqrt(…) for the way back."""
        scale = paddle.rsqrt((x * x).mean(-1, keepdim=True) + epsilon)
        normed = x * scale
        ctx.save_for_backward(normed, scale, weight)
        ctx.learns_weight = not weight.stop_gradient
        return normed * weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        """dx = scale · (g − n · mean(g · n)) with g = grad · w; dw = Σ grad · n."""
        normed, scale, weight = ctx.saved_tensor()
        inner = grad * weight
        along = (inner * normed).mean(-1, keepdim=True)
        learnt = None
        if ctx.learns_weight:
            learnt = (grad * normed).reshape([-1, weight.shape[0]]).sum(0)
        return (inner - normed * along) * scale, learnt


class Rotate(paddle.autograd.PyLayer):  # type: ignore[misc]
    """Rotary embedding of [B, S, H, D] (arXiv:2104.09864); cos and sin are [B, S, 1, D].

    The rotation's transpose, hence its backward pass, is the rotation by the negative angle.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate by the angle."""
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """Rotate back."""
        cos, sin = ctx.saved_tensor()
        return _rotate(grad, cos, -sin), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = paddle.split(x, 2, axis=-1)
    return x * cos + paddle.concat([-second, first], axis=-1) * sin


def _norm(self: Any, hidden: Tensor) -> Tensor:
    return RmsNorm.apply(hidden, self.weight, self.variance_epsilon)


def _rotate_both(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, position_ids: Tensor
) -> tuple[Tensor, Tensor]:
    cos = cos.squeeze([0, 2])[position_ids].unsqueeze(2)
    sin = sin.squeeze([0, 2])[position_ids].unsqueeze(2)
    return Rotate.apply(q, cos, sin), Rotate.apply(k, cos, sin)


def use_fast_ops() -> None:
    """Let PaddleNLP's Llama use both from now on, in this process. On cards: change nothing."""
    if paddle.device.get_device() != "cpu":
        return
    from paddlenlp.transformers.llama import modeling

    modeling.LlamaRMSNorm.forward = _norm
    modeling.apply_rotary_pos_emb = _rotate_both
