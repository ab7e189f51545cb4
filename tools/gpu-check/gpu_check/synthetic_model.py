"""Writes a model of random weights in the shape of a real one, to measure speed with. Needs Python 3 alone.

    scripts/make-synthetic-model SHAPE OUT.gguf [--type q4_k|q8_0] [--seed N]

    SHAPE   blocks  width    ffn  heads  kv heads   tokens
    8b          32   4096  14336     32         8   128256    Llama 3 8B           4.7 GB (q4_k)
    3b          28   3072   8192     24         8   128256    Llama 3.2 3B         1.9 GB
    1b          16   2048   8192     32         8   128256    Llama 3.2 1B         0.8 GB
    135m        30    576   1536      9         3    49152    SmolLM2 135M         0.1 GB (q8_0 alone)
    tiny         4    256    512      4         2     1024    for tests            1.6 MB

The architecture (llama), every matrix's shape and its number format are those of the real model (q4_k: Q4_K, and Q6_K
for the output as in Q4_K_M files; q8_0: Q8_0 throughout). The weights are whole quantised blocks of random bits, scaled
to keep the size of what goes through a matrix: logits are finite, the residual stream grows slowly, and greedy decoding
has a clear winner most of the time. The blocks come from a pool that repeats with a prime period, which gives every row
of a matrix its own start. The tokeniser knows bytes; the other tokens fill the matrices. The text is noise. The same
arguments give the same bytes.
"""

import argparse
import contextlib
import fcntl
import math
import os
import random
import shutil
import struct
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple


class Shape(NamedTuple):
    """Sizes of a model. `tied`: the output matrix is that of the embeddings."""

    blocks: int
    width: int
    ffn: int
    heads: int
    kv_heads: int
    tokens: int
    tied: bool


# Name, dimensions (fastest first), format, deviation of the weights (`None`: all ones).
Tensor = tuple[str, tuple[int, ...], str, float | None]
SHAPES = {
    "8b": Shape(32, 4096, 14336, 32, 8, 128256, False),
    "3b": Shape(28, 3072, 8192, 24, 8, 128256, True),
    "1b": Shape(16, 2048, 8192, 32, 8, 128256, True),
    "135m": Shape(30, 576, 1536, 9, 3, 49152, True),
    "tiny": Shape(4, 256, 512, 4, 2, 1024, True),
}
# GGUF's numbers: of value types, and of tensor formats with (elements, bytes) per block.
U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
FORMATS = {"f32": (0, 1, 4), "q8_0": (8, 32, 34), "q4_k": (12, 256, 144), "q6_k": (14, 256, 210)}
ALIGNMENT = 32
# What a block adds to the residual stream, relative to what went into it; and how far logits spread. Where the output
# matrix is that of the embeddings, a token favours itself by the square of that spread.
BRANCH, LOGITS, TIED_LOGITS = 0.5, 3.0, 1.0


def string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def strings(texts: list[str]) -> bytes:
    return struct.pack("<IQ", STRING, len(texts)) + b"".join(map(string, texts))


