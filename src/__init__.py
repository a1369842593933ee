"""Keju (科举): from raw Chinese text to an aligned, evaluated language model.

Importing it makes our model and tokenizer families known to the Auto classes of transformers as soon as transformers is
imported, whether before or after. What does without transformers and torch (keju.records, keju.data_prepare) does not
wait for them: their import takes seconds.
"""

import os

from keju.after_import import after_import

# How long a thread of GNU OpenMP spins before it sleeps while it waits for another. Its default makes training on CPUs
# tens of times slower as soon as anything else runs there. It is read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def _register(transformers) -> None:
    from keju.models import registration

    registration.register()


after_import("transformers", _register)
