"""Keju (科举): from raw Chinese text to an aligned, evaluated language model.

Importing it makes our model and tokenizer families known to the Auto classes of transformers. keju.kernels needs torch
and Triton alone, so that this is skipped where transformers is not installed.
"""

import os
from importlib.util import find_spec

# How long a thread of GNU OpenMP spins before it sleeps while it waits for another. Its default makes training on CPUs
# tens of times slower as soon as anything else runs there. It is read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

if find_spec("transformers") is not None:
    from keju.models import registration

    registration.register()