def byte_letters() -> dict[int, str]:
    """Maps each byte to its letter in byte-level tokenisers: itself where it prints, else one from U+0100 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {**{byte: chr(byte) for byte in plain}, **{byte: chr(256 + n) for n, byte in enumerate(others)}}


def vocabulary(count: int) -> tuple[list[str], list[int], list[str]]:
    """Returns tokens, their kinds, and the one pair that is merged (llama.cpp wants a list of merges)."""
    tokens = [byte_letters()[byte] for byte in range(256)] + ["<|begin|>", "<|end|>", "th"]
    kinds = [1] * 256 + [3, 3, 1]
    padding = [f"[{number}]" for number in range(len(tokens), count)]
    return tokens + padding, kinds + [1] * len(padding), ["t h"]


def f16(value: float) -> bytes:
    return struct.pack("<e", value)


def q8_0(numbers: random.Random, count: int, deviation: float) -> bytes:
    # Values of -127..127, uniform: their deviation is 73.6. llama.cpp never writes -128.
    scale = f16(deviation / 73.6)
    values = numbers.randbytes(32 * count).replace(b"\x80", b"\x7f")
    return b"".join(scale + values[at : at + 32] for at in range(0, len(values), 32))


def q4_k(numbers: random.Random, count: int, deviation: float) -> bytes:
    # d * s * (q - 7.5) with q of 0..15, uniform (deviation 4.61), and one s of 20..43 per block for all its scales
    # and minima, which are 6-bit numbers in three packed groups of four bytes.
    heads = []
    for s in range(20, 44):
        d = deviation / (4.61 * 32)
        packed = bytes([s | s >> 4 << 6] * 8 + [s & 15 | (s & 15) << 4] * 4)
        heads.append(f16(d) + f16(7.5 * d) + packed)
    values = numbers.randbytes(128 * count)
    return b"".join(numbers.choice(heads) + values[at : at + 128] for at in range(0, len(values), 128))


def q6_k(numbers: random.Random, count: int, deviation: float) -> bytes:
    # d * s * (q - 32) with q of 0..63, uniform (deviation 18.5), in ql and qh; then 16 scales, then d.
    tails = [bytes([s] * 16) + f16(deviation / (18.5 * 32)) for s in range(20, 44)]
    values = numbers.randbytes(192 * count)
    return b"".join(values[at : at + 192] + numbers.choice(tails) for at in range(0, len(values), 192))


MAKERS = {"q8_0": q8_0, "q4_k": q4_k, "q6_k": q6_k}


def next_prime(number: int) -> int:
    while any(number % divisor == 0 for divisor in range(2, int(number**0.5) + 1)):
        number += 1
    return number


class Pool:
    """Blocks of one format and size of weights. A matrix is a run through them from a random start."""

    def __init__(self, form: str, deviation: float, rows: int, seed: int) -> None:
        # Row r begins at block (r * blocks per row) modulo the period. A prime period larger than the number of rows
        # gives every row another start.
        self.period = next_prime(max(rows, 1021))
        self.size = FORMATS[form][2]
        self.numbers = random.Random(f"{seed} {form} {deviation}")
        self.data = memoryview(MAKERS[form](self.numbers, self.period, deviation))

    def write(self, file: BinaryIO, blocks: int) -> None:
        at = self.numbers.randrange(self.period)
        while blocks > 0:
            count = min(blocks, self.period - at)
            file.write(self.data[at * self.size : (at + count) * self.size])
            blocks, at = blocks - count, 0


def matrices(shape: Shape, form: str, out_form: str) -> Iterator[Tensor]:
    """Yields every tensor in the order of the file."""
    width, ffn = shape.width, shape.ffn
    kv = width // shape.heads * shape.kv_heads
    unit, branch = width**-0.5, BRANCH * width**-0.5
    logits = (TIED_LOGITS if shape.tied else LOGITS) * unit
    yield "token_embd.weight", (width, shape.tokens), out_form if shape.tied else form, logits if shape.tied else 1.0
    for block in range(shape.blocks):
        for name, dimensions, deviation in [
            ("attn_norm", (width,), None),
            ("attn_q", (width, width), unit),
            ("attn_k", (width, kv), unit),
            ("attn_v", (width, kv), unit),
            ("attn_output", (width, width), branch),
            ("ffn_norm", (width,), None),
            ("ffn_gate", (width, ffn), unit),
            ("ffn_up", (width, ffn), unit),
            ("ffn_down", (ffn, width), BRANCH * ffn**-0.5),
        ]:
            yield f"blk.{block}.{name}.weight", dimensions, form if deviation else "f32", deviation
    yield "output_norm.weight", (width,), "f32", None
    if not shape.tied:
        yield "output.weight", (width, shape.tokens), out_form, logits


def head(name: str, shape: Shape, form: str, tensors: list[Tensor]) -> tuple[bytes, int]:
    """Returns everything before the tensors' data, and the size of that data."""
    tokens, kinds, merges = vocabulary(shape.tokens)
    key = "llama."
    pairs = [
        ("general.architecture", STRING, string("llama")),
        ("general.name", STRING, string(f"synthetic {name}, random weights")),
        ("general.file_type", U32, struct.pack("<I", {"q4_k": 15, "q8_0": 7}[form])),
        ("general.quantization_version", U32, struct.pack("<I", 2)),
        (key + "vocab_size", U32, struct.pack("<I", shape.tokens)),
        (key + "block_count", U32, struct.pack("<I", shape.blocks)),
        (key + "context_length", U32, struct.pack("<I", 8192)),
        (key + "embedding_length", U32, struct.pack("<I", shape.width)),
        (key + "feed_forward_length", U32, struct.pack("<I", shape.ffn)),
        (key + "attention.head_count", U32, struct.pack("<I", shape.heads)),
        (key + "attention.head_count_kv", U32, struct.pack("<I", shape.kv_heads)),
        (key + "attention.layer_norm_rms_epsilon", F32, struct.pack("<f", 1e-5)),
        (key + "rope.dimension_count", U32, struct.pack("<I", shape.width // shape.heads)),
        (key + "rope.freq_base", F32, struct.pack("<f", 500000.0)),
        ("tokenizer.ggml.model", STRING, string("gpt2")),
        ("tokenizer.ggml.pre", STRING, string("gpt-2")),
        ("tokenizer.ggml.tokens", ARRAY, strings(tokens)),
        ("tokenizer.ggml.token_type", ARRAY, struct.pack(f"<IQ{len(kinds)}i", I32, len(kinds), *kinds)),
        ("tokenizer.ggml.merges", ARRAY, strings(merges)),
        ("tokenizer.ggml.bos_token_id", U32, struct.pack("<I", tokens.index("<|begin|>"))),
        ("tokenizer.ggml.eos_token_id", U32, struct.pack("<I", tokens.index("<|end|>"))),
        ("tokenizer.ggml.add_bos_token", BOOL, struct.pack("<?", True)),
    ]
    data = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs))
    data += b"".join(string(name) + struct.pack("<I", kind) + value for name, kind, value in pairs)
    offset = 0
    for name, dimensions, form, _ in tensors:
        data += string(name) + struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, FORMATS[form][0], offset)
        offset += padded(bytes_of(dimensions, form))
    return data + bytes(-len(data) % ALIGNMENT), offset


