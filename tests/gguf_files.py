"""GGUF files small enough to be built in a test: a random Llama that llama.cpp loads, and adapters for it."""

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
EMBEDDING_LENGTH = 64
FEED_FORWARD_LENGTH = 128
BLOCK_COUNT = 2
HEAD_COUNT = 4
HEAD_COUNT_KV = 2
HEAD_LENGTH = EMBEDDING_LENGTH // HEAD_COUNT
MERGES = ["h e", "Ġ t", "Ġt he", "i n", "e r", "o n", "r e", "Ġ a", "a t", "e s"]


def byte_tokens() -> list[str]:
    """Return GPT-2's spelling of the 256 bytes: printable ones as themselves, the rest from U+0100 up."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def tiny_vocabulary() -> list[str]:
    """Return 256 byte tokens, one token for each merge, and the three control tokens."""
    return [
        *byte_tokens(),
        *(merge.replace(" ", "") for merge in MERGES),
        END_OF_TEXT,
        TURN_START,
        TURN_END,
    ]


def write_tiny_llama(
    path: Path,
    *,
    name: str | None = "tiny llama",
    architecture: str = "llama",
    vocabulary: bool = True,
    weights: bool = True,
    chat_template: str | None = CHATML,
    context_length: int = 512,
    quantization_type: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    license_name: str | None = "apache-2.0",
    shards: int = 1,
    file_type: int | None = None,
    add_bos: bool = False,
    endless: bool = False,
    seed: int = 0,
) -> Path:
    """Write a random Llama; return the file that llama.cpp opens, the first shard of a split one.

    Args:
        endless: never write the token that ends an answer.
        weights: False leaves a file of metadata and vocabulary only.
        quantization_type: of the matrices; the rows of 64 and 128 numbers allow F32, F16, Q8_0, Q4_0.
    """
    tokens = tiny_vocabulary()
    tensors = dict(_llama_tensors(len(tokens), numpy.random.default_rng(seed))) if weights else {}
    if endless and tensors:
        # Logits of 0 are far below the 40 highest of the other tokens.
        tensors["output.weight"][-3:] = 0
    writer = gguf.GGUFWriter(
        path, architecture, split_max_tensors=-(-len(tensors) // shards) if shards > 1 else 0
    )
    writer.add_type("model")
    if name is not None:
        writer.add_name(name)
    if license_name is not None:
        writer.add_license(license_name)
    if file_type is not None:
        writer.add_file_type(file_type)
    writer.add_context_length(context_length)
    writer.add_embedding_length(EMBEDDING_LENGTH)
    writer.add_block_count(BLOCK_COUNT)
    writer.add_feed_forward_length(FEED_FORWARD_LENGTH)
    writer.add_head_count(HEAD_COUNT)
    writer.add_head_count_kv(HEAD_COUNT_KV)
    writer.add_rope_dimension_count(HEAD_LENGTH)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    if vocabulary:
        _add_vocabulary(writer, tokens, add_bos=add_bos)
    else:
        writer.add_tokenizer_model("no_vocab")
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    for tensor_name, values in tensors.items():
        _add_tensor(writer, tensor_name, values, quantization_type)
    _write(writer)
    return path if shards == 1 else path.with_name(gguf.SHARD_NAME_FORMAT.format(path.stem, 1, shards))


def write_tiny_adapter(
    path: Path,
    *,
    name: str = "tiny adapter",
    architecture: str = "llama",
    rank: int = 4,
    alpha: float = 8.0,
    strength: float = 0.5,
    embedding_length: int = EMBEDDING_LENGTH,
    block_count: int = BLOCK_COUNT,
    seed: int = 1,
) -> Path:
    """Write a LoRA adapter for the query and output matrices of `write_tiny_llama`.

    Args:
        strength: standard deviation of A and B; 0.5 changes every logit well beyond rounding.
    """
    random = numpy.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_name(name)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    for block in range(block_count):
        for part in ("attn_q", "attn_output"):
            a = random.normal(0, strength, (rank, embedding_length)).astype(numpy.float32)
            b = random.normal(0, strength, (embedding_length, rank)).astype(numpy.float32)
            writer.add_tensor(f"blk.{block}.{part}.weight.lora_a", a)
            writer.add_tensor(f"blk.{block}.{part}.weight.lora_b", b)
    _write(writer)
    return path


def _add_vocabulary(writer: gguf.GGUFWriter, tokens: list[str], *, add_bos: bool) -> None:
    first_control = len(tokens) - 3
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [gguf.TokenType.NORMAL] * first_control + [gguf.TokenType.CONTROL] * (len(tokens) - first_control)
    )
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(tokens.index(END_OF_TEXT))
    writer.add_eos_token_id(tokens.index(TURN_END))
    writer.add_pad_token_id(tokens.index(END_OF_TEXT))
    writer.add_add_bos_token(add_bos)


def _llama_tensors(
    vocabulary_size: int, random: numpy.random.Generator
) -> Iterator[tuple[str, numpy.ndarray]]:
    def matrix(rows: int, columns: int) -> numpy.ndarray:
        return random.normal(0, columns**-0.5, (rows, columns)).astype(numpy.float32)

    norm = numpy.ones(EMBEDDING_LENGTH, dtype=numpy.float32)
    yield "token_embd.weight", matrix(vocabulary_size, EMBEDDING_LENGTH)
    for block in range(BLOCK_COUNT):
        yield f"blk.{block}.attn_norm.weight", norm
        yield f"blk.{block}.attn_q.weight", matrix(EMBEDDING_LENGTH, EMBEDDING_LENGTH)
        yield f"blk.{block}.attn_k.weight", matrix(HEAD_COUNT_KV * HEAD_LENGTH, EMBEDDING_LENGTH)
        yield f"blk.{block}.attn_v.weight", matrix(HEAD_COUNT_KV * HEAD_LENGTH, EMBEDDING_LENGTH)
        yield f"blk.{block}.attn_output.weight", matrix(EMBEDDING_LENGTH, EMBEDDING_LENGTH)
        yield f"blk.{block}.ffn_norm.weight", norm
        yield f"blk.{block}.ffn_gate.weight", matrix(FEED_FORWARD_LENGTH, EMBEDDING_LENGTH)
        yield f"blk.{block}.ffn_up.weight", matrix(FEED_FORWARD_LENGTH, EMBEDDING_LENGTH)
        yield f"blk.{block}.ffn_down.weight", matrix(EMBEDDING_LENGTH, FEED_FORWARD_LENGTH)
    yield "output_norm.weight", norm
    yield "output.weight", matrix(vocabulary_size, EMBEDDING_LENGTH)


def _add_tensor(
    writer: gguf.GGUFWriter,
    name: str,
    values: numpy.ndarray,
    quantization_type: gguf.GGMLQuantizationType,
) -> None:
    if values.ndim == 1 or quantization_type == gguf.GGMLQuantizationType.F32:
        writer.add_tensor(name, values)
    else:
        quantized = gguf.quants.quantize(values, quantization_type)
        writer.add_tensor(name, quantized, raw_dtype=quantization_type)


def _write(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
