"""Model families, one file each; the other modules are what they share."""

import transformers  # noqa: F401  before any of them, so that keju registers them all when none is half imported