def bytes_of(dimensions: tuple[int, ...], form: str) -> int:
    _, per_block, size = FORMATS[form]
    if dimensions[0] % per_block:
        sys.exit(f"make-synthetic-model: rows of {dimensions[0]} do not fit blocks of {form}; take --type q8_0")
    return math.prod(dimensions) // per_block * size


def padded(size: int) -> int:
    return size + -size % ALIGNMENT


@contextlib.contextmanager
def alone(path: str) -> Iterator[BinaryIO]:
    """Opens a file for one writer at a time: a second one waits. What an earlier writer left is overwritten."""
    while True:
        with open(path, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # The earlier writer may have finished and renamed the file.
            if not os.path.exists(path) or not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                continue
            file.truncate(0)
            try:
                yield file
            except OSError:
                os.remove(path)
                raise
            return


def main() -> None:
    """Runs the command line of scripts/make-synthetic-model."""
    parser = argparse.ArgumentParser(prog="make-synthetic-model", description="Writes a model of random weights.")
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("out", help="the GGUF file to write")
    parser.add_argument("--type", choices=["q4_k", "q8_0"], default="q4_k", help="number format of the matrices")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    tensors = list(matrices(shape, options.type, "q6_k" if options.type == "q4_k" else "q8_0"))
    start, size = head(options.shape, shape, options.type, tensors)
    folder = os.path.dirname(os.path.abspath(options.out))
    if not os.path.isdir(folder):
        sys.exit(f"make-synthetic-model: there is no folder {folder}")
    if (free := shutil.disk_usage(folder).free) < len(start) + size:
        sys.exit(f"make-synthetic-model: {options.out} takes {size} bytes, but {folder} has only {free} left")
    pools: dict[Any, Pool] = {}
    unfinished = options.out + ".unfinished"
    try:
        with alone(unfinished) as file:
            file.write(start)
            for _, dimensions, form, deviation in tensors:
                length = bytes_of(dimensions, form)
                if deviation is None:
                    file.write(struct.pack("<f", 1.0) * dimensions[0])
                else:
                    if (form, deviation) not in pools:
                        rows = max(dims[1] for _, dims, f, d in tensors if (f, d) == (form, deviation))
                        pools[form, deviation] = Pool(form, deviation, rows, options.seed)
                    pools[form, deviation].write(file, length // FORMATS[form][2])
                file.write(bytes(padded(length) - length))
            file.flush()
            os.replace(unfinished, options.out)
    except OSError as error:
        sys.exit(f"make-synthetic-model: cannot write {options.out}: {error}")


if __name__ == "__main__":
    main()
