"""Keju (科举): from raw Chinese text to an aligned, evaluated language model.

Importing it makes our model and tokenizer families known to the Auto classes of transformers. keju.kernels needs torch
and Triton alone, so that this is skipped where transformers is not installed.
"""

from importlib.util import find_spec

if find_spec("transformers") is not None:
    from keju.models import registration

    registration.register()
