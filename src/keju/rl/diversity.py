"""How much generated texts repeat themselves and each other."""

from collections.abc import Sequence


def distinct(responses: Sequence[Sequence[int]], n: int) -> float:
    """distinct-n (Li et al. 2016, arXiv 1510.03055): different n-grams of all responses over all their n-grams.

    1 where there is none, as in responses shorter than n.
    """
    ngrams = [gram for ids in responses for gram in zip(*(ids[start:] for start in range(n)), strict=False)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 1.0


def repetition(responses: Sequence[Sequence[int]], n: int = 2) -> float:
    """The share of n-grams that stood in the same response before, mean over responses of at least n tokens; else 0."""
    shares = [1 - distinct([ids], n) for ids in responses if len(ids) >= n]
    return sum(shares) / len(shares) if shares else 0.0
