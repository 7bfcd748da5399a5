"""What a recipe will do, in a few lines."""

from __future__ import annotations

from appliance.files import from_here
from appliance.recipe.schema import Recipe


def summary(recipe: Recipe) -> list[tuple[str, str]]:
    """Pairs of section and what it will do."""
    return [
        ("model", _model(recipe)),
        ("data", _data(recipe)),
        ("train", _train(recipe)),
        ("export", _export(recipe)),
        ("serve", _serve(recipe)),
    ]


def _model(recipe: Recipe) -> str:
    shape, tokenizer = recipe.model.config, recipe.model.tokenizer
    if shape is None or tokenizer is None:
        return f"start from {from_here(recipe.model.base or '')}"
    return (
        f"a new Llama: {shape.num_hidden_layers} layers of width {shape.hidden_size}, context "
        f"{shape.max_position_embeddings}; a new {tokenizer.kind} tokenizer of "
        f"{tokenizer.vocab_size} pieces"
    )


def _data(recipe: Recipe) -> str:
    data = recipe.data
    if recipe.train.method == "pretrain":
        held = f"split {data.split}"
    elif data.eval:
        held = f"held out: {', '.join(map(from_here, data.eval))}"
    else:
        held = f"{data.eval_fraction:.0%} held out"
    sources = ", ".join(map(from_here, data.train))
    return f"{sources}; {held}; up to {data.max_length} tokens an example"


def _train(recipe: Recipe) -> str:
    train = recipe.train
    method: str = train.method
    if method == "lora":
        method = f"lora, rank {train.lora_rank} on {', '.join(train.lora_target_modules)}"
    steps = (
        f"{train.max_steps} steps" if train.max_steps > 0 else f"{train.num_train_epochs:g} epochs"
    )
    batch = train.per_device_train_batch_size * train.gradient_accumulation_steps
    return f"{method}; {steps} of {batch} examples a card; learning rate {train.learning_rate:g}"


def _export(recipe: Recipe) -> str:
    length = recipe.export.max_length
    return f"a graph of {length} tokens" if length else "a graph of the model's own context"


def _serve(recipe: Recipe) -> str:
    serve = recipe.serve
    backend = f" ({serve.backend})" if serve.engine == "fastdeploy" else ""
    return (
        f"{serve.name or recipe.name} by {serve.engine}{backend}: REST on "
        f"{serve.host}:{serve.rest_port}, gRPC on {serve.host}:{serve.grpc_port}; "
        f"{serve.slots} at once, up to {serve.max_length} tokens each"
    )
