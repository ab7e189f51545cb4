"""Decodes a text with llama.cpp's shared libraries, which are loaded by ctypes, with the plugin attached:

    python3 decode.py FOLDER-OF-LIBRARIES PLUGIN MODEL

Prints the greedy continuation's tokens. Structures that llama.cpp takes and returns by value are words here: more of
them than they have, since where such a structure ends is the callee's knowledge.
"""

import ctypes
import sys

folder, plugin, path = sys.argv[1:]


class Words(ctypes.Structure):
    """Parameters, as llama.cpp returns and takes them."""

    _fields_ = [("words", ctypes.c_uint64 * 128)]


class Batch(ctypes.Structure):
    """llama_batch."""

    _fields_ = [("n_tokens", ctypes.c_int32), ("pointers", ctypes.c_void_p * 6)]


ggml = ctypes.CDLL(f"{folder}/libggml.so")
llama = ctypes.CDLL(f"{folder}/libllama.so")
ggml.ggml_backend_load_all_from_path(folder.encode())
if plugin:
    attach = ctypes.CDLL(plugin).axiscap_attach
    assert attach() == 0
    assert attach() == 0, "a second call does nothing"


def function(name, result, *arguments):
    found = getattr(llama, name)
    found.restype, found.argtypes = result, arguments
    return found


pointer = ctypes.c_void_p
load = function("llama_model_load_from_file", pointer, ctypes.c_char_p, Words)
create = function("llama_init_from_model", pointer, pointer, Words)
batch_of = function("llama_batch_get_one", Batch, pointer, ctypes.c_int32)
decode = function("llama_decode", ctypes.c_int32, pointer, Batch)
logits_of = function("llama_get_logits_ith", ctypes.POINTER(ctypes.c_float), pointer, ctypes.c_int32)
vocabulary = function("llama_vocab_n_tokens", ctypes.c_int32, pointer)(
    function("llama_model_get_vocab", pointer, pointer)(
        model := load(path.encode(), function("llama_model_default_params", Words)())
    )
)
context = create(model, function("llama_context_default_params", Words)())
tokens, found = list(range(100, 112)), []
for _ in range(8):
    array = (ctypes.c_int32 * len(tokens))(*tokens)
    status = decode(context, batch_of(array, len(tokens)))
    assert status == 0, f"llama_decode returned {status}"
    logits = logits_of(context, -1)
    tokens = [max(range(vocabulary), key=lambda token: logits[token])]
    found += tokens
print(found)
function("llama_free", None, pointer)(context)
function("llama_model_free", None, pointer)(model)
