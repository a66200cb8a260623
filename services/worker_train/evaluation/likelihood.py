"""Loss and perplexity of both models on the answers of held-out rows. It generates nothing."""

from collections.abc import Callable, Sequence

import numpy as np

from services.worker_train.child import Refused
from services.worker_train.evaluation.bootstrap import Comparison, Means, compare
from services.worker_train.evaluation.examinee import Examinee, Score
from services.worker_train.evaluation.pace import Pace
from services.worker_train.evaluation.text import Row

#: exp of a larger loss is no longer a number that JSON can hold.
_LARGEST_LOSS = 700.0


def score_both(
    examinee: Examinee, rows: Sequence[Row], *, pace: Pace, what: str
) -> tuple[list[Score], list[Score]]:
    """The scores of base and candidate, of as many rows, in their order, as there is time for."""
    base: list[Score] = []
    candidate: list[Score] = []
    for batch in pace.batches(rows, what):
        texts = [examinee.text.whole(row) for row in batch]
        base += examinee.scores(texts, adapted=False)
        candidate += examinee.scores(texts, adapted=True)
    return base, candidate


def loss_and_perplexity(
    rows: Sequence[Row], base: Sequence[Score], candidate: Sequence[Score], *, seed: int
) -> tuple[Comparison, Comparison]:
    """Mean loss of an answer token, in nats, and the perplexity that it means.

    Raises Refused when no row has an answer token.
    """
    if not sum(score.tokens for score in base):
        raise Refused(
            "no-rows",
            "No held-out row can be measured: the dataset needs validation rows that fit the model.",
        )
    counted = [place for place, score in enumerate(base) if score.tokens]

    def of(transform: Callable[[Means], Means] | None) -> Comparison:
        return compare(
            [base[place].loss for place in counted],
            [candidate[place].loss for place in counted],
            weights=[base[place].tokens for place in counted],
            groups=[rows[place].group for place in counted],
            transform=transform,
            seed=seed,
        )

    return of(None), of(perplexity)


def perplexity(losses: Means) -> Means:
    """The exponential of mean losses, an array of any shape."""
    return np.exp(np.minimum(losses, _LARGEST_LOSS))
