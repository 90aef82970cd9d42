#!/usr/bin/env python3
"""Write a tiny random-weight llama model as GGUF, so that tests can use a real Ollama without a download.

* F16 matrices, F32 norms, untied output head; a SentencePiece-style vocabulary, which needs no table of merges.
* Dimension 0 of every embedding row holds a constant and no layer writes to it, so after the final norm it is a
  positive near-constant, and column 0 of the output head is a logit bias per token. Byte, control and unknown tokens
  get a strong negative one (the output is always printable); that of </s> sets how long answers are.
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any

import gguf
import numpy

WORDS = """the of and to in is it you that he was for on are with as his they be at one have this from
or had by hot word but what some we can out other were all there when up use your how said an each she
which do their time if will way about many then them write would like so these her long make thing see
him two has look more day could go come did number sound no most people my over know water than call
first who may down side been now find"""

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BOS, EOS, UNKNOWN = 1, 2, 0
HIDDEN_BIAS = -20.0


def vocabulary() -> tuple[list[tuple[str, float, gguf.TokenType]], int]:
    """Tokens with score and type, and how many of the first are never sampled."""
    kind = gguf.TokenType
    tokens = [("<unk>", 0.0, kind.UNKNOWN), ("<s>", 0.0, kind.CONTROL), ("</s>", 0.0, kind.CONTROL)]
    tokens += [(f"<0x{byte:02X}>", 0.0, kind.BYTE) for byte in range(256)]
    tokens += [("<|im_start|>", 0.0, kind.CONTROL), ("<|im_end|>", 0.0, kind.CONTROL)]
    hidden = len(tokens)
    tokens += [(chr(code), -1000.0 - code, kind.NORMAL) for code in range(0x21, 0x7F)]
    tokens += [("\u2581", -900.0, kind.NORMAL)]  # SentencePiece's mark for a space
    tokens += [(f"\u2581{word}", -1.0 - place, kind.NORMAL) for place, word in enumerate(WORDS.split())]
    return tokens, hidden


def add_metadata(writer: gguf.GGUFWriter, options: argparse.Namespace) -> None:
    tokens, _hidden = vocabulary()
    writer.add_name(options.name)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(options.ctx)
    writer.add_embedding_length(options.embd)
    writer.add_block_count(options.layers)
    writer.add_feed_forward_length(options.ff)
    writer.add_head_count(options.heads)
    writer.add_head_count_kv(options.heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(options.embd // options.heads)  # must equal the head size
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([text.encode() for text, _score, _kind in tokens])
    writer.add_token_scores([score for _text, score, _kind in tokens])
    writer.add_token_types([int(kind) for _text, _score, kind in tokens])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_unk_token_id(UNKNOWN)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    if options.pooling:
        writer.add_pooling_type(gguf.PoolingType.MEAN)


def add_tensors(writer: gguf.GGUFWriter, options: argparse.Namespace) -> None:
    tokens, hidden = vocabulary()
    random = numpy.random.default_rng(options.seed)
    size, wide = options.embd, options.ff

    def add(name: str, values: Any, kind: Any = numpy.float16) -> None:
        writer.add_tensor(f"{name}.weight", numpy.ascontiguousarray(values, dtype=kind))

    def matrix(rows: int, columns: int, *, to_residual: bool = False) -> Any:
        values = random.normal(0, 1 / numpy.sqrt(columns), (rows, columns))
        if to_residual:
            values[0, :] = 0.0  # keeps the constant dimension constant
        return values

    embeddings = random.normal(0, 1, (len(tokens), size))
    embeddings[:, 0] = 4.0
    add("token_embd", embeddings)
    for layer, name in itertools.product(range(options.layers), ("attn", "ffn")):
        block = f"blk.{layer}."
        add(f"{block}{name}_norm", numpy.ones(size), numpy.float32)
        if name == "attn":
            for part in ("q", "k", "v"):
                add(f"{block}attn_{part}", matrix(size, size))
            add(f"{block}attn_output", matrix(size, size, to_residual=True))
        else:
            add(f"{block}ffn_gate", matrix(wide, size))
            add(f"{block}ffn_up", matrix(wide, size))
            add(f"{block}ffn_down", matrix(size, wide, to_residual=True))
    add("output_norm", numpy.ones(size), numpy.float32)
    head = matrix(len(tokens), size)
    head[:, 0] = 0.0
    head[:hidden, 0] = HIDDEN_BIAS
    head[EOS, :] = 0.0
    head[EOS, 0] = options.eos_bias
    add("output", head)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--embd", type=int, default=64)
    parser.add_argument("--heads", type=int, default=1, help="one head of 64, a size that flash attention supports")
    parser.add_argument("--ff", type=int, default=1024)
    parser.add_argument("--ctx", type=int, default=2048)
    parser.add_argument("--eos-bias", type=float, default=0.4, help="1.0: 5 tokens, 0.4: about 50, 0.2: never stops")
    parser.add_argument("--pooling", action="store_true", help="makes vectors and no text")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--name", default="tiny-random")
    options = parser.parse_args()
    writer = gguf.GGUFWriter(options.out, "llama")
    add_metadata(writer, options)
    add_tensors(writer, options)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
