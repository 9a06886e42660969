"""From a checkpoint to an exact model of the kind that it needs: plain where that is enough, else general.

Knows which kind can hold what. Does not know how either is made, nor files.
"""

from __future__ import annotations

from collections.abc import Callable

from nacz import vocabularies
from nacz.errors import ModelError
from nacz.tokens import Tokenizer
from nacz.weights.checkpoint import Checkpoint
from nacz.weights.exact import HEAD, Architecture, ExactModel
from nacz.weights.exact import convert as convert_plain
from nacz.weights.general import GeneralArchitecture, convert_general, general_architecture

__all__ = ["architecture_of", "convert", "tokenizer_of"]

_PLAIN = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")


def architecture_of(checkpoint: Checkpoint) -> Architecture:
    """The shape of the exact model of a checkpoint. Raises ModelError for one that is not supported."""
    c = checkpoint
    arch = Architecture(
        layers=c.layers, dim=c.dim, heads=c.heads, kv_heads=c.kv_heads, ffn=c.ffn, vocab=c.rows, context=c.context,
        rope_base=c.rope_base, eps=c.eps,
    )  # fmt: skip
    usual = {f"{name}.weight" for name in _PLAIN}
    layers = {name.split(".", 2)[2] for name in c.names if name.startswith("blk.") and name.count(".") > 2}
    if c.width == HEAD and not c.local and not c.gelu and layers <= usual:
        try:
            arch.check()
            return arch
        except ModelError:
            pass  # the general kind can take more, or says what it cannot
    return general_architecture(c)


def convert(
    checkpoint: Checkpoint, tokenizer: bytes, progress: Callable[[int, int], None] | None = None
) -> ExactModel:
    """Turn a checkpoint into an exact model, the same bits on every machine. `progress(done, total)` counts layers, the
    embedding being two. Raises ModelError for what is not supported."""
    arch = architecture_of(checkpoint)
    if isinstance(arch, GeneralArchitecture):
        model = convert_general(checkpoint, arch, tokenizer, progress)
    else:
        model = convert_plain(checkpoint, arch, tokenizer, progress)
    checkpoint.check_all_taken()
    return model


def tokenizer_of(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer that comes with a checkpoint. Raises ModelError when there is none, or one of another kind."""
    if checkpoint.gguf is not None:
        found = vocabularies.from_gguf(checkpoint.gguf, checkpoint.rows)
    else:
        found = vocabularies.from_folder(checkpoint.path, checkpoint.rows)
    if found.n_vocab > checkpoint.rows:
        raise ModelError(f"{checkpoint.path}: its tokenizer has more tokens than the model")
    return found
