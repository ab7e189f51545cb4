"""Loads two ggml libraries into one process, and their backends:

    python3 second_ggml.py PLUGIN FOLDER LIBRARY FOLDER LIBRARY

With a PLUGIN it is attached after each of them, and otherwise each ggml loads it itself (GGML_BACKEND_PATH). Prints what
each call returned.
"""

import ctypes
import sys

plugin, *libraries = sys.argv[1:]
for folder, library in zip(libraries[::2], libraries[1::2], strict=True):
    ggml = ctypes.CDLL(f"{folder}/{library}")
    ggml.ggml_backend_load_all_from_path(folder.encode())
    print("loaded", ctypes.CDLL(plugin).axiscap_attach() if plugin else "", flush=True)
